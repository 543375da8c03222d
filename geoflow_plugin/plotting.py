"""Pictures of densities with matplotlib, on Axes of one's own or in a new figure."""

import math
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.product_manifold import ProductManifold

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import as_points
from geoflow_plugin.distributions.moser import _seeded_sample

__all__ = ["plot_density"]

_CHUNK = 4096  # points evaluated at a time
_N_NATS = 8.0  # depth of the colour range under the maximum


def plot_density(
    distribution, points=None, ax=None, *, space=None, resolution=128, cmap="magma"
):
    """Draw a density, and points over it.

    The sphere is drawn on an equal-area map, longitude 0 in the middle and +z up; the
    torus as the square of its angles in (-pi, pi]; the plane in a window around the
    points, else around a sample. Colours are the log density with respect to the volume
    of ``space.metric``, down to 8 nats under the maximum; what is lower looks the same.
    On the circle the density is a curve over the angle.

    Parameters
    ----------
    distribution : Distribution
        Or any object whose ``log_prob`` takes points of ``space``, as a normflows model.
    points : torch.Tensor or array, shape=(n, *space.shape), optional
        Points of the space to show, such as data.
    ax : matplotlib.axes.Axes, optional
        Where to draw; for the sphere its projection is "mollweide" or "hammer".
        Default: the Axes of a new pyplot figure.
    space : geomstats Manifold, optional
        Default: ``distribution.space``.
    resolution : int
        Cells along the shorter side of the map.
    cmap : str or matplotlib.colors.Colormap

    Returns
    -------
    ax : matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If there is no picture of the space.
    ValueError
        If ``ax`` is of another projection, ``resolution`` is no integer above one, or
        ``points`` are no finite points of the space.

    Examples
    --------
    >>> space = Hypersphere(2)
    >>> points = space.random_uniform(50)
    >>> ax = plot_density(gf.KernelDensity(space).fit(points), points)
    >>> ax.figure.savefig("density.png")
    """
    space = distribution.space if space is None else space
    view = _view(space)
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 2:
        raise ValueError(f"resolution: expected an integer >= 2, got {resolution!r}.")
    if ax is not None and ax.name not in view.projections:
        raise ValueError(
            f"ax: expected a projection among {list(view.projections)}, got {ax.name!r};"
            f' use plt.subplots(subplot_kw={{"projection": "{view.projections[0]}"}}).'
        )
    if points is not None:
        points = view.coordinates(as_points(space, points, "points").double().cpu())
    edges = view.edges(distribution, points, resolution)
    centers = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    grid = torch.cartesian_prod(*centers).reshape(-1, len(edges))
    log_prob = _log_prob(distribution, view.points(grid))
    log_prob = log_prob.reshape([len(center) for center in centers])
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=view.size, layout="constrained")
        ax = figure.add_subplot(projection=view.projections[0])
    if len(edges) == 1:
        _draw_curve(ax, centers[0], log_prob, points)
    else:
        _draw_map(ax, edges, log_prob, points, cmap)
    view.finish(ax)
    return ax


@torch.no_grad()
def _log_prob(distribution, points):
    """Log density in chunks, on the dtype and device of the distribution."""
    weights = [*distribution.parameters(), *distribution.buffers()]
    like = next((w for w in weights if w.is_floating_point()), torch.zeros(()))
    parts = points.to(like.device, like.dtype).split(_CHUNK)
    values = torch.cat([distribution.log_prob(part) for part in parts])
    return values.cpu().double().numpy()


# Ink ----------------------------------------------------------------------------------


def _draw_map(ax, edges, log_prob, points, cmap):
    finite = log_prob[np.isfinite(log_prob)]
    high = finite.max() if len(finite) else 0.0
    low = finite.min() if len(finite) else -1.0
    clipped = log_prob.min() < high - _N_NATS
    low = high - _N_NATS if clipped else min(low, high - 1e-2)
    mesh = ax.pcolormesh(
        *(edge.numpy() for edge in edges),
        np.maximum(log_prob, low).T,
        cmap=cmap,
        vmin=low,
        vmax=high,
        rasterized=True,
        zorder=0,
    )
    if points is not None:
        few = len(points) <= 500
        ax.scatter(
            *points.T.numpy(),
            s=12 if few else 3,
            color="white" if few else "cyan",
            edgecolors="black" if few else "none",
            linewidths=0.5,
            alpha=1.0 if few else 0.5,
            zorder=3,
        )
    bar = ax.figure.colorbar(
        mesh, ax=ax, extend="min" if clipped else "neither", shrink=0.8, pad=0.03
    )
    bar.set_label("log density (nats)")


def _draw_curve(ax, angle, log_prob, points):
    density = np.exp(log_prob)
    ax.fill_between(angle.numpy(), density, alpha=0.2, linewidth=0)
    ax.plot(angle.numpy(), density)
    if points is not None:
        ax.plot(points[:, 0].numpy(), np.zeros(len(points)), "k|", clip_on=False)
    ax.set_ylabel("density")
    ax.set_ylim(bottom=0)


def _angle_axis(axis, name):
    axis.set_ticks(np.pi * np.array([-1, -0.5, 0, 0.5, 1]))
    axis.set_ticklabels(["−π", "−π/2", "0", "π/2", "π"])
    axis.set_label_text(name)


# Views --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """What a picture of one space needs; coordinates are float64 on the CPU.

    Parameters
    ----------
    coordinates : callable
        Points (n, *shape) to coordinates (n, 1) or (n, 2).
    points : callable
        The inverse.
    edges : callable
        Distribution, coordinates of the points (or None) and resolution, to the edges
        of the cells along each coordinate.
    finish : callable
        Ticks and labels, given the Axes.
    size : (float, float)
        Of a new figure, in inches.
    projections : tuple of str
        Of the Axes; the first is that of a new one.
    """

    coordinates: Callable
    points: Callable
    edges: Callable
    finish: Callable
    size: tuple = (5.6, 4.6)
    projections: tuple = ("rectilinear",)


@geometry._open
def _view(space):
    """The view of a space, dispatched on its class."""
    raise TypeError(
        f"space: there is no picture of densities on {type(space).__module__}."
        f"{type(space).__qualname__} of dimension {space.dim}; supported are "
        "Hypersphere(1), Hypersphere(2), products of two circles and Euclidean(2)."
    )


_unsupported = _view.__wrapped__


def _chart_view(space, **kwargs):
    return _View(
        coordinates=lambda points: geometry.chart(space, points)[0],
        points=lambda coordinates: geometry.chart_inverse(space, coordinates)[0],
        **kwargs,
    )


def _round(n):
    """Edges of n cells around a circle."""
    return torch.linspace(-math.pi, math.pi, n + 1, dtype=torch.float64)


@_view.register(Hypersphere)
def _(space):
    views = {1: _circle, 2: _sphere}
    return views.get(space.dim, _unsupported)(space)


def _circle(space):
    def finish(ax):
        _angle_axis(ax.xaxis, "angle")
        ax.set_xlim(-math.pi, math.pi)

    return _chart_view(
        space,
        edges=lambda distribution, points, n: [_round(4 * n)],
        finish=finish,
        size=(5.6, 3.2),
    )


def _sphere(space):
    def coordinates(points):
        longitude = torch.atan2(points[:, 1], points[:, 0])
        return torch.stack([longitude, points[:, 2].clamp(-1, 1).asin()], dim=1)

    def points(coordinates):
        longitude, latitude = coordinates.T
        level = latitude.cos()
        parts = [level * longitude.cos(), level * longitude.sin(), latitude.sin()]
        return torch.stack(parts, dim=1)

    def finish(ax):
        ax.set_longitude_grid(60)
        ax.set_latitude_grid(30)
        ax.xaxis.set_ticklabels([])
        ax.tick_params(labelsize="small")
        ax.grid(True, color="white", alpha=0.25, linewidth=0.5)

    return _View(
        coordinates,
        points,
        edges=lambda distribution, points, n: [_round(2 * n), _round(n) / 2],
        finish=finish,
        size=(8.0, 3.8),
        projections=("mollweide", "hammer"),
    )


@_view.register(NFoldManifold)
@_view.register(ProductManifold)
def _torus(space):
    circles = space.dim == 2 and geometry.is_compact(space)
    try:
        geometry.chart_inverse(space, torch.zeros(1, space.dim))
    except TypeError:
        circles = False
    if not circles:
        _unsupported(space)

    def finish(ax):
        _angle_axis(ax.xaxis, "first angle")
        _angle_axis(ax.yaxis, "second angle")
        ax.set_aspect("equal")

    return _chart_view(
        space, edges=lambda distribution, points, n: [_round(n)] * 2, finish=finish
    )


@_view.register(Euclidean)
def _plane(space):
    if space.dim != 2:
        _unsupported(space)

    def edges(distribution, points, n):
        if points is None:
            anchor = next(iter([*distribution.parameters(), *distribution.buffers()]))
            points = _seeded_sample(distribution, 1000, 0, anchor.device)
            points = geometry.chart(space, points.cpu().double())[0]
        low, high = points.amin(0), points.amax(0)
        center = (low + high) / 2
        reach = (high - low).clamp_min(float((high - low).max()) / 4 + 1e-6) * 0.6
        return [
            torch.linspace(float(c - r), float(c + r), n + 1, dtype=torch.float64)
            for c, r in zip(center, reach, strict=True)
        ]

    def finish(ax):
        ax.set_xlabel("x")
        ax.set_ylabel("y")
        ax.set_aspect("equal")

    return _chart_view(space, edges=edges, finish=finish)
