"""Special orthogonal groups SO(n) as n x n matrices with their bi-invariant metric.

geomstats' BiInvariantMetric is half the Frobenius product, so that a rotation of the
plane by an angle t lies at distance t from the identity.
"""

import math

import torch
from geomstats.geometry.invariant_metric import BiInvariantMetric
from geomstats.geometry.matrices import MatricesMetric
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

from geoflow_plugin import geometry
from geoflow_plugin.spaces.linear import skew_basis
from geoflow_plugin.spaces.rotations import (
    log_at_identity,
    polar_factor,
    rotation_angles,
    rotation_from_quaternion,
    skew,
    uniform_quaternion,
)

Matrices = type(SpecialOrthogonal(2, equip=False))


@geometry.frobenius_scale.register(BiInvariantMetric)
def _(metric):
    return 0.5 if metric._space.point_ndim == 2 else None  # not of rotation vectors


@geometry.frobenius_scale.register(MatricesMetric)
def _(metric):
    return 1.0


@geometry.projection.register(Matrices)
def _(space, point):
    # The polar factor by Newton's iteration, since derivatives of the singular value
    # decomposition do not exist at a rotation; a matrix of negative determinant first
    # has its weakest singular direction turned round.
    left, _, right = torch.linalg.svd(point.detach())
    sign = torch.linalg.det(left @ right).sign()
    weakest = right[..., -1:, :]
    turn = (1 - sign)[..., None, None] * (weakest.mT @ weakest)
    return polar_factor(point - point @ turn)


@geometry.to_tangent.register(Matrices)
def _(space, vector, base_point):
    return base_point @ skew(base_point.mT @ vector)


@geometry.tangent_basis.register(Matrices)
def _(space, base_point):
    return base_point.unsqueeze(-3) @ skew_basis(space.n, base_point)


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


@geometry.exp.register(Matrices, geometry.FlatMetric)
def _(space, tangent_vec, base_point):
    return base_point @ torch.linalg.matrix_exp(skew(base_point.mT @ tangent_vec))


@geometry.retraction.register(Matrices)
def _(space, tangent_vec, base_point):
    # Cayley: agrees with the exponential to second order and stays in the group
    half = skew(base_point.mT @ tangent_vec) / 2
    eye = torch.eye(space.n, dtype=half.dtype, device=half.device)
    # not linalg.solve: torch 2.13 gets its second derivatives in forward mode wrong
    return base_point @ torch.linalg.inv(eye - half) @ (eye + half)


@geometry.log.register(Matrices, geometry.FlatMetric)
def _(space, point, base_point):
    return base_point @ log_at_identity(base_point.mT @ point)


@geometry.dist.register(Matrices, geometry.FlatMetric)
def _(space, point_a, point_b):
    angles = rotation_angles(point_a.mT @ point_b)
    squared = 2 * geometry.metric_scale(space) * angles.square().sum(-1)
    return geometry.safe_sqrt(squared)


# The Haar measure ---------------------------------------------------------------------


@geometry.is_compact.register(Matrices)
def _(space):
    return True


@geometry.log_volume.register(Matrices, geometry.FlatMetric)
def _(space):
    # SO(n) = S^(n-1) x ... x S^1 for the metric in which plane rotations have unit
    # speed (half Frobenius)
    spheres = sum(
        math.log(2) + k / 2 * math.log(math.pi) - math.lgamma(k / 2)
        for k in range(2, space.n + 1)
    )
    return spheres + 0.5 * space.dim * math.log(2 * geometry.metric_scale(space))


@geometry.unit_cube_dim.register(Matrices, geometry.FlatMetric)
def _(space):
    return {2: 1, 3: 3}.get(space.n, space.n**2)


@geometry.uniform_from_cube.register(Matrices, geometry.FlatMetric)
def _(space, cube):
    if space.n == 2:
        angle = 2 * math.pi * cube[:, 0]
        rows = [angle.cos(), -angle.sin(), angle.sin(), angle.cos()]
        return torch.stack(rows, dim=-1).reshape(-1, 2, 2)
    if space.n == 3:
        return rotation_from_quaternion(uniform_quaternion(cube))
    tiny = torch.finfo(cube.dtype).eps / 2
    normal = torch.special.ndtri(cube.clamp(tiny, 1 - tiny))
    # Q of a Gaussian matrix is Haar on O(n) once the signs of diag(R) are made positive
    q, r = torch.linalg.qr(normal.reshape(-1, space.n, space.n))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    sign = torch.linalg.det(q).sign()[:, None, None]
    return torch.cat([q[..., :1] * sign, q[..., 1:]], dim=-1)
