"""Measures on products: volumes, uniform and normal laws, kernels, charts."""

import functools
import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.spaces.product import (
    by_factor,
    factors_and_scales,
    join,
    register_product,
    split,
)


@register_product(geometry.log_volume)
def _(space):
    return sum(
        geometry.log_volume(factor) + 0.5 * geometry.dim(factor) * math.log(scale)
        for factor, scale in zip(*factors_and_scales(space), strict=True)
    )


@register_product(geometry.unit_cube_dim)
def _(space):
    return sum(geometry.unit_cube_dim(factor) for factor in factors_and_scales(space)[0])


@register_product(geometry.uniform_from_cube)
def _(space, cube):
    factors, _ = factors_and_scales(space)
    parts = cube.split([geometry.unit_cube_dim(f) for f in factors], dim=-1)
    return join(
        space,
        [geometry.uniform_from_cube(f, part) for f, part in zip(factors, parts, strict=True)],
    )


@register_product(geometry.random_tangent_normal)
def _(space, base_point, generator=None):
    terms = by_factor(
        space,
        lambda f, p: geometry.random_tangent_normal(f, p, generator),
        base_point,
    )
    return join(space, [value / math.sqrt(scale) for value, _, scale in terms])


@register_product(geometry.wrapped_normal_log_prob)
def _(space, point, mean, scale):
    # With a metric c g the law of scale s on g has scale s / sqrt(c), and volume
    # c^(dim / 2) times as large.
    factors, scales = factors_and_scales(space)
    points, means = split(space, point), split(space, mean)
    return sum(
        geometry.wrapped_normal_log_prob(f, p, m, scale / math.sqrt(c))
        - 0.5 * geometry.dim(f) * math.log(c)
        for f, p, m, c in zip(factors, points, means, scales, strict=True)
    )


@register_product(geometry.squared_chord)
def _(space, point, centers):
    factors, scales = factors_and_scales(space)
    parts = zip(split(space, point), split(space, centers), strict=True)
    return sum(
        scale * geometry.squared_chord(factor, *pair)
        for factor, scale, pair in zip(factors, scales, parts, strict=True)
    )


@register_product(geometry.kernel_separation)
def _(space, point, centers):
    factors, scales = factors_and_scales(space)
    parts = zip(split(space, point), split(space, centers), strict=True)
    squared, log_volume = 0.0, None
    for factor, scale, pair in zip(factors, scales, parts, strict=True):
        square, change = geometry.kernel_separation(factor, *pair)
        squared = squared + scale * square
        # the kernel is a density for the volume of the factor as it is scaled here
        if change is not None:
            log_volume = change if log_volume is None else log_volume + change
    return squared, log_volume


def _drawn(function, space, center, scale, generator=None):
    """Draws of a law in every factor, as wide as the metric of the product makes it there."""
    factors, scales = factors_and_scales(space)
    return join(
        space,
        [
            function(f, part, scale / math.sqrt(c), generator)
            for f, c, part in zip(factors, scales, split(space, center), strict=True)
        ],
    )


for _function in (geometry.random_wrapped_normal, geometry.random_kernel):
    register_product(_function)(functools.partial(_drawn, _function))


@register_product(geometry.log_kernel_normalizer)
def _(space, bandwidth):
    return sum(
        geometry.log_kernel_normalizer(factor, bandwidth / math.sqrt(scale))
        + 0.5 * geometry.dim(factor) * math.log(scale)
        for factor, scale in zip(*factors_and_scales(space), strict=True)
    )


@register_product(geometry.log_kernel_integral)
def _(space, bandwidth, centers):
    parts = zip(*factors_and_scales(space), split(space, centers), strict=True)
    return sum(
        geometry.log_kernel_integral(factor, bandwidth / math.sqrt(scale), part)
        + 0.5 * geometry.dim(factor) * math.log(scale)
        for factor, scale, part in parts
    )


@register_product(geometry.kernel_radius)
def _(space):
    return min(
        math.sqrt(scale) * geometry.kernel_radius(factor)
        for factor, scale in zip(*factors_and_scales(space), strict=True)
    )


# Charts: the angle of a circle, the coordinates of a line -----------------------------


def _sum_of_charts(function, space, arrays):
    factors, scales = factors_and_scales(space)
    outputs = [function(f, a) for f, a in zip(factors, arrays, strict=True)]
    sign = 1 if function is geometry.chart_inverse else -1
    log_det = sum(
        ld + sign * 0.5 * geometry.dim(f) * math.log(scale)
        for (_, ld), f, scale in zip(outputs, factors, scales, strict=True)
    )
    return [value for value, _ in outputs], log_det


@register_product(geometry.chart)
def _(space, point):
    coordinates, log_det = _sum_of_charts(geometry.chart, space, split(space, point))
    return torch.cat(coordinates, dim=-1), log_det


@register_product(geometry.chart_inverse)
def _(space, coordinates):
    factors, _ = factors_and_scales(space)
    parts = coordinates.split([geometry.dim(factor) for factor in factors], dim=-1)
    points, log_det = _sum_of_charts(geometry.chart_inverse, space, parts)
    return join(space, points), log_det
