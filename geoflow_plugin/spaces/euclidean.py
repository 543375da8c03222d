"""Euclidean space under any constant metric, and the flat metrics of arrays.

Under any other metric it keeps its flat tangent geometry and is its own ``model``, one that
is not isometric: normal laws along straight lines, with the exact change of volume.
"""

import math

import torch
from geomstats.geometry.euclidean import CanonicalEuclideanMetric, Euclidean, EuclideanMetric
from geomstats.geometry.matrices import MatricesMetric
from geomstats.geometry.minkowski import MinkowskiMetric
from geomstats.geometry.scalar_product_metric import ScalarProductMetric

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError

# Constant metrics ---------------------------------------------------------------------


@geometry.frobenius_scale.register(CanonicalEuclideanMetric)
@geometry.frobenius_scale.register(MatricesMetric)
def _(metric):
    return 1.0


@geometry.frobenius_scale.register(ScalarProductMetric)
def _(metric):
    inner = geometry.frobenius_scale(metric.underlying_metric)
    return None if inner is None else float(metric.scale) * inner


# Euclidean space ----------------------------------------------------------------------


_EUCLIDEAN: dict[int, Euclidean] = {}


def euclidean(dim):
    """Euclidean space of a dimension, made once: making it calls geomstats' backend."""
    if dim not in _EUCLIDEAN:
        _EUCLIDEAN[dim] = Euclidean(dim)
    return _EUCLIDEAN[dim]


@geometry.projection.register(Euclidean)
def _(space, point):
    return point


def register_open_set(cls):
    """The flat tangent geometry of an open set in R^dim, or of coordinates (dim,)."""

    @geometry.to_tangent.register(cls)
    def _(space, vector, base_point):
        return vector

    @geometry.tangent_basis.register(cls)
    def _(space, base_point):
        eye = torch.eye(space.dim, dtype=base_point.dtype, device=base_point.device)
        return eye.expand(*base_point.shape[:-1], space.dim, space.dim)


register_open_set(Euclidean)


@geometry.origin.register(Euclidean)
def _(space):
    return torch.zeros(space.dim, dtype=torch.float64)


@geometry.constraint_residual.register(Euclidean)
def _(space, point):
    return torch.zeros_like(point[..., 0])


@geometry.exp.register(Euclidean, geometry.FlatMetric)
@geometry.exp.register(Euclidean, EuclideanMetric)
@geometry.retraction.register(Euclidean)
def add(space, tangent_vec, base_point):
    """Exponential along straight lines."""
    return base_point + tangent_vec


@geometry.log.register(Euclidean, geometry.FlatMetric)
@geometry.log.register(Euclidean, EuclideanMetric)
def subtract(space, point, base_point):
    """Logarithm along straight lines."""
    return point - base_point


@geometry.model.register(Euclidean)
def _(space):
    return geometry.Model(euclidean(space.dim), lambda x: x, lambda z: z, isometric=False)


@geometry.model.register(Euclidean, geometry.FlatMetric)
@geometry.model.register(Euclidean, EuclideanMetric)
def _(space):
    return None  # known by itself


@geometry.is_compact.register(Euclidean)
def _(space):
    return False


@geometry.is_euclidean.register(Euclidean)
def has_flat_metric(space):
    """Whether the metric is a constant times the product of arrays, or not given."""
    metric = getattr(space, "metric", None)
    return metric is None or geometry.frobenius_scale(metric) is not None


@geometry.wrapped_normal_log_prob.register(Euclidean, geometry.FlatMetric)
@geometry.wrapped_normal_log_prob.register(Euclidean, EuclideanMetric)
def _(space, point, mean, scale):
    squared = _whiten(space, point - mean).square().sum(-1)
    normalizer = space.dim * (0.5 * math.log(2 * math.pi) + scale.log())
    return -0.5 * squared / scale.square() - normalizer


@geometry.log_kernel_normalizer.register(Euclidean, geometry.FlatMetric)
@geometry.log_kernel_normalizer.register(Euclidean, EuclideanMetric)
def _(space, bandwidth):
    return space.dim * (0.5 * math.log(2 * math.pi) + bandwidth.log())


@geometry.random_kernel.register(Euclidean, geometry.FlatMetric)
@geometry.random_kernel.register(Euclidean, EuclideanMetric)
def _(space, center, bandwidth, generator=None):
    normal = geometry.random_tangent_normal(space, center, generator)
    return center + bandwidth[:, None] * normal


@geometry.chart.register(Euclidean)
def _(space, point):
    return point, -geometry.log_volume_element(space, point)


@geometry.chart_inverse.register(Euclidean)
def _(space, coordinates):
    return coordinates, geometry.log_volume_element(space, coordinates)


@geometry.inner_product.register(Euclidean, EuclideanMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    return (_whiten(space, tangent_vec_a) * _whiten(space, tangent_vec_b)).sum(-1)


@geometry.squared_chord.register(Euclidean, EuclideanMetric)
def _(space, point, centers):
    x, c = _whiten(space, point).unsqueeze(1), _whiten(space, centers)
    return sum((x[..., k] - c[:, k]).square() for k in range(space.dim))


def _whiten(space, vector):
    """Vectors whose Frobenius product is the metric's."""
    metric = getattr(space, "metric", None)
    scale = 1.0 if metric is None else geometry.frobenius_scale(metric)
    if scale is not None:
        return math.sqrt(scale) * vector
    matrix = torch.as_tensor(geometry.bare_metric(space).metric_matrix_).to(vector)
    return vector @ torch.linalg.cholesky(geometry.outer_scale(space) * matrix)


@geometry.is_compact.register(Euclidean, MinkowskiMetric)
def _(space):
    raise UnsupportedError(
        "space: MinkowskiMetric is indefinite: its volume is no measure of distance, and "
        "the space has no Riemannian geometry; equip it with a Euclidean metric."
    )
