"""Laws of tangent spaces, metric and calculus, each from a case to its worst error."""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.calculus import divergence, gradient, laplacian
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.geometry.forward_mode import jvp
from geoflow_plugin.testing.case import first_order_error
from geoflow_plugin.testing.figures import size, worst


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


def _dtype_is_kept(case):
    space, x = case.space, case.points[:2]
    vector = 1e-3 * case.unit * case.tangent(x)
    found = [
        geometry.projection(space, x),
        geometry.to_tangent(space, vector, x),
        geometry.tangent_basis(space, x),
        geometry.retraction(space, vector, x),
        geometry.inner_product(space, vector, vector, x),
        geometry.log_volume_element(space, x),
    ]
    for function in (geometry.exp, geometry.log, geometry.dist):
        try:
            found.append(function(space, x if function is not geometry.exp else vector, x))
        except UnsupportedError:
            continue
    kept = all(value.dtype == x.dtype and value.device == x.device for value in found)
    return 0.0 if kept else math.inf


def _retraction_follows_tangents(case):
    return first_order_error(geometry.retraction, case)


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


def _require_smooth_fields(space):
    if geometry.interpolation(space) is not None:
        raise UnsupportedError("space: divergences are those of nearby fields here.")


def _divergence_obeys_the_product_rule(case):
    _require_smooth_fields(case.space)
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
    _require_smooth_fields(space)
    ours = laplacian(space, lambda y: case.potential(y).square(), x)
    slope = gradient(space, case.potential, x)
    expected = case.potential_at(x) * laplacian(space, case.potential, x)
    expected = 2 * (expected + geometry.inner_product(space, slope, slope, x))
    return worst((ours - expected) / (1 + expected.abs()))


LAWS = [
    _points_belong,
    _basis_is_orthonormal,
    _projector_is_orthogonal,
    _dtype_is_kept,
    _retraction_follows_tangents,
    _metric_is_an_inner_product,
    _volume_element_is_that_of_the_metric,
    _gradient_is_dual_to_the_derivative,
    _divergence_obeys_the_product_rule,
    _laplacian_is_the_divergence_of_the_gradient,
    _laplacian_obeys_the_product_rule,
]
