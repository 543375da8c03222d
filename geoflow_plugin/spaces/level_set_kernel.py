"""Smoothing kernels and normal laws of a generic level set, on patches over tangent balls.

Within sqrt(2) times the reach of a point c, and over a ball of its tangent space that is
smaller than the reach, the set is a graph: P_c (y - c) is one-to-one onto the ball, since
tangent planes turn by less than a right angle there, and the only point over zero is c.
A law of the ball is thus carried to the set along the normals at c, and its density is
divided by |det(normals at y . normals at c)|^-1, exactly.

The law is (1 - |v|^2 / r^2)^(r^2 / 2 h^2) on the ball of radius r: a normal law of scale h
where h is small against r, and it ends without a jump. A wrapped normal is that law with
the mass that the normal law has in the ball; the rest of it is uniform on the set.
"""

import math
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from geomstats.geometry.base import LevelSet
from scipy import special

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.spaces.level_set import codimension, value_and_rows
from geoflow_plugin.spaces.level_set_measure import (
    check_limits,
    estimate_reach,
    lift,
    surface_points,
)

_MARGIN = 0.9  # of the reach: what was estimated may be a little more than there is
_TRIALS = 2048  # points at which patches are tried
_DRAWS = 20  # of a point, before the centre is returned instead


class _Patch(NamedTuple):
    near: float  # points of a patch are not farther than this from its centre
    radius: float  # of the ball that it is a graph over


_PATCHES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_SERVED: set[Callable] = set()


def _register(function, leader=None):
    """Register for level sets that have neither a model nor functions of their own.

    A class that registers the leader of a group keeps the defaults of the others.
    """
    default = function.__wrapped__
    leader = leader or function

    def decorator(implementation):
        @function.register(LevelSet)
        def serve(space, *args, **kwargs):
            ours = leader.find(space) in _SERVED and geometry.model(space) is None
            # those of geomstats are known one by one
            ours = ours and not type(space).__module__.startswith("geomstats.")
            return (implementation if ours else default)(space, *args, **kwargs)

        _SERVED.add(serve)
        return implementation

    return decorator


# Patches --------------------------------------------------------------------------------


def _patch(space):
    if space not in _PATCHES:
        _PATCHES[space] = _find_patch(space)
    return _PATCHES[space]


@torch.no_grad()
def _find_patch(space):
    name = type(space).__qualname__
    if not geometry.is_compact(space):
        raise UnsupportedError(
            f"space: kernels on {name}, which is not compact, would need its reach; register "
            "kernel_separation, log_kernel_normalizer and random_kernel."
        )
    check_limits(space)
    try:
        surface = surface_points(space)
    except ValueError as error:  # unbounded
        raise UnsupportedError(*error.args) from error
    estimate = _MARGIN * estimate_reach(space, surface)
    generator = torch.Generator().manual_seed(0)
    center = surface[torch.linspace(0, len(surface) - 1, _TRIALS).long()]
    direction = _tangent_sphere(space, center, generator)
    for _ in range(8):
        patch = _Patch(math.sqrt(2) * estimate, _MARGIN * estimate)
        # a patch that is no graph has no point over some of the rim
        if _carry(space, center, patch.radius * direction, patch)[1].all():
            return patch
        estimate = 0.8 * estimate
    raise UnsupportedError(
        f"space: {name} turns too sharply for kernels on patches; register "
        "kernel_separation, log_kernel_normalizer and random_kernel."
    )


def _tangent_sphere(space, center, generator):
    """Uniform unit vectors (n, size) of the tangent spaces."""
    basis = geometry.tangent_basis(space, center).flatten(2)
    options = {"generator": generator, "device": center.device, "dtype": center.dtype}
    normal = torch.randn(len(center), 1, space.dim, **options)
    return ((normal / normal.norm(dim=-1, keepdim=True)) @ basis).squeeze(1)


def _carry(space, center, vector, patch):
    """Points over tangent vectors (n, size) at centres, and whether there are any."""
    point, off = lift(space, center, center.flatten(1) + vector)
    gap = (point - center).flatten(1).norm(dim=-1)
    return point, (off < 1e-8 * patch.radius) & (gap < patch.near)


def _frame(space, point):
    """Orthonormal normals (n, k, size), or tangents where those are fewer."""
    if space.dim < codimension(space):
        return geometry.tangent_basis(space, point).flatten(2)
    rows = value_and_rows(space, point)[1]
    if rows.shape[1] == 1:
        return rows / rows.norm(dim=-1, keepdim=True)
    root = torch.linalg.cholesky(rows @ rows.mT)
    return torch.linalg.solve_triangular(root, rows, upper=False)


def _split(space, point, center):
    """Squared length of P_c (y - c) over r^2, or one beyond the patch; log volume change.

    Arrays that broadcast: points and frames (..., size) and (..., k, size), in the lengths
    of the array and for its volume.
    """
    patch = _patch(space)
    (y, at_y), (c, at_c) = point, center
    across = y - c
    total = across.square().sum(-1)
    along = (at_c * across.unsqueeze(-2)).sum(-1).square().sum(-1)
    if space.dim >= codimension(space):  # along the normals
        along = (total - along).clamp_min(0)
    share = along / patch.radius**2
    inside = (total < patch.near**2) & (share < 1)
    if at_c.shape[-2] == 1:
        cosine = (at_y * at_c).sum((-1, -2))
        change = torch.where(inside, cosine, 1).abs().log()
    else:
        turn = (at_y.unsqueeze(-2) * at_c.unsqueeze(-3)).sum(-1)
        eye = torch.eye(turn.shape[-1], dtype=turn.dtype, device=turn.device)
        turn = torch.where(inside[..., None, None], turn, eye)
        # by QR: torch differentiates forward derivatives of slogdet wrongly
        triangle = torch.linalg.qr(turn)[1].diagonal(dim1=-2, dim2=-1)
        change = triangle.abs().log().sum(-1)
    return torch.where(inside, share, 0), inside, -change


def _length_scale(space):
    """Square of metric over array lengths, of a metric that has constant ones."""
    try:
        return geometry.metric_scale(space)
    except UnsupportedError:
        return geometry.outer_scale(space)


# Kernels --------------------------------------------------------------------------------


@_register(geometry.log_kernel_normalizer)
def _(space, bandwidth):
    radius = _patch(space).radius
    power = 0.5 * _length_scale(space) * (radius / bandwidth.detach().double().cpu()) ** 2
    half = space.dim / 2
    # of the ball's law for the volume of the array
    value = special.betaln(power.numpy() + 1, half) - special.gammaln(half)
    value = value + half * math.log(math.pi) + space.dim * math.log(radius)
    return torch.as_tensor(value).to(bandwidth)


@_register(geometry.kernel_radius, geometry.log_kernel_normalizer)
def _(space):
    return math.sqrt(_length_scale(space)) * _patch(space).radius


@_register(geometry.kernel_separation, geometry.log_kernel_normalizer)
def _(space, point, centers):
    # y has a column of its own
    y = point.flatten(1).unsqueeze(1), _frame(space, point).unsqueeze(1)
    share, inside, change = _split(space, y, (centers.flatten(1), _frame(space, centers)))
    squared = -_length_scale(space) * _patch(space).radius ** 2 * torch.log1p(-share)
    element = geometry.log_volume_element(space, point).unsqueeze(1)
    return torch.where(inside, squared, math.inf), change + element


@_register(geometry.random_kernel, geometry.log_kernel_normalizer)
@torch.no_grad()
def _(space, center, bandwidth, generator=None):
    patch, c = _patch(space), center.double()
    power = 0.5 * _length_scale(space) * (patch.radius / bandwidth.double()) ** 2
    drawn, pending = c.clone(), torch.arange(len(c), device=c.device)
    for _ in range(_DRAWS):
        length = patch.radius * _random_share(space.dim, power[pending], generator).sqrt()
        direction = _tangent_sphere(space, c[pending], generator)
        point, found = _carry(space, c[pending], length.unsqueeze(-1) * direction, patch)
        drawn[pending[found]] = point[found]
        pending = pending[~found]
        if not len(pending):
            break
    return drawn.to(center)


def _random_share(dim, power, generator):
    """|v|^2 / r^2 of the law (1 - |v|^2 / r^2)^power on a ball, a beta variate."""
    first = torch._standard_gamma(torch.full_like(power, dim / 2), generator=generator)
    second = torch._standard_gamma(power + 1, generator=generator)
    return first / (first + second)


# Normal laws ----------------------------------------------------------------------------


def _log_masses(space, scale):
    """Log of what a normal law has in the ball, and of the rest."""
    power = 0.5 * _length_scale(space) * (_patch(space).radius / scale.double()) ** 2
    half = torch.full_like(power, space.dim / 2)
    inner = torch.special.gammainc(half, power).log()
    # a floor that no digit of an integral knows of keeps densities positive
    outer = torch.special.gammaincc(half, power).clamp_min(1e-300).log()
    return inner, outer


@_register(geometry.wrapped_normal_log_prob)
def _(space, point, mean, scale):
    frames = _frame(space, point), _frame(space, mean)
    arrays = point.flatten(1), mean.flatten(1)
    share, inside, change = _split(space, *zip(arrays, frames, strict=True))
    inner, outer = (mass.to(point) for mass in _log_masses(space, scale))
    power = 0.5 * _length_scale(space) * (_patch(space).radius / scale) ** 2
    normalizer = geometry.log_kernel_normalizer(space, scale)
    change = change + geometry.log_volume_element(space, point)
    bump = power * torch.log1p(-share) - normalizer - change + inner
    bump = torch.where(inside, bump, -math.inf)
    return torch.logaddexp(bump, outer - geometry.log_volume(space))


@_register(geometry.random_wrapped_normal, geometry.wrapped_normal_log_prob)
def _(space, mean, scale, generator=None):
    n, options = len(mean), {"generator": generator, "device": mean.device}
    drawn = geometry.random_kernel(space, mean, scale.expand(n), generator)
    level = geometry.random_uniform(space, n, dtype=mean.dtype, **options)
    chosen = torch.rand(n, dtype=torch.float64, **options) < _log_masses(space, scale)[1].exp()
    return torch.where(chosen.reshape(-1, *[1] * len(space.shape)), level, drawn)
