"""The Heisenberg group as R^3 with a left- or right-invariant metric.

Translations have unit Jacobian, so the volume is Lebesgue's. geomstats' exponential is the
group's, not the metric's, which is here: under a left-invariant metric the shadow of a
geodesic in the plane is an arc of a circle, and its height is what it climbs, at constant
rate, plus the area that the arc cuts off. Beyond the cut locus, the vertical line through
a point from heights of 2 pi on, the metric's exponential is not injective; normal laws and
kernels are those of the coordinates, which are normal coordinates of the group.

The right-invariant geometry is the mirror image of the left-invariant one.
"""

import math

import torch
from geomstats.geometry.heisenberg import HeisenbergVectors

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import unsupported
from geoflow_plugin.spaces.euclidean import euclidean, register_open_set
from geoflow_plugin.spaces.rotation_vector import InvariantVectorMetric

register_open_set(HeisenbergVectors)

_invariant = (HeisenbergVectors, InvariantVectorMetric)


def _sign(space):
    return 1 if geometry.bare_metric(space).left else -1


def _area(a, b):
    """Area of the parallelogram under two vectors' first two coordinates."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _translated(space, vector, point, sign):
    """Tangent vectors at the identity moved to a point (sign 1), or back (sign -1)."""
    height = vector[..., 2] + sign * _sign(space) * _area(point, vector) / 2
    plane = vector[..., :2].expand(*height.shape, 2)
    return torch.cat([plane, height.unsqueeze(-1)], dim=-1)


@geometry.inner_product.register(*_invariant)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    matrix = torch.as_tensor(geometry.bare_metric(space).metric_mat_at_identity).to(base_point)
    a = _translated(space, tangent_vec_a, base_point, -1)
    b = _translated(space, tangent_vec_b, base_point, -1)
    return geometry.outer_scale(space) * (a @ matrix * b).sum(-1)


@geometry.log_volume_element.register(*_invariant)
def _(space, point):
    matrix = torch.as_tensor(geometry.bare_metric(space).metric_mat_at_identity).to(point)
    root = torch.linalg.cholesky(geometry.outer_scale(space) * matrix)
    value = root.diagonal().log().sum()
    return value.expand(point.shape[:-1])


@geometry.model.register(HeisenbergVectors)
def _(space):
    return geometry.Model(euclidean(3), lambda x: x, lambda z: z, isometric=False)


@geometry.projection.register(HeisenbergVectors)
def _(space, point):
    return point


@geometry.constraint_residual.register(HeisenbergVectors)
def _(space, point):
    return torch.zeros_like(point[..., 0])


# Geodesics -----------------------------------------------------------------------------


def _circular(space):
    """Refuses metrics under which the shadows of geodesics are no circles."""
    matrix = torch.as_tensor(geometry.bare_metric(space).metric_mat_at_identity)
    if not torch.equal(matrix, torch.eye(3).to(matrix)):
        raise unsupported(space, "exp")


def _series(turn, first, closed_form):
    """Sum of (-1)^k t^(2 k) / (2 k + first)!, which has a closed form away from zero."""
    square = turn.square()
    small = square < 1
    near, value = torch.where(small, square, 0), torch.zeros_like(square)
    for k in range(9, -1, -1):
        value = 1 / math.factorial(2 * k + first) - value * near
    return torch.where(small, value, closed_form(torch.where(small, 1, turn)))


def _haversine(turn):
    """(1 - cos t) / t^2."""
    # by the half angle, which keeps the digits near full turns
    return _series(turn, 2, lambda t: 2 * ((t / 2).sin() / t).square())


def _segment(turn):
    """(t - sin t) / t^3."""
    return _series(turn, 3, lambda t: (t - t.sin()) / t**3)


def _sinc(turn):
    return torch.sinc(turn / math.pi)


def _product(a, b):
    height = a[..., 2] + b[..., 2] + _area(a, b) / 2
    plane = a[..., :2] + b[..., :2]
    return torch.cat([plane, height.unsqueeze(-1)], dim=-1)


def _turned(vector, sine, cosine):
    x, y = vector.unbind(-1)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=-1)


@geometry.exp.register(*_invariant)
def _(space, tangent_vec, base_point):
    _circular(space)
    vector = _translated(space, tangent_vec, base_point, -1)
    plane, turn = vector[..., :2], vector[..., 2]
    shadow = _turned(plane, _sign(space) * turn * _haversine(turn), _sinc(turn))
    height = turn + plane.square().sum(-1) * turn * _segment(turn) / 2
    step = torch.cat([shadow, height.unsqueeze(-1)], dim=-1)
    pair = (base_point, step) if _sign(space) == 1 else (step, base_point)
    return _product(*pair)


def _climb(turn, chord):
    """Height reached by the arc over a squared chord, and its derivative in the turn."""
    rise, bend = _segment(turn), _haversine(turn)
    slope = (1 - rise * _sinc(turn) / bend.square()) / 4
    return turn + chord * turn * rise / (4 * bend), 1 + chord * slope


def _turn(height, chord, n_orders=4):
    """The turn, at most a full one, of the arc that reaches a height: ``_climb`` grows."""
    goal, fixed = height.detach().abs(), chord.detach()
    low, high = torch.zeros_like(goal), torch.full_like(goal, 2 * math.pi)
    for _ in range(64):
        middle = (low + high) / 2
        below = _climb(middle, fixed)[0] < goal
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    turn = torch.where(height < 0, -low, low)
    slope = _climb(turn, fixed)[1]
    for _ in range(n_orders):  # each step makes one more order of derivatives right
        turn = turn - (_climb(turn, chord)[0] - height) / slope
    return turn


@geometry.log.register(*_invariant)
def _(space, point, base_point):
    _circular(space)
    pair = (-base_point, point) if _sign(space) == 1 else (point, -base_point)
    step = _product(*pair)
    shadow, height = step[..., :2], step[..., 2]
    chord = shadow.square().sum(-1)
    # on the cut locus any direction will do, of the length that climbs to the height
    beyond = height.abs() - 2 * math.pi
    cut = (chord < torch.finfo(chord.dtype).eps) & (beyond > 0)
    turn = _turn(height, torch.where(cut, 1, chord))
    shrunk = _sinc(turn) / (2 * _haversine(turn))
    plane = _turned(shadow, -_sign(space) * turn / 2, shrunk)
    full = geometry.safe_sqrt(4 * math.pi * torch.where(cut, beyond, 0))
    full = torch.stack([full, torch.zeros_like(full)], dim=-1)
    plane = torch.where(cut.unsqueeze(-1), full, plane)
    turn = torch.where(cut, 2 * math.pi * height.sign(), turn)
    vector = torch.cat([plane, turn.unsqueeze(-1)], dim=-1)
    return _translated(space, vector, base_point, 1)
