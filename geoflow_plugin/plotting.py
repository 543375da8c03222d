"""Pictures of densities with matplotlib, on Axes of one's own or in a new figure.

Another package adds a space by registering a ``View`` of it on ``view``.
"""

import math

import numpy as np
import torch
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.product_manifold import ProductManifold

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import seeded_sample
from geoflow_plugin.distributions.checks import as_points
from geoflow_plugin.geometry.dispatch import open_function
from geoflow_plugin.spaces.mesh import MeshSurface

__all__ = ["View", "plot_density", "view"]

_CHUNK = 4096  # points evaluated at a time
_N_NATS = 8.0  # depth of the colour range under the maximum


def plot_density(
    distribution, points=None, ax=None, *, space=None, resolution=128, cmap="magma"
):
    """Draw a density, and points over it.

    The sphere is an equal-area map, longitude 0 in the middle and +z up; the torus the
    square of its angles in (-pi, pi]; the plane a window around the points, else around
    a sample; a mesh is itself, and points behind it show through. Colours are the log
    density with respect to the volume of ``space.metric`` down to 8 nats under the
    maximum. The circle has a curve of density over the angle.

    Parameters
    ----------
    distribution : Distribution
        Or a normflows model whose ``log_prob`` takes points of ``space``.
    points : torch.Tensor or array, shape=(n, *space.shape), optional
    ax : matplotlib.axes.Axes, optional
        For the sphere its projection is "mollweide" or "hammer". Default: of a new
        pyplot figure.
    space : geomstats Manifold, optional
        Default: ``distribution.space``.
    resolution : int
        Cells along the shorter side; a mesh has its faces.
    cmap : str or matplotlib.colors.Colormap

    Returns
    -------
    ax : matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For a space without a picture, an ``ax`` of another projection, or ``points``
        that are no finite points of the space.
    """
    known = space is not None or hasattr(distribution, "space")
    if not (hasattr(distribution, "log_prob") and known):
        kind = type(distribution).__name__
        raise TypeError(f"distribution: expected one with log_prob on a space, got {kind}.")
    space = distribution.space if space is None else space
    seen = view(space)
    if not isinstance(resolution, int) or resolution < 2:
        raise ValueError(f"resolution: expected an integer >= 2, got {resolution!r}.")
    if ax is not None and not hasattr(ax, "name"):
        raise TypeError(f"ax: expected matplotlib's Axes, got {type(ax).__name__}.")
    if ax is not None and ax.name not in seen.projections:
        raise ValueError(
            f"ax: expected a projection in {seen.projections}, got {ax.name!r}; use "
            f'plt.subplots(subplot_kw={{"projection": "{seen.projections[0]}"}}).'
        )
    if points is not None:
        points = seen.coordinates(as_points(space, points, "points").double().cpu())
    edges = seen.edges(distribution, points, resolution)
    log_prob = _log_prob(distribution, seen.cells(edges))
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=seen.size, layout="constrained")
        ax = figure.add_subplot(projection=seen.projections[0])
    seen.draw(ax, edges, log_prob, points, cmap)
    seen.finish(ax)
    return ax


def _weight(distribution):
    """A tensor of the distribution's dtype and device."""
    weights = [*distribution.parameters(), *distribution.buffers()]
    return next(w for w in weights if w.is_floating_point())


@torch.no_grad()
def _log_prob(distribution, points):
    """Log density in chunks, on the dtype and device of the distribution."""
    parts = points.to(_weight(distribution)).split(_CHUNK)
    log_prob = torch.cat([distribution.log_prob(part) for part in parts])
    return log_prob.double().cpu().numpy()


def _colour_range(log_prob):
    """Lowest and highest colour, and whether there is anything below."""
    high = log_prob[np.isfinite(log_prob)].max()
    clipped = log_prob.min() < high - _N_NATS
    return high - _N_NATS if clipped else min(log_prob.min(), high - 1), high, clipped


def _colour_bar(ax, drawn, clipped):
    extend = "min" if clipped else "neither"
    bar = ax.figure.colorbar(drawn, ax=ax, extend=extend, shrink=0.8, pad=0.03)
    bar.set_label("log density (nats)")


def _scatter(ax, points):
    if points is not None:
        few = len(points) <= 500
        size, edge, alpha = (12, "black", 1) if few else (1.5, "none", 0.4)
        style = {"s": size, "color": "white", "edgecolors": edge, "linewidths": 0.5}
        ax.scatter(*points.T.numpy(), alpha=alpha, zorder=3, **style)


def _angle_axis(axis, name):
    axis.set_ticks(np.pi * np.array([-1, -0.5, 0, 0.5, 1]))
    axis.set_ticklabels(["−π", "−π/2", "0", "π/2", "π"])
    axis.set_label_text(name)


class View:
    """What a picture needs of one space; coordinates are those of the space's chart.

    A leaf writes ``edges`` (of the cells along each coordinate) and ``finish`` (ticks);
    ``cells`` are points in the cells' middles, of whose densities ``draw`` makes a map.
    """

    # of the Axes; the first is that of a new one
    projections: tuple[str, ...] = ("rectilinear",)
    size = (5.6, 4.6)  # of a new figure, in inches

    def __init__(self, space):
        self.space = space

    def coordinates(self, points):
        """Points (n, *space.shape) to coordinates."""
        return geometry.chart(self.space, points)[0]

    def points(self, coordinates):
        """Coordinates to points (n, *space.shape)."""
        return geometry.chart_inverse(self.space, coordinates)[0]

    def cells(self, edges):
        centers = torch.cartesian_prod(*map(_middles, edges))
        return self.points(centers.reshape(-1, len(edges)))

    def draw(self, ax, edges, log_prob, points, cmap):
        low, high, clipped = _colour_range(log_prob)
        x, y = (edge.numpy() for edge in edges)
        style = {"cmap": cmap, "vmin": low, "vmax": high, "rasterized": True, "zorder": 0}
        drawn = ax.pcolormesh(x, y, log_prob.reshape(len(x) - 1, len(y) - 1).T, **style)
        _scatter(ax, points)
        _colour_bar(ax, drawn, clipped)


class _Circle(View):
    size = (5.6, 3.2)

    def draw(self, ax, edges, log_prob, points, cmap):
        angle, density = _middles(edges[0]).numpy(), np.exp(log_prob)
        ax.fill_between(angle, density, alpha=0.2, linewidth=0)
        ax.plot(angle, density)
        if points is not None:
            ax.plot(points[:, 0].numpy(), np.zeros(len(points)), "k|", clip_on=False)
        ax.set(ylabel="density", ylim=(0, None))

    def edges(self, distribution, coordinates, n):
        return [_turn(4 * n)]

    def finish(self, ax):
        _angle_axis(ax.xaxis, "angle")
        ax.set_xlim(-math.pi, math.pi)


class _Sphere(View):
    projections = ("mollweide", "hammer")
    size = (8.0, 3.8)

    def coordinates(self, points):
        x, y, z = points.T
        return torch.stack([torch.atan2(y, x), z.clamp(-1, 1).asin()], dim=1)

    def points(self, coordinates):
        longitude, latitude = coordinates.T
        x, y = longitude.cos() * latitude.cos(), longitude.sin() * latitude.cos()
        return torch.stack([x, y, latitude.sin()], dim=1)

    def edges(self, distribution, coordinates, n):
        return [_turn(2 * n), _turn(n) / 2]

    def finish(self, ax):
        ax.set_longitude_grid(60)
        ax.set_latitude_grid(30)
        ax.set(xticklabels=[])
        ax.grid(True, color="white", alpha=0.25, linewidth=0.5)


class _Torus(View):
    def edges(self, distribution, coordinates, n):
        return [_turn(n), _turn(n)]

    def finish(self, ax):
        _angle_axis(ax.xaxis, "first angle")
        _angle_axis(ax.yaxis, "second angle")
        ax.set_aspect("equal")


class _Plane(View):
    def edges(self, distribution, coordinates, n):
        if coordinates is None:
            device = _weight(distribution).device
            sample = seeded_sample(distribution, 1000, 0, device)
            coordinates = self.coordinates(sample.double().cpu())
        low, high = coordinates.amin(0), coordinates.amax(0)
        widest = float((high - low).max()) or 1.0
        reach = 0.6 * (high - low).clamp_min(widest / 4)
        center = (low + high) / 2
        unit = torch.linspace(-1, 1, n + 1, dtype=torch.float64)
        return [c + r * unit for c, r in zip(center, reach, strict=True)]

    def finish(self, ax):
        ax.set(xlabel="x", ylabel="y", aspect="equal")


class _Mesh(View):
    projections = ("3d",)
    size = (6.4, 5.2)

    def coordinates(self, points):
        return points

    def edges(self, distribution, coordinates, n):
        return []

    def cells(self, edges):
        return self.space.centroids

    def draw(self, ax, edges, log_prob, points, cmap):
        low, high, clipped = _colour_range(log_prob)
        x, y, z = self.space.vertices.T.numpy()
        style = {"cmap": cmap, "linewidth": 0, "antialiased": False}  # seams else
        drawn = ax.plot_trisurf(x, y, z, triangles=self.space.faces.numpy(), **style)
        drawn.set_array(np.maximum(log_prob, low))  # no density is no hole
        drawn.set_clim(low, high)
        ax.computed_zorder = False  # it would hide every point
        ax.set_box_aspect([np.ptp(x), np.ptp(y), np.ptp(z)], zoom=1.3)
        _scatter(ax, points)
        _colour_bar(ax, drawn, clipped)

    def finish(self, ax):
        ax.set_axis_off()


def _middles(edges):
    return (edges[1:] + edges[:-1]) / 2


def _turn(n):
    """Edges of n cells around a circle."""
    return torch.linspace(-math.pi, math.pi, n + 1, dtype=torch.float64)


@open_function
def view(space):
    """View of a space, dispatched on its class."""
    raise TypeError(
        f"space: no picture of a density on {type(space).__qualname__} of dimension "
        f"{getattr(space, 'dim', None)}; supported are Hypersphere(1), Hypersphere(2), "
        "products of two circles, Euclidean(2) and MeshSurface (register your own on "
        "plotting.view)."
    )


@view.register(Hypersphere)
def _(space):
    views = {1: _Circle, 2: _Sphere}
    return views.get(space.dim, view.__wrapped__)(space)


@view.register(NFoldManifold)
@view.register(ProductManifold)
def _(space):
    try:
        geometry.chart(space, geometry.origin(space)[None])
    except TypeError:
        return view.__wrapped__(space)
    torus = space.dim == 2 and geometry.is_compact(space)
    return _Torus(space) if torus else view.__wrapped__(space)


view.register(MeshSurface)(_Mesh)


@view.register(Euclidean)
def _(space):
    return _Plane(space) if space.dim == 2 else view.__wrapped__(space)
