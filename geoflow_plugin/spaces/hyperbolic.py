"""Hyperbolic space as the hyperboloid; poincare.py has its other models.

Since x_0 = sqrt(1 + |x'|^2) follows from the last coordinates x', products and distances
are sums of positive terms in x' alone: the indefinite product costs no digits. At radius
r, distances are as exact as points are, eps e^r.
"""

import math

import torch
from geomstats.geometry.hyperboloid import Hyperboloid, HyperboloidMetric

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.spaces.carried_normal import register_carried_normal
from geoflow_plugin.spaces.sphere import complement_basis

# Even functions of a length, as smooth functions of its square -------------------------


def _even(square, coefficients, closed_form, radius):
    """Power series in ``square`` up to ``radius``, a function of its root beyond."""
    small = square < radius
    near = torch.where(small, square, 0.0)
    series = torch.full_like(near, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        series = series * near + coefficient
    root = torch.where(small, 1.0, square).sqrt()
    return torch.where(small, series, closed_form(root))


_SINH = [1 / math.factorial(2 * k + 1) for k in range(8)]
_ASINH = [(-1) ** k * math.comb(2 * k, k) / 4**k / (2 * k + 1) for k in range(7)]


def _sinhc(square):
    """Of r^2, sinh(r) / r."""
    return _even(square, _SINH, lambda r: r.sinh() / r, 0.5)


def _asinhc(square):
    """Of r^2, asinh(r) / r."""
    # log1p is vectorised, asinh is not
    return _even(
        square,
        _ASINH,
        lambda r: (r + r * r / (1 + (1 + r * r).sqrt())).log1p() / r,
        0.01,
    )


# The hyperboloid: flat geometry ---------------------------------------------------------


def _extrinsic(space):
    if getattr(space, "coords_type", "extrinsic") != "extrinsic" or space.intrinsic:
        raise UnsupportedError(
            "space: Hyperboloid is supported with extrinsic points alone, since geomstats' "
            "own shape, exp and log are theirs; for the ball or the half-space take "
            f"PoincareBall({space.dim}) or PoincareHalfSpace({space.dim})."
        )


def _dot(a, b):
    return (a * b).sum(-1, keepdim=True)


def _lift(spatial):
    """The point over its last coordinates."""
    return torch.cat([(1 + _dot(spatial, spatial)).sqrt(), spatial], dim=-1)


def _normal(point):
    """Unit vector of the array that is orthogonal to the hyperboloid."""
    slope = point[..., 1:] / point[..., :1]
    normal = torch.cat([-torch.ones_like(slope[..., :1]), slope], dim=-1)
    return normal / (1 + _dot(slope, slope)).sqrt()


@geometry.is_compact.register(Hyperboloid)
def _(space):
    _extrinsic(space)
    return False


@geometry.projection.register(Hyperboloid)
def _(space, point):
    _extrinsic(space)
    return _lift(point[..., 1:])


@geometry.to_tangent.register(Hyperboloid)
def _(space, vector, base_point):
    _extrinsic(space)
    normal = _normal(base_point)
    return vector - _dot(normal, vector) * normal


@geometry.tangent_basis.register(Hyperboloid)
def _(space, base_point):
    _extrinsic(space)
    return complement_basis(_normal(base_point))


@geometry.origin.register(Hyperboloid)
def _(space):
    _extrinsic(space)
    return torch.eye(space.dim + 1, dtype=torch.float64)[0]


@geometry.constraint_residual.register(Hyperboloid)
def _(space, point):
    # relative, since rounding is
    _extrinsic(space)
    height = _lift(point[..., 1:])[..., 0]
    return (point[..., 0] - height).abs() / height


# The hyperboloid: metric, exponential, laws ---------------------------------------------

_on_hyperboloid = (Hyperboloid, HyperboloidMetric)


def _product(a, b, base_point):
    """Minkowski product of tangent vectors, from their last coordinates."""
    slope = base_point[..., 1:] / base_point[..., :1]
    a, b = a[..., 1:], b[..., 1:]
    along_a, along_b = _dot(slope, a), _dot(slope, b)
    across = _dot(a - along_a * slope, b - along_b * slope)
    return across + along_a * along_b / base_point[..., :1].square()


def to_half_space(point):
    """Isometry to the upper half-space; elementwise, so that equal points stay equal."""
    first, *middle, last = point.unbind(-1)
    # x_0 - x_n = (1 + |middle|^2) / (x_0 + x_n), whichever does not cancel
    ahead = last >= 0
    total = first + torch.where(ahead, last, -last)
    square = sum((x.square() for x in middle), torch.ones_like(last))
    height = torch.where(ahead, total / square, total.reciprocal())
    return torch.stack([*(x * height for x in middle), height], dim=-1)


def _separation(point, base_point):
    """Minkowski square of a difference, 4 sinh^2(d / 2); exactly zero for equal points.

    Arrays (..., n + 1) that broadcast. In the half-space it is |y - z|^2 / (y_n z_n),
    which takes the difference before any product, and few passes over memory.
    """
    y, z = to_half_space(point).unbind(-1), to_half_space(base_point).unbind(-1)
    square, *rest = [(a - b).square() for a, b in zip(y, z, strict=True)]
    for term in rest:
        square = square + term
    return square * y[-1].reciprocal() * z[-1].reciprocal()


def _polar(space, separation):
    """Squared distance, and log volume change (sinh r / r)^(n - 1) of the exponential."""
    stretch = _asinhc(separation / 4)
    log_change = 0.5 * (separation / 4).log1p() - stretch.log()
    squared = geometry.outer_scale(space) * separation * stretch.square()
    return squared, (space.dim - 1) * log_change


@geometry.inner_product.register(*_on_hyperboloid)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    product = _product(tangent_vec_a, tangent_vec_b, base_point)
    return geometry.outer_scale(space) * product.squeeze(-1)


@geometry.log_volume_element.register(*_on_hyperboloid)
def _(space, point):
    # -1/2 log(2 x_0^2 - 1)
    height = point[..., 0]
    value = -height.log() - 0.5 * (2 - height.pow(-2)).log()
    return value + 0.5 * space.dim * math.log(geometry.outer_scale(space))


@geometry.sharp.register(*_on_hyperboloid)
def _(space, covector, base_point):
    reflected = torch.cat([-covector[..., :1], covector[..., 1:]], dim=-1)
    gradient = reflected + _dot(covector, base_point) * base_point
    return gradient / geometry.outer_scale(space)


@geometry.exp.register(*_on_hyperboloid)
def _(space, tangent_vec, base_point):
    square = _product(tangent_vec, tangent_vec, base_point)
    stretch = _sinhc(square)
    cosh = (1 + square * stretch.square()).sqrt()
    return _lift(cosh * base_point[..., 1:] + stretch * tangent_vec[..., 1:])


@geometry.log.register(*_on_hyperboloid)
def _(space, point, base_point):
    separation = _separation(point, base_point).unsqueeze(-1)
    shrink = _asinhc(separation / 4) / (1 + separation / 4).sqrt()
    spatial = base_point[..., 1:]
    spatial_vec = shrink * (point[..., 1:] - spatial - separation / 2 * spatial)
    # tangency gives the first coordinate
    height = _dot(spatial / base_point[..., :1], spatial_vec)
    return torch.cat([height, spatial_vec], dim=-1)


@geometry.dist.register(*_on_hyperboloid)
def _(space, point_a, point_b):
    root = geometry.safe_sqrt(_separation(point_a, point_b))
    return math.sqrt(geometry.outer_scale(space)) * 2 * (root / 2).asinh()


@geometry.random_tangent_normal.register(*_on_hyperboloid)
def _(space, base_point, generator=None):
    # a normal vector at the origin, boosted to the point
    spatial = base_point[..., 1:]
    normal = geometry.random_normal(spatial.shape, base_point, generator)
    along = _dot(spatial, normal)
    moved = normal + along / (1 + base_point[..., :1]) * spatial
    return torch.cat([along, moved], dim=-1) / math.sqrt(geometry.outer_scale(space))


register_carried_normal(
    _on_hyperboloid,
    lambda space, point, center: _polar(space, _separation(point, center)),
    geometry.exp,
)


@geometry.chart.register(*_on_hyperboloid)
def _(space, point):
    # normal coordinates at the origin
    origin = geometry.origin(space).to(point)
    separation = _separation(point, origin)
    scale = 0.5 * space.dim * math.log(geometry.outer_scale(space))
    coordinates = geometry.log(space, point, origin)[..., 1:]
    return coordinates, -_polar(space, separation)[1] - scale


@geometry.chart_inverse.register(*_on_hyperboloid)
def _(space, coordinates):
    stretch = _sinhc(_dot(coordinates, coordinates))
    log_change = (space.dim - 1) * stretch.squeeze(-1).log()
    scale = 0.5 * space.dim * math.log(geometry.outer_scale(space))
    return _lift(stretch * coordinates), log_change + scale


_HYPERBOLOIDS: dict[tuple[int, float], Hyperboloid] = {}


def hyperboloid(dim, scale=1.0):
    """Hyperboloid whose metric is scaled; made once: making it calls geomstats' backend."""
    if (dim, scale) not in _HYPERBOLOIDS:
        space = Hyperboloid(dim)
        if scale != 1.0:
            space.metric = scale * space.metric
        _HYPERBOLOIDS[dim, scale] = space
    return _HYPERBOLOIDS[dim, scale]
