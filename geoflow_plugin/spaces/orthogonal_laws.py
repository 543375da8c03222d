"""Normal laws and kernels on the special orthogonal groups of matrices."""

import itertools
import math

import mpmath
import torch

from geoflow_plugin import geometry
from geoflow_plugin.spaces.orthogonal import Matrices
from geoflow_plugin.spaces.rotations import rotation_angles, skew

_WRAPS = 2  # full turns of each eigen-angle kept by the wrapped normal


def _roots(angles, n):
    """Non-zero eigen-angles of the adjoint action, one for each pair of planes."""
    planes = range(angles.shape[-1])
    roots = [
        angles[..., i] + sign * angles[..., j]
        for i, j in itertools.combinations(planes, 2)
        for sign in (1, -1)
    ]
    if n % 2:
        roots += [angles[..., i] for i in planes]
    if not roots:
        return angles[..., :0]
    return torch.stack(roots, dim=-1)


@geometry.wrapped_normal_log_prob.register(Matrices, geometry.FlatMetric)
def _(space, point, mean, scale):
    # exp shrinks volume by (sin(a/2) / (a/2))^2 for each root a of the algebra element;
    # its preimages shift the eigen-angles by full turns
    n, c = space.n, 2 * geometry.metric_scale(space)
    angles = rotation_angles(mean.mT @ point)
    eps = torch.finfo(angles.dtype).eps
    half_sine = (_roots(angles, n) / 2).sin().abs().clamp_min(eps)
    terms = []
    for turns in itertools.product(range(-_WRAPS, _WRAPS + 1), repeat=n // 2):
        shift = 2 * math.pi * torch.tensor(turns, dtype=angles.dtype)
        shifted = angles + shift.to(angles.device)
        half_root = _roots(shifted, n) / 2
        quotient = half_root.abs() / half_sine
        if not any(turns):
            quotient = 1 / torch.sinc(half_root / math.pi).clamp_min(eps)
        jacobian = 2 * quotient.clamp_min(1e-30).log().sum(-1)
        squared = c * shifted.square().sum(-1)
        terms.append(jacobian - 0.5 * squared / scale.square())
    normalizer = space.dim * (0.5 * math.log(2 * math.pi) + scale.log())
    return torch.logsumexp(torch.stack(terms, dim=-1), dim=-1) - normalizer


@geometry.log_kernel_normalizer.register(Matrices, geometry.FlatMetric)
def _(space, bandwidth):
    # Matrix Langevin law: E exp(t tr R) over Haar measure is a determinant of Bessel
    # functions (Weyl's integration formula), evaluated with as many digits as it needs
    c = geometry.metric_scale(space)
    values = [_log_mean_exp_trace(space.n, c / float(h) ** 2) for h in bandwidth.flatten()]
    log_mean = torch.tensor(values, dtype=torch.float64).reshape(bandwidth.shape)
    return (log_mean + geometry.log_volume(space)).to(bandwidth)


def _log_mean_exp_trace(n, t):
    """Log of the Haar mean of exp(t (tr R - n)) on SO(n)."""
    m = n // 2
    digits = 30 + int(n * n / 2 * max(0.0, math.log10(t + 1)))
    with mpmath.workdps(digits):
        bessel = [mpmath.besseli(k, 2 * mpmath.mpf(t)) for k in range(n + 1)]
        sign, offset = (-1, 1) if n % 2 else (1, 0)
        matrix = mpmath.matrix(m, m)
        for j, k in itertools.product(range(m), repeat=2):
            matrix[j, k] = bessel[abs(j - k)] + sign * bessel[j + k + offset]
        value = mpmath.log(mpmath.det(matrix)) - n * mpmath.mpf(t)
        value += t if n % 2 else -mpmath.log(2)
        return float(value)


@geometry.random_kernel.register(Matrices, geometry.FlatMetric)
def _(space, center, bandwidth, generator=None):
    # Chords are at least 2 / pi of geodesics, so a normal law pi / 2 as wide dominates;
    # where that is wider than the group, uniform proposals do better
    result, pending = torch.empty_like(center), torch.arange(len(center))
    pending = pending.to(center.device)
    log_volume = geometry.log_volume(space)
    while len(pending):
        base, h = center[pending], bandwidth[pending]
        log_width = space.dim * (math.pi / 2 * h * math.sqrt(2 * math.pi)).log()
        narrow = (log_width < log_volume)[:, None, None]
        tangent = geometry.random_tangent_normal(space, base, generator)
        tangent = tangent * (math.pi / 2) * h[:, None, None]
        uniform = geometry.random_uniform(space, len(base), generator, base.device, base.dtype)
        point = torch.where(narrow, geometry.exp(space, tangent, base), uniform)
        log_density = -0.5 * _paired_squared_chord(space, point, base) / h.square()
        log_accept = torch.where(
            narrow.flatten(),
            log_density + _log_domination(space, base, tangent, h),
            log_density,
        )
        draw = torch.rand(h.shape, generator=generator, device=h.device, dtype=h.dtype).log()
        accepted = draw < log_accept
        result[pending[accepted]] = point[accepted]
        pending = pending[~accepted]
    return result


def _paired_squared_chord(space, point, center):
    return geometry.metric_scale(space) * (point - center).square().sum((-2, -1))


def _log_domination(space, base, tangent, h):
    """Log of exp's volume change over the proposal's density; -inf past the cut locus."""
    angles = torch.linalg.eigvalsh(1j * skew(base.mT @ tangent))[..., -(space.n // 2) :]
    shrinkage = torch.sinc(_roots(angles, space.n) / (2 * math.pi)).abs()
    squared = 2 * geometry.metric_scale(space) * angles.square().sum(-1)
    log_ratio = 2 * shrinkage.clamp_min(1e-30).log().sum(-1)
    log_ratio = log_ratio + 0.5 * squared / (math.pi / 2 * h).square()
    return torch.where(angles.amax(-1) > math.pi, -math.inf, log_ratio)
