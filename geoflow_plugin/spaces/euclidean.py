"""Euclidean space, and the metrics that are a constant times the Frobenius product."""

import math

import torch
from geomstats.geometry.euclidean import CanonicalEuclideanMetric, Euclidean
from geomstats.geometry.scalar_product_metric import ScalarProductMetric

from geoflow_plugin import geometry


@geometry.frobenius_scale.register(CanonicalEuclideanMetric)
def _(metric):
    return 1.0


@geometry.frobenius_scale.register(ScalarProductMetric)
def _(metric):
    return float(metric.scale) * geometry.frobenius_scale(metric.underlying_metric)


@geometry.projection.register(Euclidean)
def _(space, point):
    return point


@geometry.to_tangent.register(Euclidean)
def _(space, vector, base_point):
    return vector


@geometry.tangent_basis.register(Euclidean)
def _(space, base_point):
    eye = torch.eye(space.dim, dtype=base_point.dtype, device=base_point.device)
    return eye.expand(*base_point.shape[:-1], space.dim, space.dim)


@geometry.origin.register(Euclidean)
def _(space):
    return torch.zeros(space.dim, dtype=torch.float64)


@geometry.constraint_residual.register(Euclidean)
def _(space, point):
    return torch.zeros_like(point[..., 0])


@geometry.exp.register(Euclidean)
@geometry.retraction.register(Euclidean)
def _(space, tangent_vec, base_point):
    return base_point + tangent_vec


@geometry.log.register(Euclidean)
def _(space, point, base_point):
    return point - base_point


@geometry.is_compact.register(Euclidean)
def _(space):
    return False


@geometry.wrapped_normal_log_prob.register(Euclidean)
def _(space, point, mean, scale):
    squared = geometry.metric_scale(space) * (point - mean).square().sum(-1)
    normalizer = space.dim * (0.5 * math.log(2 * math.pi) + scale.log())
    return -0.5 * squared / scale.square() - normalizer


@geometry.log_kernel_normalizer.register(Euclidean)
def _(space, bandwidth):
    return space.dim * (0.5 * math.log(2 * math.pi) + bandwidth.log())


@geometry.random_kernel.register(Euclidean)
def _(space, center, bandwidth, generator=None):
    normal = geometry.random_tangent_normal(space, center, generator)
    return center + bandwidth[:, None] * normal


@geometry.chart.register(Euclidean)
def _(space, point):
    return point, -geometry.log_volume_element(space, point)


@geometry.chart_inverse.register(Euclidean)
def _(space, coordinates):
    return coordinates, geometry.log_volume_element(space, coordinates)
