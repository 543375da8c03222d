"""The flat Klein bottle: the unit square, (x, y) ~ (x + 1, -y) ~ (x, y + 1).

Two arrays may be one point, which a network of the coordinates cannot know: fields and
potentials see the isometric image in R^7, a space of its own, ``EmbeddedKleinBottle``.
"""

import math

import torch
from geomstats.geometry.klein_bottle import KleinBottle, KleinBottleMetric

from geoflow_plugin import geometry
from geoflow_plugin.geometry.forward_mode import scaled
from geoflow_plugin.spaces.sphere import sphere

geometry.frobenius_scale.register(KleinBottleMetric)(lambda metric: 1.0)


def _glide(x, y, turns):
    """The point turns squares further left, where an odd number of them mirrors y."""
    mirrored = torch.remainder(turns, 2) > 0.5
    return x - turns, torch.where(mirrored, -y, y)


@geometry.projection.register(KleinBottle)
def _(space, point):
    x, y = point.unbind(-1)
    # the closed square belongs to the space as it is, to geomstats too
    turns = torch.where((x < 0) | (x > 1), x.floor(), 0.0)
    x, y = _glide(x, y, turns)
    y = y - torch.where((y < 0) | (y > 1), y.floor(), 0.0)
    return torch.stack([x, y], dim=-1)


@geometry.to_tangent.register(KleinBottle)
def _(space, vector, base_point):
    return vector


@geometry.tangent_basis.register(KleinBottle)
def _(space, base_point):
    eye = torch.eye(2, dtype=base_point.dtype, device=base_point.device)
    return eye.expand(*base_point.shape, 2)


@geometry.origin.register(KleinBottle)
def _(space):
    return torch.zeros(2, dtype=torch.float64)


@geometry.constraint_residual.register(KleinBottle)
def _(space, point):
    return torch.maximum(-point, point - 1).amax(-1).clamp_min(0)


@geometry.inner_product.register(KleinBottle, KleinBottleMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    return geometry.metric_scale(space) * (tangent_vec_a * tangent_vec_b).sum(-1)


@geometry.embed.register(KleinBottle)
def _(space, point):
    return embed(point)


@geometry.exp.register(KleinBottle, KleinBottleMetric)
def _(space, tangent_vec, base_point):
    return geometry.projection(space, base_point + tangent_vec)


@geometry.log.register(KleinBottle, KleinBottleMetric)
def _(space, point, base_point):
    x, y = point.unbind(-1)
    base_x, base_y = base_point.unbind(-1)
    shortest = None
    for turns in (0.0, -1.0, 1.0):
        dx, image_y = _glide(x - base_x, y, torch.full_like(x, turns))
        dy = image_y - base_y
        candidate = torch.stack([dx, dy - dy.round()], dim=-1)
        square = candidate.square().sum(-1, keepdim=True)
        if shortest is None:
            shortest, least = candidate, square
        shortest = torch.where(square < least, candidate, shortest)
        least = torch.minimum(square, least)
    return shortest


# Laws ------------------------------------------------------------------------------------


@geometry.is_compact.register(KleinBottle)
def _(space):
    return True


@geometry.log_volume.register(KleinBottle)
def _(space):
    return math.log(geometry.metric_scale(space))


@geometry.unit_cube_dim.register(KleinBottle)
def _(space):
    return 2


@geometry.uniform_from_cube.register(KleinBottle)
def _(space, cube):
    return cube


@geometry.wrapped_normal_log_prob.register(KleinBottle, KleinBottleMetric)
def _(space, point, mean, scale):
    # Preimages are those of a torus, x of period 2, and their mirror images. Beyond one
    # and a half periods the law of a circle is uniform to 1e-19.
    c = geometry.metric_scale(space)
    scale = scale / math.sqrt(c)
    (x, y), (mean_x, mean_y) = point.unbind(-1), mean.unbind(-1)
    even = _wrapped(x - mean_x, scale, 2.0) + _wrapped(y - mean_y, scale, 1.0)
    odd = _wrapped(x - mean_x + 1, scale, 2.0) + _wrapped(-y - mean_y, scale, 1.0)
    return torch.logaddexp(even, odd) - math.log(c)


def _wrapped(offset, scale, period):
    """Log density of a normal law on the circle of a period."""
    scale = scale.clamp_max(1.5 * period)
    turns = torch.arange(-14, 15, dtype=offset.dtype, device=offset.device)
    offset = offset - period * (offset / period).round()
    length = (offset.unsqueeze(-1) + period * turns) / scale
    value = torch.logsumexp(-0.5 * length.square(), dim=-1)
    return value - scale.log() - 0.5 * math.log(2 * math.pi)


# Kernels: the integral of a function of the distance depends on the centre, which the
# contract forbids. Along x the kernel is the normal law of tan(pi dx) / pi, which goes
# smoothly to zero on the circle opposite, where mirror images meet; along y von Mises'.


@geometry.kernel_separation.register(KleinBottle, KleinBottleMetric)
def _(space, point, centers):
    (x, y), (center_x, center_y) = point.unsqueeze(1).unbind(-1), centers.unbind(-1)
    dx, y = x - center_x, y.expand(len(point), len(centers))
    dx, y = _glide(dx, y, dx.round())
    slope = (math.pi * dx).tan().square()
    squared = (slope + (math.pi * (y - center_y)).sin().square()) / math.pi**2
    return geometry.metric_scale(space) * squared, -slope.log1p()


@geometry.log_kernel_normalizer.register(KleinBottle, KleinBottleMetric)
def _(space, bandwidth):
    c = geometry.metric_scale(space)
    h = bandwidth / math.sqrt(c)
    along_y = geometry.log_kernel_normalizer(sphere(1), 2 * math.pi * h)
    return 0.5 * math.log(2 * math.pi) + h.log() + along_y + math.log(c / (2 * math.pi))


@geometry.random_kernel.register(KleinBottle, KleinBottleMetric)
def _(space, center, bandwidth, generator=None):
    h = bandwidth / math.sqrt(geometry.metric_scale(space))
    normal = geometry.random_normal(h.shape, center, generator)
    dx = (math.pi * h * normal).atan() / math.pi
    start = torch.stack([torch.ones_like(h), torch.zeros_like(h)], dim=-1)
    turned = geometry.random_kernel(sphere(1), start, 2 * math.pi * h, generator)
    dy = torch.atan2(turned[..., 1], turned[..., 0]) / (2 * math.pi)
    return geometry.projection(space, center + torch.stack([dx, dy], dim=-1))


@geometry.chart.register(KleinBottle)
def _(space, point):
    return point, -geometry.log_volume_element(space, point)


@geometry.chart_inverse.register(KleinBottle)
def _(space, coordinates):
    point = geometry.projection(space, coordinates)
    return point, geometry.log_volume_element(space, point)


# The bottle in R^7 -----------------------------------------------------------------------


class EmbeddedKleinBottle:
    """The flat Klein bottle of area 1 as a surface in R^7, isometric to ``KleinBottle``.

    Whatever is smooth in the array is smooth on the bottle, so that any network is a
    field here. ``embed`` and ``unembed`` go from and to points of the square.
    """

    dim, shape, metric = 2, (7,), None


def embed(point):
    """Points (..., 2) of the Klein bottle to R^7, (..., 7), isometrically."""
    a, b = scaled(point[..., 0], math.pi), scaled(point[..., 1], 2 * math.pi)
    half, wide, twice = 0.5, math.sqrt(0.75), a + a
    entries = [
        a.cos() * b.sin(),
        a.sin() * b.sin(),
        scaled(twice.cos() * b.cos(), half),
        scaled(twice.sin() * b.cos(), half),
        scaled(b.cos(), wide),
        scaled(twice.cos(), wide),
        scaled(twice.sin(), wide),
    ]
    return scaled(torch.stack(entries, dim=-1), 1 / (2 * math.pi))


def unembed(image):
    """Inverse of ``embed``; elsewhere in R^7 a point whose image is near."""
    p = image.unbind(-1)
    double = torch.atan2(p[6], p[5])
    x = torch.remainder(double / (2 * math.pi), 1.0)
    a = math.pi * x
    sine = p[0] * a.cos() + p[1] * a.sin()
    cosine = 0.5 * (p[2] * double.cos() + p[3] * double.sin()) + math.sqrt(0.75) * p[4]
    y = torch.remainder(torch.atan2(sine, cosine) / (2 * math.pi), 1.0)
    return torch.stack([x, y], dim=-1)


_BOTTLE: list[KleinBottle] = []


@geometry.model.register(EmbeddedKleinBottle)
def _(space):
    if not _BOTTLE:
        _BOTTLE.append(KleinBottle())
    return geometry.Model(_BOTTLE[0], unembed, embed)


@geometry.projection.register(EmbeddedKleinBottle)
def _(space, point):
    return embed(unembed(point))


@geometry.tangent_basis.register(EmbeddedKleinBottle)
def _(space, base_point):
    point = unembed(base_point)
    a, b = math.pi * point[..., 0], 2 * math.pi * point[..., 1]
    half, wide, zero = 0.5, math.sqrt(0.75), torch.zeros_like(a)
    along_x = [
        -half * a.sin() * b.sin(),
        half * a.cos() * b.sin(),
        -half * (2 * a).sin() * b.cos(),
        half * (2 * a).cos() * b.cos(),
        zero,
        -wide * (2 * a).sin(),
        wide * (2 * a).cos(),
    ]
    along_y = [
        a.cos() * b.cos(),
        a.sin() * b.cos(),
        -half * (2 * a).cos() * b.sin(),
        -half * (2 * a).sin() * b.sin(),
        -wide * b.sin(),
        zero,
        zero,
    ]
    return torch.stack([torch.stack(along_x, -1), torch.stack(along_y, -1)], dim=-2)


@geometry.to_tangent.register(EmbeddedKleinBottle)
def _(space, vector, base_point):
    basis = geometry.tangent_basis(space, base_point)
    return ((basis @ vector.unsqueeze(-1)) * basis).sum(-2)


@geometry.constraint_residual.register(EmbeddedKleinBottle)
def _(space, point):
    return (point - geometry.projection(space, point)).abs().amax(-1)
