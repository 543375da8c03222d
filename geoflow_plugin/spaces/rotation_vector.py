"""Rotations as vectors: SO(2) by an angle, SO(3) by axis times angle, up to half turns.

The balls of radius pi are charts of the circle and of the rotation matrices, whole but for
a null set, and isometric to them: densities, kernels and geodesics are taken there, and so
are continuous through half turns. A function of the coordinates is not: a vector field
v -> w(v) jumps from v to -v at half turns, where its flux leaks out. Fields and potentials
therefore see unit vectors and matrices (``geometry.embed``).
"""

import math

import torch
from geomstats.geometry.invariant_metric import BiInvariantMetric
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.geometry.forward_mode import scaled
from geoflow_plugin.spaces.euclidean import register_open_set
from geoflow_plugin.spaces.rotations import unit_quaternion
from geoflow_plugin.spaces.sphere import sphere

Angles = type(SpecialOrthogonal(2, point_type="vector", equip=False))
RotationVectors = type(SpecialOrthogonal(3, point_type="vector", equip=False))
InvariantVectorMetric = type(SpecialOrthogonal(2, point_type="vector").metric)

_GROUPS: dict[int, SpecialOrthogonal] = {}


def rotation_group(n):
    """SO(n) as matrices with its bi-invariant metric, made once."""
    if n not in _GROUPS:
        _GROUPS[n] = SpecialOrthogonal(n)
    return _GROUPS[n]


# Angles -------------------------------------------------------------------------------


def circle_from_angle(angle):
    """Unit vectors (..., 2) of angles (..., 1)."""
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def angle_from_circle(point):
    """Angles (..., 1) in (-pi, pi] of unit vectors (..., 2)."""
    return torch.atan2(point[..., 1:], point[..., :1])


@geometry.model.register(Angles, geometry.FlatMetric)
def _(space):
    return geometry.Model(sphere(1), circle_from_angle, angle_from_circle)


# Rotation vectors ---------------------------------------------------------------------


def matrix_from_vector(vector):
    """Rotations (..., 3, 3) by |v| about v, for vectors (..., 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    skew = rows.unflatten(-1, (3, 3))
    sine, cosine = (
        f[..., None, None] for f in _half_angle(scaled(vector.square().sum(-1), 1 / 4))
    )
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + cosine * sine * skew + scaled(sine.square(), 1 / 2) * skew @ skew


def _half_angle(square):
    """sin(h) / h and cos(h) as functions of h^2, which have every derivative at zero."""
    small = square < 0.25
    angle = torch.where(small, 1.0, square).sqrt()
    sine = cosine = torch.ones_like(square)
    for k in range(16, 0, -2):
        sine = 1 - scaled(square * sine, 1 / (k * (k + 1)))
        cosine = 1 - scaled(square * cosine, 1 / (k * (k - 1)))
    sine = torch.where(small, sine, angle.sin() / angle)
    return sine, torch.where(small, cosine, angle.cos())


def vector_from_matrix(rotation):
    """Rotation vectors (..., 3), at most pi long, of rotations (..., 3, 3)."""
    quaternion = unit_quaternion(rotation)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    squared = imaginary.square().sum(-1, keepdim=True)
    small = squared < 1e-3
    sine = torch.where(small, 1.0, squared).sqrt()
    # arcsin s / s as a function of s^2, which has every derivative at the identity
    series = torch.zeros_like(squared)
    for coefficient in (63 / 2816, 35 / 1152, 5 / 112, 3 / 40, 1 / 6, 1):
        series = series * squared + coefficient
    return 2 * imaginary * torch.where(small, series, torch.atan2(sine, real) / sine)


@geometry.model.register(RotationVectors, BiInvariantMetric)
@geometry.model.register(RotationVectors, InvariantVectorMetric)
def _(space):
    return geometry.Model(rotation_group(3), matrix_from_vector, vector_from_matrix)


@geometry.is_compact.register(RotationVectors)
def _(space):
    if getattr(space, "metric", None) is None:
        raise UnsupportedError(
            "space: rotation vectors without a metric have no Haar volume; equip the "
            "space with its BiInvariantMetric."
        )
    return True


def log_ball_volume_element(vector):
    """Log of the Haar volume over that of rotation vectors, 2 (1 - cos t) / t^2."""
    # log (sin h / h)^2 as a function of h^2, which is smooth where h = t / 2 is not
    squared = vector.square().sum(-1) / 4
    small = squared < 0.02
    half = torch.where(small, 1.0, squared).sqrt()
    # half turns are h = pi / 2, where sin h / h is large
    exact = 2 * (half.sin() / half).abs().clamp_min(torch.finfo(half.dtype).tiny).log()
    series = torch.zeros_like(squared)
    for denominator in (-467775 / 2, -18900, -2835 / 2, -90, -3):
        series = squared * (series + 1 / denominator)
    return torch.where(small, series, exact)


@geometry.log_volume_element.register(RotationVectors, BiInvariantMetric)
@geometry.log_volume_element.register(RotationVectors, InvariantVectorMetric)
def _(space, point):
    scale = 0.5 * space.dim * math.log(geometry.outer_scale(space))
    return log_ball_volume_element(point) + scale


# Both -----------------------------------------------------------------------------------


@geometry.frobenius_scale.register(InvariantVectorMetric)
def _(metric):
    # geomstats' own inner product raises for SO(2), where it can but be the angles'
    return 1.0 if getattr(metric._space, "n", None) == 2 else None


def shorten(vector):
    """The same rotation by at most half a turn: vectors (..., k), k = 1 or 3."""
    length = geometry.safe_sqrt(vector.square().sum(-1, keepdim=True))
    turns = torch.round(length.detach() / (2 * math.pi))
    return vector - 2 * math.pi * turns * vector / torch.where(turns > 0, length, 1.0)


def excess_length(vector):
    """By how much rotation vectors (..., k) are longer than half a turn, (...,)."""
    return (vector.norm(dim=-1) - math.pi).clamp_min(0)


for _cls in (Angles, RotationVectors):

    @geometry.projection.register(_cls)
    def _(space, point):
        return shorten(point)

    @geometry.constraint_residual.register(_cls)
    def _(space, point):
        return excess_length(point)


for _cls, _to_model in ((Angles, circle_from_angle), (RotationVectors, matrix_from_vector)):
    register_open_set(_cls)

    # whatever the metric
    @geometry.embed.register(_cls)
    def _(space, point, to_model=_to_model):
        return to_model(point)

    @geometry.origin.register(_cls)
    def _(space):
        return torch.zeros(space.dim, dtype=torch.float64)


@geometry.is_compact.register(Angles)
def _(space):
    return True
