"""Special orthogonal groups SO(n) as n x n matrices with their bi-invariant metric.

geomstats' BiInvariantMetric is half the Frobenius product, so that a rotation of the
plane by an angle t lies at distance t from the identity.
"""

import itertools
import math

import mpmath
import torch
from geomstats.geometry.invariant_metric import BiInvariantMetric
from geomstats.geometry.matrices import MatricesMetric
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

from geoflow_plugin import geometry
from geoflow_plugin.geometry.forward_mode import scaled

Matrices = type(SpecialOrthogonal(2, equip=False))
_WRAPS = 2  # full turns of each eigen-angle kept by the wrapped normal


@geometry.frobenius_scale.register(BiInvariantMetric)
def _(metric):
    return 0.5 if metric._space.point_ndim == 2 else None  # not of rotation vectors


@geometry.frobenius_scale.register(MatricesMetric)
def _(metric):
    return 1.0


def _skew(matrix):
    return scaled(matrix - matrix.mT, 1 / 2)


@geometry.projection.register(Matrices)
def _(space, point):
    # The polar factor by Newton's iteration, since derivatives of the singular value
    # decomposition do not exist at a rotation; a matrix of negative determinant first
    # has its weakest singular direction turned round.
    left, _, right = torch.linalg.svd(point.detach())
    sign = torch.linalg.det(left @ right).sign()
    weakest = right[..., -1:, :]
    turn = (1 - sign)[..., None, None] * (weakest.mT @ weakest)
    return _polar_factor(point - point @ turn)


@geometry.to_tangent.register(Matrices)
def _(space, vector, base_point):
    return base_point @ _skew(base_point.mT @ vector)


def _lie_algebra_basis(n, like):
    """Frobenius-orthonormal basis of the skew matrices, shape (n (n - 1) / 2, n, n)."""
    rows, columns = torch.triu_indices(n, n, offset=1, device=like.device)
    index = torch.arange(len(rows), device=like.device)
    basis = torch.zeros(len(rows), n, n, dtype=like.dtype, device=like.device)
    half = torch.full_like(index, 1, dtype=like.dtype) / math.sqrt(2)
    basis = basis.index_put((index, rows, columns), half)
    return basis.index_put((index, columns, rows), -half)


@geometry.tangent_basis.register(Matrices)
def _(space, base_point):
    return base_point.unsqueeze(-3) @ _lie_algebra_basis(space.n, base_point)


@geometry.mean_curvature.register(Matrices)
def _(space, point):
    # the squares of an orthonormal basis of the skew matrices add up to (1 - n) / 2
    return (1 - space.n) / 2 * point


@geometry.origin.register(Matrices)
def _(space):
    return torch.eye(space.n, dtype=torch.float64)


@geometry.constraint_residual.register(Matrices)
def _(space, point):
    eye = torch.eye(space.n, dtype=point.dtype, device=point.device)
    defect = (point.mT @ point - eye).abs().flatten(-2).amax(-1)
    reflected = torch.linalg.det(point) < 0
    return torch.where(reflected, torch.full_like(defect, 2.0), defect)


# Exponential and logarithm ------------------------------------------------------------


@geometry.exp.register(Matrices)
def _(space, tangent_vec, base_point):
    return base_point @ torch.linalg.matrix_exp(_skew(base_point.mT @ tangent_vec))


@geometry.retraction.register(Matrices)
def _(space, tangent_vec, base_point):
    # Cayley: agrees with the exponential to second order and stays in the group
    half = _skew(base_point.mT @ tangent_vec) / 2
    eye = torch.eye(space.n, dtype=half.dtype, device=half.device)
    # not linalg.solve: torch 2.13 gets its second derivatives in forward mode wrong
    return base_point @ torch.linalg.inv(eye - half) @ (eye + half)


@geometry.log.register(Matrices)
def _(space, point, base_point):
    return base_point @ _log_at_identity(base_point.mT @ point)


@geometry.dist.register(Matrices)
def _(space, point_a, point_b):
    angles = _rotation_angles(point_a.mT @ point_b)
    squared = 2 * geometry.metric_scale(space) * angles.square().sum(-1)
    return geometry.safe_sqrt(squared)


def _log_at_identity(rotation):
    n = rotation.shape[-1]
    if n == 2:
        angle = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
        zero = torch.zeros_like(angle)
        return torch.stack([zero, -angle, angle, zero], -1).reshape(rotation.shape)
    if n > 3:
        return _log_by_square_roots(rotation)
    # Rodrigues from the unit quaternion, whose largest component is never small, so
    # that the axis keeps its digits up to and at a half turn
    quaternion = _quaternion(rotation)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    sine = geometry.safe_sqrt(imaginary.square().sum(-1, keepdim=True))
    half = torch.atan2(sine, real)
    vector = 2 * imaginary / torch.sinc(half / math.pi)
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).reshape(rotation.shape)


def _quaternion(rotation):
    """Unit quaternion (real part first, >= 0) of 3 x 3 rotations."""
    r = rotation
    trace = r.diagonal(dim1=-2, dim2=-1).sum(-1)
    ij = {(i, j): r[..., i, j] for i in range(3) for j in range(3)}
    diagonal = [2 * ij[i, i] - trace for i in range(3)]
    w = [ij[2, 1] - ij[1, 2], ij[0, 2] - ij[2, 0], ij[1, 0] - ij[0, 1]]
    s = {(i, j): ij[i, j] + ij[j, i] for i, j in [(0, 1), (0, 2), (1, 2)]}
    # Rows are 4 q_k q for each component k; take the row of the largest component.
    table = torch.stack(
        [
            torch.stack([1 + trace, *w], -1),
            torch.stack([w[0], 1 + diagonal[0], s[0, 1], s[0, 2]], -1),
            torch.stack([w[1], s[0, 1], 1 + diagonal[1], s[1, 2]], -1),
            torch.stack([w[2], s[0, 2], s[1, 2], 1 + diagonal[2]], -1),
        ],
        dim=-2,
    )
    largest = table.diagonal(dim1=-2, dim2=-1).detach().argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    row = table.gather(-2, index).squeeze(-2)
    row = torch.where(row[..., :1] < 0, -row, row)
    return row / row.norm(dim=-1, keepdim=True)


def _log_by_square_roots(rotation, n_roots=6):
    """Inverse scaling and squaring: sqrt(R) is the polar factor of I + R."""
    eye = torch.eye(rotation.shape[-1], dtype=rotation.dtype, device=rotation.device)
    # At a half turn the logarithm is not unique and I + R is singular: one of the
    # logarithms is picked by turning R a little, by less than it could be known.
    step = 1e-6 if rotation.dtype == torch.float64 else 5e-3
    basis = _lie_algebra_basis(rotation.shape[-1], rotation)
    weight = torch.arange(1, len(basis) + 1, dtype=basis.dtype, device=basis.device)
    turn = torch.linalg.matrix_exp(
        step * torch.tensordot(weight / weight.norm(), basis, dims=1)
    )
    near = _rotation_angles(rotation.detach()).amax(-1) > math.pi - step
    rotation = torch.where(near[..., None, None], rotation @ turn, rotation)
    for _ in range(n_roots):
        rotation = _polar_factor(eye + rotation)
    sine = _skew(rotation)
    square = sine @ sine
    term, total = sine, sine
    for k in range(1, 8):  # arcsin series on i times the sine
        term = -term @ square * ((2 * k - 1) ** 2 / (2 * k * (2 * k + 1)))
        total = total + term
    return total * 2**n_roots


def _polar_factor(matrix, n_steps=12):
    """Orthogonal factor by Higham's scaled Newton iteration; derivatives are finite."""
    for _ in range(n_steps):
        inverse = torch.linalg.inv(matrix).mT
        norms = [m.square().sum((-2, -1), keepdim=True) for m in (inverse, matrix)]
        scale = (norms[0] / norms[1]) ** 0.25
        matrix = (scale * matrix + inverse / scale) / 2
    return matrix


# The Haar measure ---------------------------------------------------------------------


@geometry.is_compact.register(Matrices)
def _(space):
    return True


@geometry.log_volume.register(Matrices)
def _(space):
    # SO(n) = S^(n-1) x ... x S^1 for the metric in which plane rotations have unit
    # speed (half Frobenius)
    spheres = sum(
        math.log(2) + k / 2 * math.log(math.pi) - math.lgamma(k / 2)
        for k in range(2, space.n + 1)
    )
    return spheres + 0.5 * space.dim * math.log(2 * geometry.metric_scale(space))


@geometry.unit_cube_dim.register(Matrices)
def _(space):
    return {2: 1, 3: 3}.get(space.n, space.n**2)


@geometry.uniform_from_cube.register(Matrices)
def _(space, cube):
    if space.n == 2:
        angle = 2 * math.pi * cube[:, 0]
        rows = [angle.cos(), -angle.sin(), angle.sin(), angle.cos()]
        return torch.stack(rows, dim=-1).reshape(-1, 2, 2)
    if space.n == 3:
        return _rotation_from_quaternion(_shoemake(cube))
    tiny = torch.finfo(cube.dtype).eps / 2
    normal = torch.special.ndtri(cube.clamp(tiny, 1 - tiny))
    # Q of a Gaussian matrix is Haar on O(n) once the signs of diag(R) are made positive
    q, r = torch.linalg.qr(normal.reshape(-1, space.n, space.n))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    sign = torch.linalg.det(q).sign()[:, None, None]
    return torch.cat([q[..., :1] * sign, q[..., 1:]], dim=-1)


def _shoemake(cube):
    """Uniform unit quaternions from three uniforms (Shoemake, Graphics Gems III)."""
    u, a, b = cube[:, 0], 2 * math.pi * cube[:, 1], 2 * math.pi * cube[:, 2]
    r, s = (1 - u).sqrt(), u.sqrt()
    return torch.stack([r * a.sin(), r * a.cos(), s * b.sin(), s * b.cos()], dim=-1)


def _rotation_from_quaternion(quaternion):
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*w.shape, 3, 3)


# Normal laws --------------------------------------------------------------------------


def _rotation_angles(rotation):
    """Eigen-angles in (-pi, pi] of the floor(n / 2) planes a rotation turns."""
    n = rotation.shape[-1]
    if n == 2:
        return torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0]).unsqueeze(-1)
    if n == 3:
        quaternion = _quaternion(rotation)
        sine = geometry.safe_sqrt(quaternion[..., 1:].square().sum(-1))
        return 2 * torch.atan2(sine, quaternion[..., 0]).unsqueeze(-1)
    # conjugate pairs; a half turn may come as the same sign twice
    angles = torch.linalg.eigvals(rotation).angle().abs()
    return angles.sort(dim=-1, descending=True).values[..., : 2 * (n // 2) : 2]


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


@geometry.wrapped_normal_log_prob.register(Matrices)
def _(space, point, mean, scale):
    # exp shrinks volume by (sin(a/2) / (a/2))^2 for each root a of the algebra element;
    # its preimages shift the eigen-angles by full turns
    n, c = space.n, 2 * geometry.metric_scale(space)
    angles = _rotation_angles(mean.mT @ point)
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


@geometry.log_kernel_normalizer.register(Matrices)
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


@geometry.random_kernel.register(Matrices)
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
    skew = _skew(base.mT @ tangent)
    angles = torch.linalg.eigvalsh(1j * skew)[..., -(space.n // 2) :]
    shrinkage = torch.sinc(_roots(angles, space.n) / (2 * math.pi)).abs()
    squared = 2 * geometry.metric_scale(space) * angles.square().sum(-1)
    log_ratio = 2 * shrinkage.clamp_min(1e-30).log().sum(-1)
    log_ratio = log_ratio + 0.5 * squared / (math.pi / 2 * h).square()
    return torch.where(angles.amax(-1) > math.pi, -math.inf, log_ratio)
