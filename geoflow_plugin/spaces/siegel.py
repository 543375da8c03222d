"""The Siegel disk: complex matrices of spectral norm less than one, as arrays (n, n, 2).

A symmetric space of nonpositive curvature, by itself or with the symmetric matrices alone,
for which geomstats has the wrong dimension and tangent spaces. Seen from a point C, that
is, after the isometry that takes C to zero, a point is U tanh(s) V* where U s V* is the
tangent vector that leads there.
"""

import math

import torch
from geomstats.geometry.siegel import Siegel, SiegelMetric

from geoflow_plugin import geometry
from geoflow_plugin.spaces import linear
from geoflow_plugin.spaces.complex import exp_log_volume
from geoflow_plugin.spaces.hpd import register_normal
from geoflow_plugin.spaces.matrix_functions import (
    log_determinant,
    log_sinh_quotient,
    matrix_sqrt,
    squared_arsinh_quotient,
    symmetrize,
)
from geoflow_plugin.spaces.real_view import RealView, narrow, register_open_view, widen

_HALVINGS = 5


class RealSiegel(RealView, of=Siegel):
    """The Siegel disk as real arrays (n, n, 2)."""

    def _real_dim(self, space):
        n = space.n
        return n * (n + 1) if space.symmetric else 2 * n * n

    def random_point(self, n_samples=1, bound=1.0):
        """Sample points; geomstats forgets to make them symmetric."""
        return self.projection(super().random_point(n_samples, bound))


def _is_symmetric(space):
    return space.complex_space.symmetric


# The flat geometry ------------------------------------------------------------------------


@linear.linear_basis.register(RealSiegel)
def _(space, like):
    if not _is_symmetric(space):
        return linear.entry_basis(space, like)
    basis = linear.symmetric_basis(space.shape[0], like)
    zeros = torch.zeros_like(basis)
    pairs = [(basis, zeros), (zeros, basis)]
    return torch.cat([torch.stack(pair, dim=-1) for pair in pairs])


register_open_view(RealSiegel)
linear.register_linear_geometry(RealSiegel)


def _spectral_norm(point):
    return torch.linalg.matrix_norm(widen(point.detach()), ord=2)


@geometry.projection.register(RealSiegel)
def _(space, point):
    if _is_symmetric(space):
        point = (point + point.transpose(-3, -2)) / 2
    limit = 1 - 16 * torch.finfo(point.dtype).eps
    return point / (_spectral_norm(point) / limit).clamp_min(1.0)[..., None, None, None]


@geometry.constraint_residual.register(RealSiegel)
def _(space, point):
    gap = 1 - _spectral_norm(point)
    asymmetry = linear.residual(space, point)
    return asymmetry + torch.where(gap > 0, 0.0, 1 - gap)


@geometry.origin.register(RealSiegel)
def _(space):
    return torch.zeros(space.shape, dtype=torch.float64)


# The metric -------------------------------------------------------------------------------

_siegel = (RealSiegel, SiegelMetric)


def _gaps(matrix):
    """I - Z Z* and I - Z* Z."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return eye - matrix @ matrix.mT, eye - matrix.mT @ matrix


def _roots(matrix):
    return [torch.linalg.cholesky(gap) for gap in _gaps(matrix)]


def _divide(left, matrix, right):
    """L^-1 Z R^-*: tangent vectors at a point, seen from there."""
    half = torch.linalg.solve_triangular(left, matrix, upper=False)
    return torch.linalg.solve_triangular(right.mT, half, upper=True, left=False)


@geometry.inner_product.register(*_siegel)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    left, right = _roots(widen(base_point))
    a, b = (_divide(left, widen(t), right) for t in (tangent_vec_a, tangent_vec_b))
    return geometry.outer_scale(space) / 2 * (a * b).sum((-2, -1))


@geometry.log_volume_element.register(*_siegel)
def _(space, point):
    n = space.shape[0]
    power = (n + 1) / 2 if _is_symmetric(space) else n  # the determinant is squared
    constant = 0.5 * space.dim * math.log(geometry.outer_scale(space))
    return constant - power * log_determinant(_gaps(widen(point))[0])


@geometry.sharp.register(*_siegel)
def _(space, covector, base_point):
    left, right = _gaps(widen(base_point))
    return narrow(left @ widen(covector) @ right) / geometry.outer_scale(space)


# Exponential, logarithm and normal laws ---------------------------------------------------


def _seen_from(point, base_point):
    """Image (..., 2n, 2n) of points under the isometry that takes base points to zero."""
    point, base_point = widen(point), widen(base_point)
    left, right = _roots(base_point)
    eye = torch.eye(left.shape[-1], dtype=left.dtype, device=left.device)
    moved = (point - base_point) @ torch.linalg.inv(eye - base_point.mT @ point)
    return torch.linalg.inv(left) @ moved @ right  # pairs are many, roots few


def _tanh(matrix):
    """U tanh(s) V* of U s V*: a small part of it, doubled."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    small = matrix / 2**_HALVINGS
    square = small.mT @ small
    # sinh(s) / s over cosh(s), by their power series
    sinh, cosh = torch.zeros_like(square), torch.zeros_like(square)
    for k in range(9, -1, -1):
        sinh = sinh @ square / ((2 * k + 2) * (2 * k + 3)) + eye
        cosh = cosh @ square / ((2 * k + 1) * (2 * k + 2)) + eye
    result = small @ sinh @ torch.linalg.inv(cosh)
    for _ in range(_HALVINGS):
        result = 2 * result @ torch.linalg.inv(eye + result.mT @ result)
    return result


def _artanh(matrix):
    """U artanh(s) V* of U s V*: tanh is halved until it is small."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    gap = _gaps(matrix)[1]
    for _ in range(_HALVINGS):
        root = matrix_sqrt(gap)
        inverse = torch.linalg.inv(eye + root)
        matrix, gap = matrix @ inverse, 2 * symmetrize(root @ inverse)
    square, series = matrix.mT @ matrix, torch.zeros_like(matrix)
    for k in range(21, 0, -2):
        series = series @ square + eye / k
    return 2**_HALVINGS * matrix @ series


@geometry.exp.register(*_siegel)
def _(space, tangent_vec, base_point):
    base_point = widen(base_point)
    left, right = _roots(base_point)
    seen = _tanh(_divide(left, widen(tangent_vec), right))
    moved = torch.linalg.solve_triangular(left.mT, seen @ right.mT, upper=True)
    eye = torch.eye(left.shape[-1], dtype=left.dtype, device=left.device)
    point = (base_point + moved) @ torch.linalg.inv(eye + base_point.mT @ moved)
    return geometry.projection(space, narrow(point))


@geometry.log.register(*_siegel)
def _(space, point, base_point):
    left, right = _roots(widen(base_point))
    return narrow(left @ _artanh(_seen_from(point, base_point)) @ right.mT)


@geometry.random_tangent_normal.register(*_siegel)
def _(space, base_point, generator=None):
    shape = (*base_point.shape[:-3], space.dim)
    normal = geometry.random_normal(shape, base_point, generator)
    left, right = _roots(widen(base_point))
    normal = left @ widen(linear.combination(space, normal)) @ right.mT
    return narrow(normal) / math.sqrt(geometry.outer_scale(space))


def _separation(space, point, center):
    """Squared distance, and log volume change of the exponential, by singular values.

    Its Jacobian is a product over the roots s_i - s_j and s_i + s_j, each of them twice
    (once among symmetric matrices), and 2 s_i.
    """
    n, seen = space.shape[0], narrow(_seen_from(point, center))
    if n == 1:
        square = seen.square().sum((-3, -2, -1))
    else:
        seen = RealView.to_complex(seen)
        square = torch.linalg.eigvalsh(seen.mH @ seen).clamp_min(0.0)
    tiny = torch.finfo(square.dtype).eps
    squared_sine = square / (1 - square).clamp_min(tiny)
    squared = squared_sine * squared_arsinh_quotient(squared_sine)
    log_change = -squared_arsinh_quotient(4 * squared_sine * (1 + squared_sine)).log() / 2
    if n > 1:
        values = geometry.safe_sqrt(squared)
        i, j = torch.triu_indices(n, n, offset=1, device=seen.device)
        pairs = log_sinh_quotient(values[..., i] - values[..., j])
        pairs = pairs + log_sinh_quotient(values[..., i] + values[..., j])
        times = 1 if _is_symmetric(space) else 2
        squared, log_change = squared.sum(-1), log_change.sum(-1) + times * pairs.sum(-1)
    return geometry.outer_scale(space) * squared, log_change


def _smooth_separation(space, point, center):
    """The same, with derivatives at repeated singular values."""
    n = space.shape[0]
    if n == 1 or n > 3:  # where singular values are smooth, or cheaper
        return _separation(space, point, center)
    tangent = _artanh(_seen_from(point, center))
    squared = geometry.outer_scale(space) / 2 * tangent.square().sum((-2, -1))
    basis = _hermitian(widen(linear.linear_basis(space, tangent))) / 2
    return squared, exp_log_volume(2 * _hermitian(tangent), basis)


def _hermitian(matrix):
    """[[0, Z], [Z*, 0]]; twice that, exponentiated, embeds the disk in positive matrices."""
    zeros = torch.zeros_like(matrix)
    upper, lower = torch.cat([zeros, matrix], -1), torch.cat([matrix.mT, zeros], -1)
    return torch.cat([upper, lower], -2)


@geometry.dist.register(*_siegel)
def _(space, point_a, point_b):
    return geometry.safe_sqrt(_separation(space, point_b, point_a)[0])


register_normal(_siegel, _separation, _smooth_separation)
