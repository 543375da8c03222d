"""Rotation matrices: skew parts, angles, quaternions, polar factors, logarithms."""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.geometry.forward_mode import scaled
from geoflow_plugin.spaces.linear import skew_basis


def skew(matrix):
    """Skew-symmetric part."""
    return scaled(matrix - matrix.mT, 1 / 2)


def rotation_angles(rotation):
    """Eigen-angles in (-pi, pi] of the floor(n / 2) planes a rotation turns."""
    n = rotation.shape[-1]
    if n == 2:
        return torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0]).unsqueeze(-1)
    if n == 3:
        quaternion = unit_quaternion(rotation)
        sine = geometry.safe_sqrt(quaternion[..., 1:].square().sum(-1))
        return 2 * torch.atan2(sine, quaternion[..., 0]).unsqueeze(-1)
    # conjugate pairs; a half turn may come as the same sign twice
    angles = torch.linalg.eigvals(rotation).angle().abs()
    return angles.sort(dim=-1, descending=True).values[..., : 2 * (n // 2) : 2]


def log_at_identity(rotation):
    """Skew logarithm of rotations, of the least angles."""
    n = rotation.shape[-1]
    if n == 2:
        angle = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
        zero = torch.zeros_like(angle)
        return torch.stack([zero, -angle, angle, zero], -1).reshape(rotation.shape)
    if n > 3:
        return _log_by_square_roots(rotation)
    # Rodrigues from the unit quaternion, whose largest component is never small, so
    # that the axis keeps its digits up to and at a half turn
    quaternion = unit_quaternion(rotation)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    sine = geometry.safe_sqrt(imaginary.square().sum(-1, keepdim=True))
    half = torch.atan2(sine, real)
    vector = 2 * imaginary / torch.sinc(half / math.pi)
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).reshape(rotation.shape)


def unit_quaternion(rotation):
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
    basis = skew_basis(rotation.shape[-1], rotation)
    weight = torch.arange(1, len(basis) + 1, dtype=basis.dtype, device=basis.device)
    turn = torch.linalg.matrix_exp(
        step * torch.tensordot(weight / weight.norm(), basis, dims=1)
    )
    near = rotation_angles(rotation.detach()).amax(-1) > math.pi - step
    rotation = torch.where(near[..., None, None], rotation @ turn, rotation)
    for _ in range(n_roots):
        rotation = polar_factor(eye + rotation)
    sine = skew(rotation)
    square = sine @ sine
    term, total = sine, sine
    for k in range(1, 8):  # arcsin series on i times the sine
        term = -term @ square * ((2 * k - 1) ** 2 / (2 * k * (2 * k + 1)))
        total = total + term
    return total * 2**n_roots


def polar_factor(matrix, n_steps=12):
    """Orthogonal factor by Higham's scaled Newton iteration; derivatives are finite."""
    for _ in range(n_steps):
        inverse = torch.linalg.inv(matrix).mT
        norms = [m.square().sum((-2, -1), keepdim=True) for m in (inverse, matrix)]
        scale = (norms[0] / norms[1]) ** 0.25
        matrix = (scale * matrix + inverse / scale) / 2
    return matrix


def uniform_quaternion(cube):
    """Uniform unit quaternions from three uniforms (Shoemake, Graphics Gems III)."""
    u, a, b = cube[:, 0], 2 * math.pi * cube[:, 1], 2 * math.pi * cube[:, 2]
    r, s = (1 - u).sqrt(), u.sqrt()
    return torch.stack([r * a.sin(), r * a.cos(), s * b.sin(), s * b.cos()], dim=-1)


def rotation_from_quaternion(quaternion):
    """Rotations (..., 3, 3) of unit quaternions (..., 4), real part first."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*w.shape, 3, 3)
