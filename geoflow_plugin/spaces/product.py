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


def _register(function):
    """Register one implementation for both kinds of product."""

    def decorator(implementation):
        function.register(NFoldManifold)(implementation)
        function.register(ProductManifold)(implementation)
        return implementation

    return decorator


def _bare_factors(space):
    if isinstance(space, ProductManifold):
        return list(space.factors)
    return [space.base_manifold] * space.n_copies


def _factors(space):
    """The factors, and the constant by which the product scales the metric of each."""
    factors = _bare_factors(space)
    overall = geometry.metric_scale(space)
    given = getattr(geometry.bare_metric(space), "scales", None)  # of NFoldMetric alone
    scales = [1.0] * len(factors) if given is None else [float(s) for s in given]
    return factors, [overall * scale for scale in scales]


def _split(space, array):
    """Factor parts (..., *factor.shape) of points or vectors (..., *space.shape)."""
    factors, _ = _factors(space)
    # a copy first: torch.compile cannot take views of dual tensors
    flat = array.clone().flatten(array.ndim - len(space.shape))
    parts = flat.split([math.prod(factor.shape) for factor in factors], dim=-1)
    return [
        part.reshape(*part.shape[:-1], *factor.shape)
        for part, factor in zip(parts, factors, strict=True)
    ]


def _join(space, parts):
    factors, _ = _factors(space)
    flat = [
        part.flatten(part.ndim - len(factor.shape))
        for part, factor in zip(parts, factors, strict=True)
    ]
    joined = torch.cat(flat, dim=-1)
    return joined.reshape(*joined.shape[:-1], *space.shape)


def _map(function, space, *arrays):
    """Apply a function of points to every factor and join what it returns."""
    factors, _ = _factors(space)
    parts = zip(*(_split(space, array) for array in arrays), strict=True)
    return _join(space, [function(f, *p) for f, p in zip(factors, parts, strict=True)])


for _function in (
    geometry.projection,
    geometry.to_tangent,
    geometry.mean_curvature,
    geometry.exp,
    geometry.log,
    geometry.retraction,
):
    _register(_function)(functools.partial(_map, _function))


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
    factors, _ = _factors(space)
    size, start, rows = math.prod(space.shape), 0, []
    for factor, part in zip(factors, _split(space, base_point), strict=True):
        basis = geometry.tangent_basis(factor, part)
        basis = basis.flatten(basis.ndim - len(factor.shape))
        width = basis.shape[-1]
        pad = (start, size - start - width)
        rows.append(torch.nn.functional.pad(basis, pad))
        start += width
    joined = torch.cat(rows, dim=-2)
    return joined.reshape(*joined.shape[:-1], *space.shape)


@_register(geometry.frobenius_weight)
def _(space, point):
    if geometry.constant_scale(space) is None:
        return None
    terms = _combine(space, geometry.frobenius_weight, point)
    if any(weight is None for weight, _, _ in terms):
        return None
    weights = [scale * weight for weight, _, scale in terms]
    if all(isinstance(w, float) and w == weights[0] for w in weights):
        return weights[0]
    parts = _split(space, point)
    return _join(space, [w * torch.ones_like(p) for w, p in zip(weights, parts, strict=True)])


def _combine(space, function, *arrays):
    """Values of ``function`` on each factor, with the scale of that factor's metric."""
    factors, scales = _factors(space)
    parts = zip(*(_split(space, array) for array in arrays), strict=True)
    return [
        (function(factor, *part), factor, scale)
        for factor, part, scale in zip(factors, parts, scales, strict=True)
    ]


@_register(geometry.origin)
def _(space):
    return _join(space, [geometry.origin(factor) for factor in _factors(space)[0]])


@_register(geometry.constraint_residual)
def _(space, point):
    terms = _combine(space, geometry.constraint_residual, point)
    return torch.stack([value for value, _, _ in terms], dim=-1).amax(-1)


@_register(geometry.log_volume_element)
def _(space, point):
    terms = _combine(space, geometry.log_volume_element, point)
    return sum(v + 0.5 * geometry.dim(f) * math.log(scale) for v, f, scale in terms)


@_register(geometry.inner_product)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    terms = _combine(space, geometry.inner_product, tangent_vec_a, tangent_vec_b, base_point)
    return sum(scale * value for value, _, scale in terms)


@_register(geometry.dist)
def _(space, point_a, point_b):
    terms = _combine(space, geometry.dist, point_a, point_b)
    return geometry.safe_sqrt(sum(scale * value.square() for value, _, scale in terms))


@_register(geometry.sharp)
def _(space, covector, base_point):
    terms = _combine(space, geometry.sharp, covector, base_point)
    return _join(space, [value / scale for value, _, scale in terms])


@_register(geometry.is_compact)
def _(space):
    return all([geometry.is_compact(factor) for factor in _bare_factors(space)])


@_register(geometry.dim)
def _(space):
    return sum(geometry.dim(factor) for factor in _bare_factors(space))


@_register(geometry.is_euclidean)
def _(space):
    factors, scales = _factors(space)
    return len(set(scales)) == 1 and all(geometry.is_euclidean(f) for f in factors)


@_register(geometry.embed)
def _(space, point):
    parts = _split(space, point)
    images = [geometry.embed(f, p) for f, p in zip(_bare_factors(space), parts, strict=True)]
    if all(image is part for image, part in zip(images, parts, strict=True)):
        return point
    return torch.cat([image.flatten(1) for image in images], dim=-1)


@_register(geometry.interpolation)
def _(space):
    if any(geometry.interpolation(factor) is not None for factor in _bare_factors(space)):
        raise UnsupportedError("space: no fields on a product with a mesh among its factors.")


@_register(geometry.log_volume)
def _(space):
    return sum(
        geometry.log_volume(factor) + 0.5 * geometry.dim(factor) * math.log(scale)
        for factor, scale in zip(*_factors(space), strict=True)
    )


@_register(geometry.unit_cube_dim)
def _(space):
    return sum(geometry.unit_cube_dim(factor) for factor in _factors(space)[0])


@_register(geometry.uniform_from_cube)
def _(space, cube):
    factors, _ = _factors(space)
    parts = cube.split([geometry.unit_cube_dim(f) for f in factors], dim=-1)
    return _join(
        space,
        [geometry.uniform_from_cube(f, part) for f, part in zip(factors, parts, strict=True)],
    )


@_register(geometry.random_tangent_normal)
def _(space, base_point, generator=None):
    terms = _combine(
        space,
        lambda f, p: geometry.random_tangent_normal(f, p, generator),
        base_point,
    )
    return _join(space, [value / math.sqrt(scale) for value, _, scale in terms])


@_register(geometry.wrapped_normal_log_prob)
def _(space, point, mean, scale):
    # With a metric c g the law of scale s on g has scale s / sqrt(c), and volume
    # c^(dim / 2) times as large.
    factors, scales = _factors(space)
    points, means = _split(space, point), _split(space, mean)
    return sum(
        geometry.wrapped_normal_log_prob(f, p, m, scale / math.sqrt(c))
        - 0.5 * geometry.dim(f) * math.log(c)
        for f, p, m, c in zip(factors, points, means, scales, strict=True)
    )


@_register(geometry.squared_chord)
def _(space, point, centers):
    factors, scales = _factors(space)
    parts = zip(_split(space, point), _split(space, centers), strict=True)
    return sum(
        scale * geometry.squared_chord(factor, *pair)
        for factor, scale, pair in zip(factors, scales, parts, strict=True)
    )


@_register(geometry.kernel_separation)
def _(space, point, centers):
    factors, scales = _factors(space)
    parts = zip(_split(space, point), _split(space, centers), strict=True)
    squared, log_volume = 0.0, None
    for factor, scale, pair in zip(factors, scales, parts, strict=True):
        square, change = geometry.kernel_separation(factor, *pair)
        squared = squared + scale * square
        # the kernel is a density for the volume of the factor as it is scaled here
        if change is not None:
            log_volume = change if log_volume is None else log_volume + change
    return squared, log_volume


@_register(geometry.random_wrapped_normal)
def _(space, mean, scale, generator=None):
    factors, scales = _factors(space)
    return _join(
        space,
        [
            geometry.random_wrapped_normal(f, m, scale / math.sqrt(c), generator)
            for f, c, m in zip(factors, scales, _split(space, mean), strict=True)
        ],
    )


@_register(geometry.log_kernel_normalizer)
def _(space, bandwidth):
    return sum(
        geometry.log_kernel_normalizer(factor, bandwidth / math.sqrt(scale))
        + 0.5 * geometry.dim(factor) * math.log(scale)
        for factor, scale in zip(*_factors(space), strict=True)
    )


@_register(geometry.log_kernel_integral)
def _(space, bandwidth, centers):
    parts = zip(*_factors(space), _split(space, centers), strict=True)
    return sum(
        geometry.log_kernel_integral(factor, bandwidth / math.sqrt(scale), part)
        + 0.5 * geometry.dim(factor) * math.log(scale)
        for factor, scale, part in parts
    )


@_register(geometry.kernel_radius)
def _(space):
    return min(
        math.sqrt(scale) * geometry.kernel_radius(factor)
        for factor, scale in zip(*_factors(space), strict=True)
    )


@_register(geometry.random_kernel)
def _(space, center, bandwidth, generator=None):
    factors, scales = _factors(space)
    return _join(
        space,
        [
            geometry.random_kernel(f, part, bandwidth / math.sqrt(scale), generator)
            for f, scale, part in zip(factors, scales, _split(space, center), strict=True)
        ],
    )


# Charts: the angle of a circle, the coordinates of a line -----------------------------


def _sum_of_charts(function, space, arrays):
    factors, scales = _factors(space)
    outputs = [function(f, a) for f, a in zip(factors, arrays, strict=True)]
    sign = 1 if function is geometry.chart_inverse else -1
    log_det = sum(
        ld + sign * 0.5 * geometry.dim(f) * math.log(scale)
        for (_, ld), f, scale in zip(outputs, factors, scales, strict=True)
    )
    return [value for value, _ in outputs], log_det


@_register(geometry.chart)
def _(space, point):
    coordinates, log_det = _sum_of_charts(geometry.chart, space, _split(space, point))
    return torch.cat(coordinates, dim=-1), log_det


@_register(geometry.chart_inverse)
def _(space, coordinates):
    factors, _ = _factors(space)
    parts = coordinates.split([geometry.dim(factor) for factor in factors], dim=-1)
    points, log_det = _sum_of_charts(geometry.chart_inverse, space, parts)
    return _join(space, points), log_det
