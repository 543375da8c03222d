"""Hyperspheres of any dimension, the circle included, as unit vectors."""

import math

import numpy as np
import torch
from geomstats.geometry.hypersphere import Hypersphere, HypersphereMetric
from scipy import special

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError

_WRAPS = 4  # full turns kept on each side; exp(-(8 pi)^2 / 2 scale^2) is dropped


_SPHERES: dict[int, Hypersphere] = {}


def sphere(dim):
    """Unit sphere of a dimension, made once: making it calls geomstats' backend."""
    if dim not in _SPHERES:
        _SPHERES[dim] = Hypersphere(dim)
    return _SPHERES[dim]


def _extrinsic(space):
    if space.intrinsic:
        raise UnsupportedError(
            "space: Hypersphere(intrinsic=True) is not supported, since geomstats' own "
            "exp, log and belongs are wrong there; use unit vectors "
            f"(Hypersphere({space.dim})) or, for a torus, NFoldManifold(Hypersphere(1),"
            " n)."
        )


def _dot(a, b):
    return (a * b).sum(-1, keepdim=True)


@geometry.frobenius_scale.register(HypersphereMetric)
def _(metric):
    return 1.0


@geometry.projection.register(Hypersphere)
def _(space, point):
    _extrinsic(space)
    return point / point.norm(dim=-1, keepdim=True)


@geometry.to_tangent.register(Hypersphere)
def _(space, vector, base_point):
    _extrinsic(space)
    return vector - _dot(base_point, vector) * base_point


@geometry.tangent_basis.register(Hypersphere)
def _(space, base_point):
    _extrinsic(space)
    return complement_basis(base_point)


@geometry.mean_curvature.register(Hypersphere)
def _(space, point):
    _extrinsic(space)
    return -space.dim * point


def complement_basis(unit):
    """Orthonormal basis (..., k - 1, k) of what is orthogonal to unit vectors (..., k)."""
    # Columns of the Householder reflection that takes the first axis to -+ the vector.
    first = unit[..., :1]
    sign = torch.where(first >= 0, 1.0, -1.0).to(unit.dtype)
    normal = torch.cat([first + sign, unit[..., 1:]], dim=-1)
    weight = 2 / _dot(normal, normal)
    eye = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
    outer = (weight * normal)[..., 1:, None] * normal[..., None, :]
    return eye[1:] - outer


@geometry.origin.register(Hypersphere)
def _(space):
    _extrinsic(space)
    return torch.eye(space.dim + 1, dtype=torch.float64)[0]


@geometry.constraint_residual.register(Hypersphere)
def _(space, point):
    _extrinsic(space)
    return (point.norm(dim=-1) - 1).abs()


@geometry.exp.register(Hypersphere, geometry.FlatMetric)
def _(space, tangent_vec, base_point):
    angle = geometry.safe_sqrt(_dot(tangent_vec, tangent_vec))
    # torch.sinc is smooth at zero
    sine = torch.sinc(angle / math.pi)
    return geometry.projection(space, angle.cos() * base_point + sine * tangent_vec)


@geometry.log.register(Hypersphere, geometry.FlatMetric)
def _(space, point, base_point):
    tangent = geometry.to_tangent(space, point, base_point)
    length = geometry.safe_sqrt(_dot(tangent, tangent))
    angle = torch.atan2(length, _dot(point, base_point))
    small = length == 0
    stretch = torch.where(small, 1.0, angle / torch.where(small, 1.0, length))
    # at the antipode any direction will do
    across = math.pi * geometry.tangent_basis(space, base_point)[..., 0, :]
    return torch.where(small & (angle > 1), across, stretch * tangent)


@geometry.dist.register(Hypersphere, geometry.FlatMetric)
def _(space, point_a, point_b):
    return math.sqrt(geometry.metric_scale(space)) * _angle(point_a, point_b)


def _angle(point, base_point):
    """Angle between unit vectors, accurate near 0 and pi; gradient 0 at both."""
    cosine = (point * base_point).sum(-1)
    tangent = point - cosine.unsqueeze(-1) * base_point
    return torch.atan2(geometry.safe_sqrt(tangent.square().sum(-1)), cosine)


@geometry.is_compact.register(Hypersphere)
def _(space):
    _extrinsic(space)
    return True


@geometry.log_volume.register(Hypersphere, geometry.FlatMetric)
def _(space):
    half = (space.dim + 1) / 2
    unit = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
    return unit + 0.5 * space.dim * math.log(geometry.metric_scale(space))


@geometry.unit_cube_dim.register(Hypersphere, geometry.FlatMetric)
def _(space):
    _extrinsic(space)
    return space.dim if space.dim <= 2 else space.dim + 1


@geometry.uniform_from_cube.register(Hypersphere, geometry.FlatMetric)
def _(space, cube):
    if space.dim > 2:
        tiny = torch.finfo(cube.dtype).eps / 2
        normal = torch.special.ndtri(cube.clamp(tiny, 1 - tiny))
        return geometry.projection(space, normal)
    angle = 2 * math.pi * cube[:, :1]
    circle = torch.cat([angle.cos(), angle.sin()], dim=-1)
    if space.dim == 1:
        return circle
    # Archimedes: the height of a uniform point of the sphere is uniform
    height = 2 * cube[:, 1:] - 1
    radius = (1 - height.square()).clamp_min(0).sqrt()
    return geometry.projection(space, torch.cat([radius * circle, height], dim=-1))


@geometry.wrapped_normal_log_prob.register(Hypersphere, geometry.FlatMetric)
def _(space, point, mean, scale):
    # x = exp_mean(s u) for s = angle + 2 pi k (either sign), and the exponential
    # shrinks volume by (|sin s| / |s|)^(dim - 1)
    c = geometry.metric_scale(space)
    angle = _angle(point, mean)
    turns = torch.arange(-_WRAPS, _WRAPS + 1, dtype=point.dtype, device=point.device)
    length = angle.unsqueeze(-1) + 2 * math.pi * turns
    quotient = length.abs() / _sine(angle).unsqueeze(-1)
    central = 1 / torch.sinc(angle / math.pi).clamp_min(torch.finfo(angle.dtype).eps)
    quotient = torch.where(turns == 0, central.unsqueeze(-1), quotient)
    exponent = -0.5 * c * (length / scale).square()
    terms = exponent + (space.dim - 1) * quotient.clamp_min(1e-30).log()
    normalizer = space.dim * (0.5 * math.log(2 * math.pi) + torch.log(scale))
    return torch.logsumexp(terms, dim=-1) - normalizer


def _sine(angle):
    return angle.sin().abs().clamp_min(torch.finfo(angle.dtype).eps)


@geometry.log_kernel_normalizer.register(Hypersphere, geometry.FlatMetric)
def _(space, bandwidth):
    # von Mises-Fisher with concentration kappa = c / bandwidth^2
    c = geometry.metric_scale(space)
    kappa = c / bandwidth.detach().double().cpu().numpy() ** 2
    order = (space.dim - 1) / 2
    log_bessel = _log_scaled_bessel(order, kappa)
    value = 0.5 * (space.dim + 1) * math.log(2 * math.pi) - order * np.log(kappa)
    value = value + log_bessel + 0.5 * space.dim * math.log(c)
    return torch.as_tensor(value).to(bandwidth)


def _log_scaled_bessel(order, kappa):
    """Log of exp(-kappa) I_order(kappa); scipy gives up above 1e9, Hankel does not."""
    a = 4 * order**2
    with np.errstate(all="ignore"):
        hankel = 1 - (a - 1) / (8 * kappa) + (a - 1) * (a - 9) / (128 * kappa**2)
        large = np.log(hankel) - 0.5 * np.log(2 * math.pi * kappa)
        return np.where(kappa > 1e7, large, np.log(special.ive(order, kappa)))


@geometry.random_kernel.register(Hypersphere, geometry.FlatMetric)
def _(space, center, bandwidth, generator=None):
    kappa = geometry.metric_scale(space) / bandwidth.square()
    draw = _von_mises_gap if space.dim == 1 else _von_mises_fisher_gap
    gap = draw(space.dim, kappa, generator).unsqueeze(-1)
    direction = geometry.random_tangent_normal(space, center, generator)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    radius = (gap * (2 - gap)).clamp_min(0).sqrt()
    return geometry.projection(space, (1 - gap) * center + radius * direction)


def _rejection(kappa, propose):
    """Draw one accepted value per entry of ``kappa``; propose -> (value, log accept)."""
    value = torch.empty_like(kappa)
    pending = torch.arange(len(kappa), device=kappa.device)
    while len(pending):
        candidate, accepted = propose(kappa[pending])
        value[pending[accepted]] = candidate[accepted]
        pending = pending[~accepted]
    return value


def _von_mises_gap(dim, kappa, generator):
    """1 - cos of a von Mises angle: normal proposals, since 1 - cos t >= 2 t^2 / pi^2."""

    def propose(kappa):
        # normal proposals where concentrated, uniform ones where not
        normal = geometry.random_normal(kappa.shape, kappa, generator)
        uniform = torch.rand(
            2, *kappa.shape, generator=generator, device=kappa.device, dtype=kappa.dtype
        )
        narrow = kappa > 1
        angle = torch.where(narrow, math.pi / 2 * normal / kappa.sqrt(), math.pi * uniform[0])
        bound = torch.where(narrow, 2 * kappa * (angle / math.pi).square(), 0)
        gap = 2 * (angle / 2).sin().square()
        accepted = (uniform[1].log() < bound - kappa * gap) & (angle.abs() <= math.pi)
        return gap, accepted

    return _rejection(kappa, propose)


def _von_mises_fisher_gap(dim, kappa, generator):
    """1 - <x, center> for dim >= 2, density ~ exp(-kappa w) (w (2 - w))^(dim/2 - 1)."""

    def propose(kappa):
        normal = geometry.random_normal((*kappa.shape, dim + 1), kappa, generator)
        uniform = torch.rand(
            kappa.shape, generator=generator, device=kappa.device, dtype=kappa.dtype
        ).log()
        gamma = normal[..., :dim].square().sum(-1) / (2 * kappa)
        tail = (dim / 2 - 1) * ((2 - gamma) / 2).clamp_min(1e-30).log()
        height = normal[..., 0] / normal.norm(dim=-1)
        narrow = kappa > dim / 2
        gap = torch.where(narrow, gamma, 1 - height)
        log_accept = torch.where(narrow, tail, -kappa * (1 - height))
        return gap, (uniform < log_accept) & (gap <= 2)

    return _rejection(kappa, propose)


def _circle(space):
    if space.dim != 1:
        raise UnsupportedError(
            f"space: Hypersphere({space.dim}) has no chart that covers it; angles serve "
            "the circle and tori only."
        )


@geometry.chart.register(Hypersphere)
def _(space, point):
    _circle(space)
    angle = torch.atan2(point[..., 1:], point[..., :1])
    return angle, -geometry.log_volume_element(space, point)


@geometry.chart_inverse.register(Hypersphere)
def _(space, coordinates):
    _circle(space)
    point = torch.cat([coordinates.cos(), coordinates.sin()], dim=-1)
    return point, geometry.log_volume_element(space, point)
