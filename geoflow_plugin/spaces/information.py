"""Parametric families of distributions with the Fisher-Rao metric.

Parameters live in open intervals and orthants (simplices are in simplex.py), where
geodesics may leave through the boundary in finite time; normal laws, kernels and charts
are therefore those of coordinates (logarithms, log-odds) that fill a Euclidean space.
Exponential laws and diagonal normal laws are complete, and isometric to a line and to
half-planes; those of Dirichlet, beta and gamma laws are complete and negatively curved.
"""

import math
from typing import Any

import torch
from geomstats.geometry.nfold_manifold import NFoldManifold, NFoldMetric
from geomstats.geometry.poincare_half_space import PoincareHalfSpace
from geomstats.information_geometry.beta import BetaDistributions
from geomstats.information_geometry.binomial import BinomialDistributions, BinomialMetric
from geomstats.information_geometry.dirichlet import DirichletDistributions, DirichletMetric
from geomstats.information_geometry.exponential import (
    ExponentialDistributions,
    ExponentialMetric,
)
from geomstats.information_geometry.gamma import GammaDistributions, GammaMetric
from geomstats.information_geometry.geometric import GeometricDistributions, GeometricMetric
from geomstats.information_geometry.normal import (
    DiagonalNormalDistributions,
    DiagonalNormalMetric,
)
from geomstats.information_geometry.poisson import PoissonDistributions, PoissonMetric

from geoflow_plugin import geometry
from geoflow_plugin.spaces.euclidean import euclidean
from geoflow_plugin.spaces.geodesics import register_geodesics

# Open sets of parameters ----------------------------------------------------------------


def outside_orthant(excess):
    """Residual from slacks that have to be positive: over one as soon as one is not."""
    return torch.where(excess > 0, 0, 1 - excess).amax(-1)


def into_orthant(parameter):
    """Positive numbers as they are, others moved just inside."""
    return torch.where(parameter > 0, parameter, torch.finfo(parameter.dtype).eps)


def _inside_interval(parameter):
    below = 1 - torch.finfo(parameter.dtype).eps
    return torch.where(parameter < 1, into_orthant(parameter), below)


def _register_flat(cls, projection, residual):
    """Flat geometry of an open set of R^dim."""
    geometry.projection.register(cls)(projection)
    geometry.constraint_residual.register(cls)(residual)
    geometry.to_tangent.register(cls)(lambda space, vector, base_point: vector)

    @geometry.tangent_basis.register(cls)
    def _(space, base_point):
        return geometry.tangent_basis(euclidean(space.dim), base_point)


def _register_coordinates(cls, to_model, from_model):
    """Coordinates of a family that fill R^dim, whatever its metric."""

    @geometry.model.register(cls)
    def _(space):
        return geometry.Model(euclidean(space.dim), to_model, from_model, isometric=False)


for _cls in (
    BetaDistributions,
    DirichletDistributions,
    GammaDistributions,
    ExponentialDistributions,
    PoissonDistributions,
):
    _register_flat(
        _cls,
        lambda space, point: into_orthant(point),
        lambda space, point: outside_orthant(point),
    )
    _register_coordinates(_cls, torch.log, torch.exp)

for _cls in (GeometricDistributions, BinomialDistributions):
    _register_flat(
        _cls,
        lambda space, point: _inside_interval(point),
        lambda space, point: outside_orthant(torch.cat([point, 1 - point], dim=-1)),
    )
    _register_coordinates(_cls, torch.logit, lambda z: _inside_interval(z.sigmoid()))


# One parameter ------------------------------------------------------------------------


def _register_information(cls, metric_class, information):
    """The metric ``information(space, parameter)`` of a family with one parameter."""

    @geometry.inner_product.register(cls, metric_class)
    def _(space, tangent_vec_a, tangent_vec_b, base_point):
        value = information(space, base_point) * tangent_vec_a * tangent_vec_b
        return geometry.outer_scale(space) * value.squeeze(-1)

    @geometry.log_volume_element.register(cls, metric_class)
    def _(space, point):
        scaled = geometry.outer_scale(space) * information(space, point)
        return 0.5 * scaled.log().squeeze(-1)


_register_information(PoissonDistributions, PoissonMetric, lambda space, x: 1 / x)
_register_information(
    GeometricDistributions, GeometricMetric, lambda space, p: 1 / (p.square() * (1 - p))
)
_register_information(
    BinomialDistributions, BinomialMetric, lambda space, p: space.n_draws / (p * (1 - p))
)


def _register_arc(cls, metric_class, length, point_at, information):
    """Geodesics of a family with one parameter, from its arc length.

    ``information`` is the one whose square root is the derivative of ``length``; scales
    that are constant do not change geodesics. A step across an end of the interval
    comes out beyond that end, where ``belongs`` says so.
    """

    @geometry.exp.register(cls, metric_class)
    def _(space, tangent_vec, base_point):
        step = information(base_point).sqrt() * tangent_vec
        return point_at(length(base_point) + step)

    @geometry.log.register(cls, metric_class)
    def _(space, point, base_point):
        return (length(point) - length(base_point)) / information(base_point).sqrt()


def _signed_square(x):
    return x * x.abs()


def _probability_at(angle):
    """The squared sine, continued as a monotone function past 0 and pi / 2."""
    past = torch.where(angle > math.pi / 2, 1 + angle.cos().square(), angle.sin().square())
    return torch.where(angle < 0, -past, past)


_register_arc(
    PoissonDistributions,
    PoissonMetric,
    length=lambda x: 2 * x.sqrt(),
    point_at=lambda s: _signed_square(s / 2),
    information=lambda x: 1 / x,
)
_register_arc(
    GeometricDistributions,
    GeometricMetric,
    # minus the distance to the certain law, p = 1
    length=lambda p: -2 * torch.atanh((1 - p).sqrt()),
    point_at=lambda s: 1 + _signed_square((s / 2).tanh()),
    information=lambda p: 1 / (p.square() * (1 - p)),
)
_register_arc(
    BinomialDistributions,
    BinomialMetric,
    length=lambda p: torch.atan2(p.sqrt(), (1 - p).sqrt()),
    point_at=_probability_at,
    information=lambda p: 1 / (4 * p * (1 - p)),
)


@geometry.model.register(ExponentialDistributions, ExponentialMetric)
def _(space):
    return geometry.Model(euclidean(1), torch.log, torch.exp)


# Dirichlet, beta and gamma laws ----------------------------------------------------------


def _trigamma(x):
    return torch.polygamma(1, x)


@geometry.inner_product.register(DirichletDistributions, DirichletMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    own = (_trigamma(base_point) * tangent_vec_a * tangent_vec_b).sum(-1)
    shared = _trigamma(base_point.sum(-1)) * tangent_vec_a.sum(-1) * tangent_vec_b.sum(-1)
    return geometry.outer_scale(space) * (own - shared)


@geometry.log_volume_element.register(DirichletDistributions, DirichletMetric)
def _(space, point):
    # the metric is diagonal but for a term of rank one
    own, shared = _trigamma(point), _trigamma(point.sum(-1))
    log_det = own.log().sum(-1) + torch.log1p(-shared * (1 / own).sum(-1))
    return 0.5 * (log_det + space.dim * math.log(geometry.outer_scale(space)))


def _shape_information(x):
    """Trigamma(x) - 1 / x, by its asymptotic series where the difference cancels."""
    near, far = x.clamp(max=16.0), x.clamp(min=16.0)
    s = 1 / far.square()
    series = s * (0.5 + (1 / 6 - s * (1 / 30 - s * (1 / 42 - s / 30))) / far)
    return torch.where(x < 16.0, _trigamma(near) - 1 / near, series)


def _gamma_information(point):
    """The two diagonal entries of the metric of gamma laws of a shape and a mean."""
    shape, mean = point.unbind(-1)
    return torch.stack([_shape_information(shape), shape / mean.square()], dim=-1)


@geometry.inner_product.register(GammaDistributions, GammaMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    value = _gamma_information(base_point) * tangent_vec_a * tangent_vec_b
    return geometry.outer_scale(space) * value.sum(-1)


@geometry.log_volume_element.register(GammaDistributions, GammaMetric)
def _(space, point):
    log_det = _gamma_information(point).log().sum(-1)
    return 0.5 * log_det + math.log(geometry.outer_scale(space))


# Hadamard manifolds: one geodesic between any two laws
register_geodesics(DirichletDistributions, DirichletMetric)
register_geodesics(GammaDistributions, GammaMetric)


# Normal laws with a diagonal covariance ---------------------------------------------------
#
# A point holds means and variances. geomstats' inner product takes tangent vectors as
# means and *standard deviations*, at odds with its own points; its distance is the one
# of Fisher and Rao, and so is this metric.

_HALF_PLANES: dict[int, Any] = {}


def _half_planes(n):
    if n not in _HALF_PLANES:
        space = NFoldManifold(PoincareHalfSpace(2), n, equip=False)
        _HALF_PLANES[n] = space.equip_with_metric(NFoldMetric, scales=[2.0] * n)
    return _HALF_PLANES[n]


def _diagonal_projection(space, point):
    mean, variance = point.chunk(2, dim=-1)
    return torch.cat([mean, into_orthant(variance)], dim=-1)


def _diagonal_residual(space, point):
    return outside_orthant(point.chunk(2, dim=-1)[1])


def _log_variances(point):
    mean, variance = point.chunk(2, dim=-1)
    return torch.cat([mean, variance.log()], dim=-1)


def _exp_variances(coordinates):
    mean, log_variance = coordinates.chunk(2, dim=-1)
    return torch.cat([mean, log_variance.exp()], dim=-1)


_register_flat(DiagonalNormalDistributions, _diagonal_projection, _diagonal_residual)
_register_coordinates(DiagonalNormalDistributions, _log_variances, _exp_variances)


@geometry.model.register(DiagonalNormalDistributions, DiagonalNormalMetric)
def _(space):
    def to_model(x):
        mean, variance = x.chunk(2, dim=-1)
        return torch.stack([mean / math.sqrt(2), variance.sqrt()], dim=-1)

    def from_model(z):
        return torch.cat([math.sqrt(2) * z[..., 0], z[..., 1].square()], dim=-1)

    return geometry.Model(_half_planes(space.sample_dim), to_model, from_model)


@geometry.inner_product.register(DiagonalNormalDistributions, DiagonalNormalMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    variance = base_point.chunk(2, dim=-1)[1]
    weight = torch.cat([1 / variance, 0.5 / variance.square()], dim=-1)
    value = (weight * tangent_vec_a * tangent_vec_b).sum(-1)
    return geometry.outer_scale(space) * value


@geometry.log_volume_element.register(DiagonalNormalDistributions, DiagonalNormalMetric)
def _(space, point):
    log_variance = point.chunk(2, dim=-1)[1].log().sum(-1)
    constant = math.log(geometry.outer_scale(space)) - 0.5 * math.log(2)
    return space.sample_dim * constant - 1.5 * log_variance
