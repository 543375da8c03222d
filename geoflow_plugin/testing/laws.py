"""The laws of geometry, each a function from a case to its worst error."""

import math

import torch
from torch.func import vmap

from geoflow_plugin import geometry
from geoflow_plugin.calculus import divergence, gradient, laplacian, value_and_divergence
from geoflow_plugin.diagnostics import importance_sample
from geoflow_plugin.distributions.base import score
from geoflow_plugin.distributions.checks import as_device
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.geometry.forward_mode import jvp
from geoflow_plugin.testing.figures import size, standard_errors, worst


class Case:
    """A space with points, tangent vectors and functions to try on them."""

    def __init__(self, space, n, seed, dtype, device):
        self.space = space
        device = as_device(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        compact = geometry.is_compact(space)
        law = (
            Uniform(space, dtype=dtype)
            if compact
            else WrappedNormal(space, scale=0.5, dtype=dtype)
        )
        self.law = law.to(device)
        self.points, self.others = self.law.sample(2 * n, generator=self.generator).split(n)
        size = geometry.embed(space, self.points[:1]).numel()
        weight = torch.randn(4, size, generator=self.generator, device=device, dtype=dtype)
        self.weight = weight / weight.norm(dim=1, keepdim=True)
        # in one dimension, nothing else tells the four waves apart
        self.phase = torch.arange(4).to(weight)

    def potential(self, x):
        """A bounded smooth function of points as ``geometry.embed`` shows them."""
        return (x.flatten(1) @ self.weight.mT + self.phase).sin() @ self.weight.new_tensor(
            [1, -2, 1, 2]
        )

    def potential_at(self, x):
        """The same as a function of arrays."""
        return self.potential(geometry.embed(self.space, x))

    def field(self, x):
        """A bounded smooth field of ambient vectors, likewise."""
        return ((x.flatten(1) @ self.weight.mT + self.phase).cos() @ self.weight).reshape(
            x.shape
        )

    def tangent(self, x):
        """The tangent vectors of ``field``."""
        return value_and_divergence(self.space, self.field, x)[0]

    @property
    def finite_atol(self):
        """What rounding may leave, relative to sizes of order one."""
        return 1e-6 if self.points.dtype == torch.float64 else 5e-3


def _points_belong(case):
    residual = geometry.constraint_residual(case.space, case.points)
    kept = geometry.projection(case.space, case.points) - case.points
    return worst(residual / size(case.points)) + worst(
        kept.flatten(1).norm(dim=1) / size(case.points)
    )


def _basis_is_orthonormal(case):
    basis = geometry.tangent_basis(case.space, case.points).flatten(2)
    if basis.shape[1] != geometry.dim(case.space):
        return math.inf
    eye = torch.eye(geometry.dim(case.space)).to(basis)
    return worst(basis @ basis.mT - eye)


def _projector_is_orthogonal(case):
    basis = geometry.tangent_basis(case.space, case.points).flatten(2)
    vector = torch.randn(
        case.points.shape, generator=case.generator, device=case.points.device
    ).to(case.points)
    ours = geometry.to_tangent(case.space, vector, case.points).flatten(1)
    expected = ((basis @ vector.flatten(1).unsqueeze(-1)) * basis).sum(1)
    return worst(ours - expected)


def _retraction_follows_tangents(case):
    step = 1e-3 if case.points.dtype == torch.float64 else 1e-2
    vector = case.tangent(case.points)
    moved = geometry.retraction(case.space, step * vector, case.points)
    error = (moved - case.points - step * vector).flatten(1).norm(dim=1)
    length = vector.flatten(1).norm(dim=1).clamp_min(1e-3)
    curvature = error / (step * length).square()
    # second order: by what a curvature of 100 would bend it, rounding allowed for
    return worst((curvature - 100).clamp_min(0) * (error > case.finite_atol * step).to(error))


def _metric_is_an_inner_product(case):
    gram = geometry.gram(case.space, case.points)
    values = torch.linalg.eigvalsh(gram)
    if not bool((values > 0).all()):
        return math.inf
    return worst((gram - gram.mT).flatten(1).amax(1) / values[:, -1])


def _volume_element_is_that_of_the_metric(case):
    gram = geometry.gram(case.space, case.points)
    ours = geometry.log_volume_element(case.space, case.points)
    return worst(ours - 0.5 * torch.linalg.slogdet(gram)[1])


def _gradient_is_dual_to_the_derivative(case):
    x, vector = case.points, case.tangent(case.points)
    slope = jvp(case.potential_at, (x,), (vector,))[1]
    product = geometry.inner_product(
        case.space, gradient(case.space, case.potential, x), vector, x
    )
    return worst((product - slope) / (1 + slope.abs()))


def _divergence_obeys_the_product_rule(case):
    x = case.points
    value = case.potential_at(x)
    product = divergence(
        case.space,
        lambda y: case.field(y) * case.potential(y).reshape(-1, *[1] * (y.ndim - 1)),
        x,
    )
    slope = jvp(case.potential_at, (x,), (case.tangent(x),))[1]
    expected = value * divergence(case.space, case.field, x) + slope
    return worst((product - expected) / (1 + expected.abs()))


def _laplacian_is_the_divergence_of_the_gradient(case):
    x = case.points[:16]
    if geometry.embed(case.space, x) is not x:  # fields and gradients differ in shape
        raise UnsupportedError("space: a gradient of arrays is no field here.")
    ours = laplacian(case.space, case.potential, x)
    expected = divergence(case.space, lambda y: gradient(case.space, case.potential, y), x)
    return worst((ours - expected) / (1 + expected.abs()))


def _laplacian_obeys_the_product_rule(case):
    space, x = case.space, case.points[:16]
    ours = laplacian(space, lambda y: case.potential(y).square(), x)
    slope = gradient(space, case.potential, x)
    expected = case.potential_at(x) * laplacian(space, case.potential, x)
    expected = 2 * (expected + geometry.inner_product(space, slope, slope, x))
    return worst((ours - expected) / (1 + expected.abs()))


def _near(case):
    """Points, tangent vectors of length 0.1 or less, and where they lead.

    Geodesics of a metric that is not complete may leave the space; nine in ten must not.
    """
    vector = case.tangent(case.points)
    length = geometry.inner_product(case.space, vector, vector, case.points).sqrt()
    vector = vector * (0.1 / length.clamp_min(0.1)).reshape(-1, *[1] * (vector.ndim - 1))
    near = geometry.exp(case.space, vector, case.points)
    stays = geometry.belongs(case.space, near)
    if float(stays.double().mean()) < 0.9:
        stays = torch.ones_like(stays)
    return case.points[stays], vector[stays], near[stays]


def _exponential_stays_on_the_space(case):
    _, _, near = _near(case)
    return worst(geometry.constraint_residual(case.space, near) / size(near))


def _logarithm_undoes_the_exponential(case):
    x, vector, near = _near(case)
    back = geometry.log(case.space, near, x)
    return worst((back - vector).flatten(1).norm(dim=1) / size(x))


def _distance_is_the_length_of_the_logarithm(case):
    x, vector, near = _near(case)
    length = geometry.inner_product(case.space, vector, vector, x).sqrt()
    forth = geometry.dist(case.space, x, near)
    back = geometry.dist(case.space, near, x)
    return max(worst(forth - length), worst(forth - back))


def _chart_is_undone(case):
    coordinates, log_det = geometry.chart(case.space, case.points)
    back, inverse_log_det = geometry.chart_inverse(case.space, coordinates)
    error = (back - case.points).flatten(1).norm(dim=1) / size(case.points)
    return max(worst(error), worst(log_det + inverse_log_det))


def _chart_has_the_volume_of_the_metric(case):
    coordinates, _ = geometry.chart(case.space, case.points)
    x, log_det = geometry.chart_inverse(case.space, coordinates)

    def along(direction):
        return jvp(
            lambda z: geometry.chart_inverse(case.space, z)[0],
            (coordinates,),
            (direction.expand_as(coordinates),),
        )[1]

    eye = torch.eye(geometry.dim(case.space)).to(coordinates)
    frame = vmap(along, out_dims=1)(eye).flatten(2)  # (n, dim, size)
    basis = geometry.tangent_basis(case.space, x).flatten(2)
    flat = torch.linalg.slogdet(frame @ basis.mT)[1]
    return worst(flat + geometry.log_volume_element(case.space, x) - log_det)


def _derivatives_are_finite_at_the_origin(case):
    space = case.space
    x = geometry.origin(space).to(case.points).expand_as(case.points[:2])
    functions = [
        lambda y: geometry.log_volume_element(space, y),
        lambda y: geometry.dist(space, y, x),
        lambda y: geometry.log(space, y, x).flatten(1).sum(1),
    ]
    if not geometry.is_compact(space):
        functions.append(case.law._log_prob)
    for function in functions:
        try:
            slope = score(function, x)
        except UnsupportedError:
            continue
        if not bool(slope.isfinite().all()):
            return math.inf
    return 0.0


EXACT = [
    _points_belong,
    _basis_is_orthonormal,
    _projector_is_orthogonal,
    _retraction_follows_tangents,
    _metric_is_an_inner_product,
    _volume_element_is_that_of_the_metric,
    _gradient_is_dual_to_the_derivative,
    _divergence_obeys_the_product_rule,
    _laplacian_is_the_divergence_of_the_gradient,
    _laplacian_obeys_the_product_rule,
    _exponential_stays_on_the_space,
    _logarithm_undoes_the_exponential,
    _distance_is_the_length_of_the_logarithm,
    _chart_is_undone,
    _chart_has_the_volume_of_the_metric,
    _derivatives_are_finite_at_the_origin,
]


def _stokes(case, n):
    """Mean of the Stein operator of the law, in standard errors."""
    x = case.law.sample(n, generator=case.generator)
    tangent_vec, value = value_and_divergence(case.space, case.field, x)
    value = value + (score(case.law._log_prob, x) * tangent_vec).flatten(1).sum(1)
    return standard_errors(value.double(), 0.0)


def _volume(case, n):
    """Integral of a wrapped normal, by means of which it knows nothing."""
    if geometry.is_compact(case.space):
        normal = WrappedNormal(case.space, case.points[0], 0.5).to(case.points.device)
        x = case.law.sample(n, generator=case.generator)
        log_weight = normal.log_prob(x) - case.law.log_prob(x)
        return standard_errors(log_weight.double().exp(), 1.0)
    try:
        z, _ = geometry.chart(case.space, case.law.sample(n, generator=case.generator))
    except UnsupportedError:
        weight, _ = importance_sample(case.law, n, case.generator)
        return standard_errors(weight, 1.0)
    else:
        # a wide normal law of the coordinates, and the volume that the chart says
        mean, wide = z.mean(0), 1.5 * z.std(0)
        normal = torch.randn(z.shape, generator=case.generator, device=z.device, dtype=z.dtype)
        x, log_det = geometry.chart_inverse(case.space, mean + wide * normal)
        log_proposal = -0.5 * (normal.square() + math.log(2 * math.pi)) - wide.log()
        log_weight = case.law.log_prob(x) + log_det - log_proposal.sum(1)
    return standard_errors(log_weight.double().exp(), 1.0)


CHANCE = {"Stokes' theorem": _stokes, "the volume": _volume}
