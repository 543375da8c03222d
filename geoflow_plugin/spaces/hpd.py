"""Hermitian positive definite matrices, as real arrays (n, n, 2).

A complex matrix is computed with as a real one of twice the size (``widen``). That makes
the positive definite ones a totally geodesic part of the real ones, with half the metric:
exponential and logarithm are theirs. Where the exponential of a metric is no
diffeomorphism in closed form, normal laws and charts are those of the matrix logarithm.
"""

import math

import torch
from geomstats.geometry.hpd_matrices import (
    HPDAffineMetric,
    HPDBuresWassersteinMetric,
    HPDEuclideanMetric,
    HPDLogEuclideanMetric,
    HPDMatrices,
)
from geomstats.geometry.spd_matrices import (
    SPDAffineMetric,
    SPDBuresWassersteinMetric,
    SPDMatrices,
)

from geoflow_plugin import geometry
from geoflow_plugin.spaces import linear
from geoflow_plugin.spaces.carried_normal import register_carried_normal
from geoflow_plugin.spaces.complex import (
    exp_log_volume,
    hermitian_basis,
    hermitian_exp,
    hermitian_log,
)
from geoflow_plugin.spaces.euclidean import add, euclidean, subtract
from geoflow_plugin.spaces.matrix_functions import (
    half_differences,
    log_determinant,
    log_sinh_quotient,
    nearest_positive,
    positive_step,
    positivity_residual,
    squared_arsinh_quotient,
    symmetrize,
)
from geoflow_plugin.spaces.real_view import RealView, narrow, register_open_view, widen
from geoflow_plugin.spaces.spd import congruent, whiten


class RealHPDMatrices(RealView, of=HPDMatrices):
    """Hermitian positive definite matrices as real arrays (n, n, 2)."""

    def _real_dim(self, space):
        return math.prod(space.shape)


@linear.linear_basis.register(RealHPDMatrices)
def _(space, like):
    return hermitian_basis(space.shape[0], like)


register_open_view(RealHPDMatrices)
linear.register_linear_geometry(RealHPDMatrices)


@geometry.projection.register(RealHPDMatrices)
def _(space, point):
    return narrow(nearest_positive(widen(point)))


@geometry.constraint_residual.register(RealHPDMatrices)
def _(space, point):
    return positivity_residual(widen(point))


@geometry.retraction.register(RealHPDMatrices)
def _(space, tangent_vec, base_point):
    return narrow(positive_step(widen(tangent_vec), widen(base_point)))


@geometry.origin.register(RealHPDMatrices)
def _(space):
    eye = torch.eye(space.shape[0], dtype=torch.float64)
    return torch.stack([eye, torch.zeros_like(eye)], dim=-1)


# The exponential and its volume -----------------------------------------------------------


def register_normal(where, separation, smooth_separation):
    """Register normal laws carried by the exponential, and normal coordinates as chart.

    As ``register_carried_normal`` does, but for two forms of the separation: kernels take
    the quicker one, all else the one with derivatives where eigenvalues repeat.
    """
    register_carried_normal(where, separation, geometry.exp)

    @geometry.wrapped_normal_log_prob.register(*where)
    def _(space, point, mean, scale):
        squared, log_change = smooth_separation(space, point, mean)
        normalizer = geometry.log_kernel_normalizer(space, scale)
        return -0.5 * squared / scale.square() - log_change - normalizer

    def log_volume(space, point, origin):
        constant = 0.5 * space.dim * math.log(geometry.outer_scale(space))
        return smooth_separation(space, point, origin)[1] + constant

    @geometry.chart.register(*where)
    def _(space, point):
        origin = geometry.origin(space).to(point).expand(point.shape)
        tangent_vec = geometry.log(space, point, origin)
        coordinates = linear.coordinates(space, tangent_vec)
        return coordinates, -log_volume(space, point, origin)

    @geometry.chart_inverse.register(*where)
    def _(space, coordinates):
        tangent_vec = linear.combination(space, coordinates)
        origin = geometry.origin(space).to(tangent_vec).expand(tangent_vec.shape)
        point = geometry.exp(space, tangent_vec, origin)
        return point, log_volume(space, point, origin)


def _log_change(tangent_vec):
    """Log volume change of the affine exponential at Hermitian matrices (..., n, n, 2)."""
    n = tangent_vec.shape[-2]
    if n > 4:  # eigenvalues are cheaper; their second derivatives may not exist
        values = torch.linalg.eigvalsh(RealView.to_complex(tangent_vec))
        return 2 * log_sinh_quotient(half_differences(values)).sum(-1)
    basis = widen(hermitian_basis(n, tangent_vec)) / math.sqrt(2)
    return exp_log_volume(widen(tangent_vec), basis)


@geometry.model.register(RealHPDMatrices)
def _(space):
    return geometry.Model(
        euclidean(space.dim),
        lambda x: linear.coordinates(space, hermitian_log(x)),
        lambda z: hermitian_exp(linear.combination(space, z)),
        isometric=False,
    )


# Metrics of real matrices: half of theirs -------------------------------------------------

_TWICE_AS_LARGE: dict[tuple[int, type], SPDMatrices] = {}


def _twice_as_large(space, metric_class):
    """Real matrices of twice the size; made once: making them calls geomstats' backend."""
    key = 2 * space.shape[0], metric_class
    if key not in _TWICE_AS_LARGE:
        target = SPDMatrices(key[0], equip=False)
        _TWICE_AS_LARGE[key] = target.equip_with_metric(metric_class)
    return _TWICE_AS_LARGE[key]


def _register_half(metric_class, real_metric_class):
    where = RealHPDMatrices, metric_class

    @geometry.inner_product.register(*where)
    def _(space, *arrays):
        target = _twice_as_large(space, real_metric_class)
        product = geometry.inner_product(target, *map(widen, arrays))
        return geometry.outer_scale(space) / 2 * product

    for function in (geometry.exp, geometry.log):

        @function.register(*where)
        def _(space, array, base_point, function=function):
            target = _twice_as_large(space, real_metric_class)
            return narrow(function(target, widen(array), widen(base_point)))


_register_half(HPDAffineMetric, SPDAffineMetric)
_register_half(HPDBuresWassersteinMetric, SPDBuresWassersteinMetric)

# Affine-invariant metric: a symmetric space of nonpositive curvature ----------------------

_affine = (RealHPDMatrices, HPDAffineMetric)


@geometry.log_volume_element.register(*_affine)
def _(space, point):
    constant = 0.5 * space.dim * math.log(geometry.outer_scale(space))
    return constant - space.shape[0] / 2 * log_determinant(widen(point))


@geometry.sharp.register(*_affine)
def _(space, covector, base_point):
    base_point = widen(base_point)
    product = symmetrize(base_point @ widen(covector) @ base_point)
    return narrow(product) / geometry.outer_scale(space)


@geometry.random_tangent_normal.register(*_affine)
def _(space, base_point, generator=None):
    shape = (*base_point.shape[:-3], space.dim)
    normal = geometry.random_normal(shape, base_point, generator)
    root = torch.linalg.cholesky(widen(base_point))
    normal = congruent(widen(linear.combination(space, normal)), root)
    return narrow(normal) / math.sqrt(geometry.outer_scale(space))


def _separation(space, point, center):
    """Squared distance, and log volume change of the exponential, from differences.

    So that equal points are at distance zero and close ones keep their digits.
    """
    # congruence by the inverse root as a matrix on Hermitian coordinates: pairs are many
    inverse = torch.linalg.inv(torch.linalg.cholesky(widen(center))).unsqueeze(-3)
    basis = widen(linear.linear_basis(space, center))
    congruence = linear.coordinates(space, narrow(inverse @ basis @ inverse.mT))
    difference = linear.coordinates(space, point - center)
    seen = torch.einsum("...i,...ij->...j", difference, congruence)
    least = torch.finfo(seen.dtype).eps - 1
    if space.shape[0] == 2:
        a, real, b, imaginary = seen.unbind(-1)
        c = (real.square() + imaginary.square()) / 2
        excess = (a + b + a * b - c).clamp_min(least)  # of the determinant over one
        squared_sine = ((a - b).square() / 4 + c) / (1 + excess)
        quotient = squared_arsinh_quotient(squared_sine)
        squared = excess.log1p().square() / 2 + 2 * squared_sine * quotient
        return geometry.outer_scale(space) * squared, -quotient.log()
    matrix = RealView.to_complex(linear.combination(space, seen))
    values = torch.linalg.eigvalsh(matrix).clamp_min(least).log1p()
    change = 2 * log_sinh_quotient(half_differences(values)).sum(-1)
    return geometry.outer_scale(space) * values.square().sum(-1), change


def _smooth_separation(space, point, center):
    """The same, with derivatives at repeated eigenvalues."""
    if space.shape[0] == 2:
        return _separation(space, point, center)
    whitened = whiten(widen(point), torch.linalg.cholesky(widen(center)))
    tangent_vec = hermitian_log(narrow(whitened))
    squared = tangent_vec.square().sum((-3, -2, -1))
    return geometry.outer_scale(space) * squared, _log_change(tangent_vec)


@geometry.dist.register(*_affine)
def _(space, point_a, point_b):
    return geometry.safe_sqrt(_separation(space, point_b, point_a)[0])


register_normal(_affine, _separation, _smooth_separation)

# Log-Euclidean metric: that of the logarithm ----------------------------------------------


@geometry.model.register(RealHPDMatrices, HPDLogEuclideanMetric)
def _(space):
    image_space = RealView(geometry.bare_metric(space).image_space)
    return geometry.Model(image_space, hermitian_log, hermitian_exp)


@geometry.log_volume_element.register(RealHPDMatrices, HPDLogEuclideanMetric)
def _(space, point):
    found = geometry.model(space)
    target = geometry.log_volume_element(found.space, found.to_model(point))
    change = _smooth_separation(space, point, geometry.origin(space).to(point))[1]
    change = change + space.shape[0] / 2 * log_determinant(widen(point))
    return target - change + 0.5 * space.dim * math.log(geometry.outer_scale(space))


# Incomplete metrics -----------------------------------------------------------------------

geometry.exp.register(RealHPDMatrices, HPDEuclideanMetric)(add)
geometry.log.register(RealHPDMatrices, HPDEuclideanMetric)(subtract)

_bures = (RealHPDMatrices, HPDBuresWassersteinMetric)


def _lyapunov(space, point):
    """Matrix of V -> X V + V X in the Hermitian basis, shape (..., dim, dim)."""
    basis = linear.linear_basis(space, point)
    image = widen(point).unsqueeze(-3) @ widen(basis)
    return narrow(image + image.mT).flatten(-3) @ basis.flatten(1).mT


@geometry.gram.register(*_bures)
def _(space, base_point):
    inverse = torch.linalg.inv(_lyapunov(space, base_point))
    return geometry.outer_scale(space) / 2 * symmetrize(inverse)


@geometry.log_volume_element.register(*_bures)
def _(space, point):
    constant = 0.5 * space.dim * math.log(geometry.outer_scale(space) / 2)
    return constant - log_determinant(_lyapunov(space, point)) / 2


@geometry.sharp.register(*_bures)
def _(space, covector, base_point):
    product = symmetrize(widen(base_point) @ widen(covector))
    return 4 * narrow(product) / geometry.outer_scale(space)
