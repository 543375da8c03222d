"""The uniform measure of a generic level set, by the co-area formula.

Quasi-random points x of a box that lie in a thin shell round the set are pulled to it,
and weighted by the Jacobian of x -> (point of the set, offset from its tangent plane).
Where that map is one-to-one, means over the set are exact but for the sampling, whatever
the submersion and the thickness; the shell reaches a quarter as far as nearest points are
unique (the reach), or less until half of it gives the same volume. The weighted points
give the volume, with a standard error, and a pool of equally likely points.
"""

import math
import weakref
from typing import Any, NamedTuple

import torch
from geomstats.geometry.base import LevelSet
from torch.func import vmap

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.geometry.forward_mode import jvp
from geoflow_plugin.spaces.intrinsic import register_fallback, some_points
from geoflow_plugin.spaces.level_set import (
    codimension,
    is_regular,
    pseudo_inverse,
    pull,
    value_and_rows,
)

__all__ = ["log_volume_error"]

_REPLICATES = 16  # independent point sets, whose scatter is the volume's error
_TOLERANCE = 1e-3  # standard error of the log volume at which no more points are drawn
_ROUNDS = 5  # at most, each as large as all before it
_POOL = 2**16  # uniform points kept for each space
_MAX_SIZE = 6  # of the array, beyond which boxes are too empty
_STEPS = 8  # of Newton's iteration


class _Measure(NamedTuple):
    metric: Any  # weak reference to the metric whose volume it is, or None
    pool: torch.Tensor  # uniform points, (_POOL, *shape), near ones side by side
    step: float  # length of the moves that part repeated points
    log_volume: float
    error: float


_MEASURES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _measure(space):
    metric = getattr(space, "metric", None)
    known = _MEASURES.get(space)
    if known is None or (known.metric and known.metric()) is not metric:
        known = _MEASURES[space] = _estimate(space, metric)
    return known


def log_volume_error(space):
    """Standard error of ``geometry.log_volume`` of a generic level set.

    Parameters
    ----------
    space : geomstats LevelSet
        Compact, with a submersion of full rank, of ambient dimension 6 at most.

    Returns
    -------
    error : float
        As well the relative error of the volume, and of uniform means.
    """
    return _measure(space).error


@register_fallback(LevelSet, geometry.log_volume)
def _(space):
    return _measure(space).log_volume


@register_fallback(LevelSet, geometry.unit_cube_dim)
def _(space):
    check_limits(space)
    return space.dim + 3


@register_fallback(LevelSet, geometry.uniform_from_cube)
def _(space, cube):
    """A point of the pool, moved by one step that leaves the uniform law as it is.

    A step goes to a uniform point of a ball of the tangent space, then to the level set
    along the normals at the start; it is taken if it could as well be taken back.
    """
    measure, uniform = _measure(space), cube.double()
    pool, step, d = measure.pool.to(cube.device), measure.step, space.dim
    x = pool[(uniform[:, 0] * len(pool)).long().clamp_max(len(pool) - 1)]
    direction = torch.special.ndtri(uniform[:, 1 : d + 1].clamp(1e-12, 1 - 1e-12))
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    length = step * uniform[:, d + 1 : d + 2] ** (1 / d)
    tangent = geometry.tangent_basis(space, x).flatten(2)
    y, off = lift(
        space, x, x.flatten(1) + ((length * direction).unsqueeze(1) @ tangent).squeeze(1)
    )
    back = geometry.to_tangent(space, x - y, y).flatten(1).norm(dim=-1)
    growth = geometry.log_volume_element(space, y) - geometry.log_volume_element(space, x)
    taken = (off < 1e-6 * step) & (back <= step) & (uniform[:, d + 2] < growth.exp())
    taken = taken & ((y - x).flatten(1).norm(dim=-1) <= 2 * step)
    moved = torch.where(taken.reshape(-1, *[1] * len(space.shape)), y, x)
    return pull(space, moved, 1).to(cube.dtype)


def lift(space, base, start, steps=_STEPS):
    """Move arrays (n, size) to the set along the normals at base points.

    Returns
    -------
    point : torch.Tensor, shape=(n, *space.shape)
    off : torch.Tensor, shape=(n,)
        Distance that is left; infinite for what came to nothing, put at its base point.
    """
    normals = value_and_rows(space, base)[1]
    y = start
    for _ in range(steps):
        value, rows = value_and_rows(space, y.reshape(base.shape))
        weight, _ = torch.linalg.solve_ex(rows @ normals.mT, value.unsqueeze(-1))
        y = y - (weight.mT @ normals).squeeze(1)
    lost = ~y.isfinite().all(-1, keepdim=True)
    y = torch.where(lost, base.flatten(1), y).reshape(base.shape)
    value, rows = value_and_rows(space, y)
    off = (pseudo_inverse(space, rows) @ value.unsqueeze(-1)).flatten(1).norm(dim=-1)
    return y, off.masked_fill(lost.squeeze(-1), math.inf)


# The estimate ---------------------------------------------------------------------------


@torch.no_grad()
def _estimate(space, metric):
    check_limits(space)
    surface = surface_points(space)
    flat = surface.flatten(1)
    width = 0.25 * min(
        estimate_reach(space, surface), float((flat.amax(0) - flat.amin(0)).max())
    )
    for _ in range(4):
        points, weights, sums, n_box = _sample_shell(space, flat, width)
        error = float(sums[:, 0].std() / sums[:, 0].mean()) / math.sqrt(_REPLICATES)
        # a shell of half the thickness gives the same volume where pulling is one-to-one
        change = sums[:, 1] - sums[:, 0]
        consistent = change.mean().abs() < 5 * change.std() / math.sqrt(_REPLICATES)
        if consistent and error < 0.05:
            return _Measure(
                metric=None if metric is None else weakref.ref(metric),
                pool=_equal_weights(points, weights),
                step=width,
                log_volume=math.log(float(sums[:, 0].mean()) / n_box),
                error=error,
            )
        width = width / 2
    raise ValueError(
        f"space: the volume of {type(space).__qualname__} could not be estimated; register "
        "log_volume, unit_cube_dim and uniform_from_cube on geoflow_plugin.geometry."
    )


def _sample_shell(space, surface, width):
    """Points, their weights, weight sums of each replicate, number of box points."""
    low, high = surface.amin(0) - 3 * width, surface.amax(0) + 3 * width
    engines = [
        torch.quasirandom.SobolEngine(len(low), scramble=True, seed=seed)
        for seed in range(_REPLICATES)
    ]
    points, weights, size, n_box = [], [], 2**13, 0
    sums = torch.zeros(_REPLICATES, 2, dtype=torch.float64)
    for _ in range(_ROUNDS):
        for replicate, engine in enumerate(engines):
            x = low + (high - low) * engine.draw(size, dtype=torch.float64)
            point, weight = _shell_weights(space, x.reshape(size, *space.shape), width)
            weight = weight * (high - low).prod()
            sums[replicate] += weight.sum(0)
            points.append(point)
            weights.append(weight[:, 0])
        n_box = size = n_box + size
        error = sums[:, 0].std() / sums[:, 0].mean() / math.sqrt(_REPLICATES)
        if error < _TOLERANCE:
            break
    return torch.cat(points), torch.cat(weights), sums, n_box


def check_limits(space):
    """Refuse what ``_estimate`` cannot do."""
    name, size = type(space).__qualname__, math.prod(space.shape)
    if not is_regular(space):
        raise UnsupportedError(
            f"space: the submersion of {name} has too small a rank for an estimate of its "
            "volume; register log_volume, unit_cube_dim and uniform_from_cube."
        )
    rows = value_and_rows(space, some_points(space)[:1])[1]
    if size > _MAX_SIZE or not rows.shape[1] == codimension(space) == size - space.dim:
        raise UnsupportedError(
            f"space: the uniform law of {name} can be estimated only for points of at most "
            f"{_MAX_SIZE} numbers and a submersion with as many values as the codimension; "
            "register log_volume, unit_cube_dim and uniform_from_cube."
        )


def surface_points(space, n=4096):
    """Points all over the level set, pulled from a box that contains it with a margin."""
    found = pull(space, some_points(space))
    for _ in range(6):
        flat = found.flatten(1)
        low, high = flat.amin(0), flat.amax(0)
        margin = 0.5 * float((high - low).max())
        low, high = low - margin, high + margin
        engine = torch.quasirandom.SobolEngine(len(low), scramble=True, seed=0)
        x = low + (high - low) * engine.draw(n, dtype=torch.float64)
        x = pull(space, x.reshape(n, *space.shape), 40)
        found = torch.cat([found[-n:], x[_on_level(space, x, 1e-6 * margin)]])
        flat = found.flatten(1)
        if ((flat - low > 0.2 * margin) & (high - flat > 0.2 * margin)).all():
            return found
    raise ValueError(
        f"space: {type(space).__qualname__} seems to be unbounded, so it has no uniform law; "
        "say so by geoflow_plugin.geometry.is_compact.register(...)(lambda space: False)."
    )


def _on_level(space, point, atol):
    """Whether one more Newton step would move a point by less than atol."""
    value, rows = value_and_rows(space, point)
    step = (pseudo_inverse(space, rows) @ value.unsqueeze(-1)).flatten(1)
    return (step.norm(dim=-1) < atol) & (rows.flatten(1).norm(dim=-1) > 0)


def estimate_reach(space, point):
    """Smallest |y - x|^2 / (2 dist(y, tangent plane at x)): Federer's formula."""
    point = point[torch.linspace(0, len(point) - 1, 1500).long()]
    basis, flat = geometry.tangent_basis(space, point).flatten(2), point.flatten(1)
    size = (flat.amax(0) - flat.amin(0)).max()
    reach = math.inf
    for x, frame in zip(flat.split(100), basis.split(100), strict=True):
        across = flat - x.unsqueeze(1)
        squared = across.square().sum(-1)
        height = squared - (across @ frame.mT).square().sum(-1)
        ratio = squared / (2 * height.clamp_min(1e-30).sqrt())
        reach = min(reach, float(ratio[squared > 1e-4 * size**2].min()))
    return reach


def _shell_weights(space, x, width):
    """Points that shell points are pulled to, and what they weigh.

    The sum of the weights, over the number of box points, is the volume of the set over
    that of the box: one column from the whole shell, one from its inner half.
    """
    point = pull(space, x, 6)
    kept = _on_level(space, point, 1e-8 * width)
    kept = kept & ((x - point).flatten(1).norm(dim=-1) < 1.5 * width)
    x = x[kept]

    def split(x):
        point = pull(space, x, 6)
        rows = value_and_rows(space, point)[1]
        root = torch.linalg.cholesky(rows @ rows.mT)
        height = rows @ (x - point).flatten(1).unsqueeze(-1)
        return point, torch.linalg.solve_triangular(root, height, upper=False).squeeze(-1)

    eye = torch.eye(math.prod(space.shape), dtype=x.dtype).reshape(-1, 1, *space.shape)
    (point, offset), (turn, rise) = vmap(  # type: ignore[misc]
        lambda direction: jvp(split, (x,), (direction.expand_as(x).contiguous(),)),
        out_dims=((None, None), (1, 1)),  # type: ignore[arg-type]
    )(eye)
    frame = geometry.tangent_basis(space, point).flatten(2)
    jacobian = torch.cat([turn.flatten(2) @ frame.mT, rise], dim=-1)
    log_weight = torch.linalg.slogdet(jacobian)[1] + geometry.log_volume_element(space, point)
    bumps = [_bump(offset, radius) for radius in (width, width / 2)]
    return point, log_weight.exp().unsqueeze(-1) * torch.stack(bumps, dim=-1)


def _bump(offset, radius):
    """A bump on the ball of offsets (n, k), of integral one."""
    k = offset.shape[-1]
    integral = 2 * math.pi ** (k / 2) * radius**k / math.gamma(k / 2 + 3)
    return (1 - (offset / radius).square().sum(-1)).clamp_min(0).square() / integral


def _equal_weights(point, weight):
    """Systematic resampling along a curve that keeps near points together."""
    flat = point.flatten(1)
    unit = (flat - flat.amin(0)) / (flat.amax(0) - flat.amin(0)).clamp_min(1e-30)
    cell = (unit * 1023).long()
    order = sum(
        ((cell[:, axis] >> bit) & 1) << (bit * cell.shape[1] + axis)
        for bit in range(10)
        for axis in range(cell.shape[1])
    ).argsort()
    total = weight[order].cumsum(0)
    level = (torch.arange(_POOL, dtype=total.dtype) + 0.5) / _POOL * total[-1]
    return point[order[torch.searchsorted(total, level).clamp_max(len(total) - 1)]]
