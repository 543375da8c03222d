"""Models of hyperbolic space: ball, half-space, hemisphere, and normal laws on the line.

The first three are conformal to their array; everything else is the hyperboloid's.
"""

import math

import torch
from geomstats.geometry.open_hemisphere import OpenHemisphere, OpenHemispherePullbackMetric
from geomstats.geometry.poincare_ball import PoincareBall, PoincareBallMetric
from geomstats.geometry.poincare_half_space import PoincareHalfSpace, PoincareHalfSpaceMetric
from geomstats.information_geometry.normal import (
    UnivariateNormalDistributions,
    UnivariateNormalMetric,
)

from geoflow_plugin import geometry
from geoflow_plugin.spaces.euclidean import register_open_set
from geoflow_plugin.spaces.hyperbolic import hyperboloid, to_half_space
from geoflow_plugin.spaces.sphere import complement_basis


def _dot(a, b):
    return (a * b).sum(-1, keepdim=True)


def _register_conformal(cls, metric_class, log_factor, to_model, from_model):
    """The metric exp(2 log_factor) times Frobenius, and its isometry to the hyperboloid."""

    @geometry.model.register(cls, metric_class)
    def _(space):
        return geometry.Model(hyperboloid(space.dim), to_model, from_model)

    @geometry.inner_product.register(cls, metric_class)
    def _(space, tangent_vec_a, tangent_vec_b, base_point):
        factor = geometry.outer_scale(space) * (2 * log_factor(base_point)).exp()
        return factor * (tangent_vec_a * tangent_vec_b).sum(-1)

    @geometry.sharp.register(cls, metric_class)
    def _(space, covector, base_point):
        factor = geometry.outer_scale(space) * (2 * log_factor(base_point)).exp()
        return covector / factor.unsqueeze(-1)

    @geometry.log_volume_element.register(cls, metric_class)
    def _(space, point):
        scale = 0.5 * math.log(geometry.outer_scale(space))
        return space.dim * (log_factor(point) + scale)

    geometry.is_compact.register(cls)(lambda space: False)


def beyond(gap):
    """Residual of an open set: zero where the gap to its boundary is positive, else > 1."""
    return torch.where(gap > 0, 0.0, 1 - gap)


def _least(point):
    """How near to a boundary at zero projections go."""
    return torch.finfo(point.dtype).eps ** 2


# The ball -------------------------------------------------------------------------------


def ball_gap(point):
    """What a squared norm lacks of one."""
    return 1 - point.square().sum(-1)


def ball_to_hyperboloid(point):
    """Stereographic projection from the ball of points (..., dim)."""
    square = _dot(point, point)
    return torch.cat([1 + square, 2 * point], dim=-1) / (1 - square)


def into_ball(point):
    """The same point, or one of its ray that rounding leaves inside."""
    limit = 1 - 8 * torch.finfo(point.dtype).eps
    square = _dot(point, point)
    outside = square > limit**2
    return torch.where(outside, limit * torch.where(outside, square, 1.0).rsqrt(), 1.0) * point


def hyperboloid_to_ball(point):
    """Its inverse, of points (..., dim + 1)."""
    return into_ball(point[..., 1:] / (1 + point[..., :1]))


register_open_set(PoincareBall)
_register_conformal(
    PoincareBall,
    PoincareBallMetric,
    lambda point: math.log(2) - ball_gap(point).log(),
    ball_to_hyperboloid,
    hyperboloid_to_ball,
)


@geometry.projection.register(PoincareBall)
def _(space, point):
    return into_ball(point)


@geometry.constraint_residual.register(PoincareBall)
def _(space, point):
    return beyond(ball_gap(point))


# The half-space -------------------------------------------------------------------------


def _half_space_to_hyperboloid(point):
    last = point[..., -1:]
    square = _dot(point, point)
    return torch.cat([(1 + square) / 2, point[..., :-1], (square - 1) / 2], dim=-1) / last


register_open_set(PoincareHalfSpace)
_register_conformal(
    PoincareHalfSpace,
    PoincareHalfSpaceMetric,
    lambda point: -point[..., -1].log(),
    _half_space_to_hyperboloid,
    to_half_space,
)


@geometry.projection.register(PoincareHalfSpace)
def _(space, point):
    last = point[..., -1:].clamp_min(_least(point))
    return torch.cat([point[..., :-1], last], dim=-1)


@geometry.constraint_residual.register(PoincareHalfSpace)
def _(space, point):
    return beyond(point[..., -1])


# The open hemisphere --------------------------------------------------------------------


def _invert_height(point):
    """Open hemisphere to hyperboloid and back: the central projection, upside down."""
    first = point[..., :1]
    return torch.cat([torch.ones_like(first), point[..., 1:]], dim=-1) / first


_register_conformal(
    OpenHemisphere,
    OpenHemispherePullbackMetric,
    lambda point: -point[..., 0].log(),
    _invert_height,
    _invert_height,
)


@geometry.projection.register(OpenHemisphere)
def _(space, point):
    first = point[..., :1].clamp_min(_least(point))
    raised = torch.cat([first, point[..., 1:]], dim=-1)
    return raised / raised.norm(dim=-1, keepdim=True)


@geometry.to_tangent.register(OpenHemisphere)
def _(space, vector, base_point):
    return vector - _dot(base_point, vector) * base_point


@geometry.tangent_basis.register(OpenHemisphere)
def _(space, base_point):
    return complement_basis(base_point)


@geometry.constraint_residual.register(OpenHemisphere)
def _(space, point):
    return (point.norm(dim=-1) - 1).abs() + beyond(point[..., 0])


# Normal laws on the line: (mean, sqrt(2) deviation) in the half-plane, twice its metric ---


@geometry.model.register(UnivariateNormalDistributions, UnivariateNormalMetric)
def _(space):
    def to_model(point):
        return _half_space_to_hyperboloid(_stretch_deviation(point, math.sqrt(2)))

    def from_model(image):
        return _stretch_deviation(to_half_space(image), math.sqrt(0.5))

    return geometry.Model(hyperboloid(2, 2.0), to_model, from_model)


def _stretch_deviation(point, factor):
    mean, deviation = point.unbind(-1)
    return torch.stack([mean, factor * deviation], dim=-1)


@geometry.log_volume_element.register(UnivariateNormalDistributions, UnivariateNormalMetric)
def _(space, point):
    return 0.5 * math.log(2) - 2 * point[..., 1].log() + math.log(geometry.outer_scale(space))
