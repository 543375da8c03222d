"""Products: ProductManifold of any factors and NFoldManifold, tori among them.

geomstats flattens a product of unlike factors into one vector and stacks like ones;
both are the concatenation of the flattened factors, which is all this file uses.
"""

import functools
import math

import torch
from geomstats.geometry.nfold_manifold import NFoldManifold, NFoldMetric
from geomstats.geometry.product_manifold import (
    ProductManifold,
    ProductRiemannianMetric,
)

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError

geometry.frobenius_scale.register(ProductRiemannianMetric)(lambda metric: 1.0)
geometry.frobenius_scale.register(NFoldMetric)(lambda metric: 1.0)


def register_product(function):
    """Register one implementation for both kinds of product."""

    def decorator(implementation):
        function.register(NFoldManifold)(implementation)
        function.register(ProductManifold)(implementation)
        return implementation

    return decorator


def bare_factors(space):
    """The factors of a product, with repetition."""
    if isinstance(space, ProductManifold):
        return list(space.factors)
    return [space.base_manifold] * space.n_copies


def factors_and_scales(space):
    """The factors, and the constant by which the product scales the metric of each."""
    factors = bare_factors(space)
    overall = geometry.metric_scale(space)
    given = getattr(geometry.bare_metric(space), "scales", None)  # of NFoldMetric alone
    scales = [1.0] * len(factors) if given is None else [float(s) for s in given]
    return factors, [overall * scale for scale in scales]


def split(space, array):
    """Factor parts (..., *factor.shape) of points or vectors (..., *space.shape)."""
    factors, _ = factors_and_scales(space)
    # a copy first: torch.compile cannot take views of dual tensors
    flat = array.clone().flatten(array.ndim - len(space.shape))
    parts = flat.split([math.prod(factor.shape) for factor in factors], dim=-1)
    return [
        part.reshape(*part.shape[:-1], *factor.shape)
        for part, factor in zip(parts, factors, strict=True)
    ]


def join(space, parts):
    """What ``split`` took apart."""
    factors, _ = factors_and_scales(space)
    flat = [
        part.flatten(part.ndim - len(factor.shape))
        for part, factor in zip(parts, factors, strict=True)
    ]
    joined = torch.cat(flat, dim=-1)
    return joined.reshape(*joined.shape[:-1], *space.shape)


def _map(function, space, *arrays):
    """Apply a function of points to every factor and join what it returns."""
    factors, _ = factors_and_scales(space)
    parts = zip(*(split(space, array) for array in arrays), strict=True)
    return join(space, [function(f, *p) for f, p in zip(factors, parts, strict=True)])


for _function in (
    geometry.projection,
    geometry.to_tangent,
    geometry.mean_curvature,
    geometry.exp,
    geometry.log,
    geometry.retraction,
):
    register_product(_function)(functools.partial(_map, _function))


def _batched(function, space, *arrays):
    """Apply a function of points to the copies of one factor, as so many points."""
    return function(space.base_manifold, *arrays)


for _function in (geometry.projection, geometry.to_tangent):
    _function.register(NFoldManifold)(functools.partial(_batched, _function))


@geometry.mean_curvature.register(NFoldManifold)
def _(space, point):
    rows = point.flatten(0, 1)
    return geometry.mean_curvature(space.base_manifold, rows).reshape(point.shape)


@geometry.tangent_basis.register(NFoldManifold)
def _(space, base_point):
    basis, copies = geometry.tangent_basis(space.base_manifold, base_point), space.n_copies
    n_axes = len(space.shape) - 1
    eye = torch.eye(copies, dtype=basis.dtype, device=basis.device)
    eye = eye.reshape(copies, 1, copies, *[1] * n_axes)
    blocks = basis.unsqueeze(-1 - n_axes) * eye
    return blocks.flatten(-3 - n_axes, -2 - n_axes)


@geometry.tangent_basis.register(ProductManifold)
def _(space, base_point):
    factors, _ = factors_and_scales(space)
    size, start, rows = math.prod(space.shape), 0, []
    for factor, part in zip(factors, split(space, base_point), strict=True):
        basis = geometry.tangent_basis(factor, part)
        basis = basis.flatten(basis.ndim - len(factor.shape))
        width = basis.shape[-1]
        pad = (start, size - start - width)
        rows.append(torch.nn.functional.pad(basis, pad))
        start += width
    joined = torch.cat(rows, dim=-2)
    return joined.reshape(*joined.shape[:-1], *space.shape)


@register_product(geometry.frobenius_weight)
def _(space, point):
    if geometry.constant_scale(space) is None:
        return None
    terms = by_factor(space, geometry.frobenius_weight, point)
    if any(weight is None for weight, _, _ in terms):
        return None
    weights = [scale * weight for weight, _, scale in terms]
    if all(isinstance(w, float) and w == weights[0] for w in weights):
        return weights[0]
    parts = split(space, point)
    return join(space, [w * torch.ones_like(p) for w, p in zip(weights, parts, strict=True)])


def by_factor(space, function, *arrays):
    """Values of ``function`` on each factor, with the scale of that factor's metric."""
    factors, scales = factors_and_scales(space)
    parts = zip(*(split(space, array) for array in arrays), strict=True)
    return [
        (function(factor, *part), factor, scale)
        for factor, part, scale in zip(factors, parts, scales, strict=True)
    ]


@register_product(geometry.origin)
def _(space):
    return join(space, [geometry.origin(factor) for factor in factors_and_scales(space)[0]])


@register_product(geometry.constraint_residual)
def _(space, point):
    terms = by_factor(space, geometry.constraint_residual, point)
    return torch.stack([value for value, _, _ in terms], dim=-1).amax(-1)


@register_product(geometry.log_volume_element)
def _(space, point):
    terms = by_factor(space, geometry.log_volume_element, point)
    return sum(v + 0.5 * geometry.dim(f) * math.log(scale) for v, f, scale in terms)


@register_product(geometry.inner_product)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    terms = by_factor(space, geometry.inner_product, tangent_vec_a, tangent_vec_b, base_point)
    return sum(scale * value for value, _, scale in terms)


@register_product(geometry.dist)
def _(space, point_a, point_b):
    terms = by_factor(space, geometry.dist, point_a, point_b)
    return geometry.safe_sqrt(sum(scale * value.square() for value, _, scale in terms))


@register_product(geometry.sharp)
def _(space, covector, base_point):
    terms = by_factor(space, geometry.sharp, covector, base_point)
    return join(space, [value / scale for value, _, scale in terms])


@register_product(geometry.metrics)
def _(space):
    found = [getattr(space, "metric", None)]
    parts = space.factors if isinstance(space, ProductManifold) else [space.base_manifold]
    for part in parts:
        found += geometry.metrics(part)
    return found


@register_product(geometry.is_compact)
def _(space):
    return all([geometry.is_compact(factor) for factor in bare_factors(space)])


@register_product(geometry.dim)
def _(space):
    return sum(geometry.dim(factor) for factor in bare_factors(space))


@register_product(geometry.is_euclidean)
def _(space):
    factors, scales = factors_and_scales(space)
    return len(set(scales)) == 1 and all(geometry.is_euclidean(f) for f in factors)


@register_product(geometry.embed)
def _(space, point):
    parts = split(space, point)
    images = [geometry.embed(f, p) for f, p in zip(bare_factors(space), parts, strict=True)]
    if all(image is part for image, part in zip(images, parts, strict=True)):
        return point
    return torch.cat([image.flatten(1) for image in images], dim=-1)


@register_product(geometry.interpolation)
def _(space):
    if any(geometry.interpolation(factor) is not None for factor in bare_factors(space)):
        raise UnsupportedError("space: no fields on a product with a mesh among its factors.")
