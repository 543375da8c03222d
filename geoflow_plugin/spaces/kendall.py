"""Kendall's shapes of k landmarks in the plane or in space: pre-shapes up to rotation.

Several arrays x R name one shape: tangent vectors are the horizontal ones, orthogonal to
x A for skew A, and fields see ``embed``. Planar shapes are a complex projective space.
Shapes in space are singular where all landmarks are on a line, a null set of codimension
2 k - 5 that is left out.
"""

import itertools
import math

import numpy as np
import torch
from geomstats.geometry.pre_shape import KendallShapeMetric, PreShapeSpace
from torch.func import vjp

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.spaces.linear import helmert, skew_basis
from geoflow_plugin.spaces.matrix_functions import trace
from geoflow_plugin.spaces.rotations import rotation_from_quaternion
from geoflow_plugin.spaces.sphere import complement_basis

_SHAPES = PreShapeSpace, KendallShapeMetric

geometry.frobenius_scale.register(KendallShapeMetric)(lambda metric: 1.0)


def _supported(space):
    k, m = space.k_landmarks, space.ambient_dim
    if m not in (2, 3) or k <= m:
        raise UnsupportedError(
            f"space: shapes of {k} landmarks in R^{m} are not supported: only those of 3 "
            "or more in the plane and 4 or more in space. The orbits of other rotations "
            "have no volume in closed form, and fewer landmarks make shapes with edges."
        )


@geometry.is_compact.register(*_SHAPES)
def _(space):
    _supported(space)
    return True


@geometry.model.register(*_SHAPES)
def _(space):
    _supported(space)


@geometry.dim.register(*_SHAPES)
def _(space):
    _supported(space)
    m = space.ambient_dim
    return m * (space.k_landmarks - 1) - 1 - m * (m - 1) // 2


def _inner(a, b):
    return (a * b).sum((-2, -1))


def turning(matrix):
    """Determinant, on skew A, of A -> P A + A P for symmetric P: prod_{i<j} (p_i + p_j)."""
    first = trace(matrix)
    if matrix.shape[-1] == 2:
        return first
    square = matrix @ matrix
    second = (first.square() - trace(square)) / 2
    third = (_inner(square, matrix) - first * (trace(square) - second)) / 3
    return first * second - third


# The flat tangent geometry: horizontal vectors ------------------------------------------


def _vertical(array):
    """Spanning vectors (..., m (m - 1) / 2, k, m) of the orbit through (..., k, m)."""
    skew = skew_basis(array.shape[-1], array)
    return torch.tensordot(array, skew, dims=([-1], [1])).movedim(-2, -3)


def _coordinates(array):
    """Helmert coordinates (..., m, k - 1), as products that torch makes in one go."""
    return array.mT @ helmert(array.shape[-2], array)


@geometry.to_tangent.register(*_SHAPES)
def _(space, vector, base_point):
    centered = vector - vector.mean(-2, keepdim=True)
    tangent = centered - _inner(base_point, centered)[..., None, None] * base_point
    vertical = _vertical(base_point).flatten(-2)
    weight = torch.linalg.inv(vertical @ vertical.mT)
    weight = weight @ (vertical @ tangent.flatten(-2).unsqueeze(-1))
    return tangent - (weight.mT @ vertical).reshape(tangent.shape)


@geometry.tangent_basis.register(*_SHAPES)
def _(space, base_point):
    # what Householder's reflections leave orthogonal to the point and to its orbit
    normals = _coordinates(torch.cat([base_point.unsqueeze(-3), _vertical(base_point)], -3))
    first, *others = normals.flatten(-2).unbind(-2)
    basis = complement_basis(first)
    for normal in others:
        left = (basis * normal.unsqueeze(-2)).sum(-1, keepdim=True)
        left = left / left.norm(dim=-2, keepdim=True)
        first, rest = left[..., :1, :], left[..., 1:, :]
        first = first + torch.where(first >= 0, 1.0, -1.0).to(first)
        across = first * basis[..., :1, :] + (rest * basis[..., 1:, :]).sum(-2, keepdim=True)
        basis = basis[..., 1:, :] - rest / first.abs() * across
    columns = helmert(space.k_landmarks, base_point)
    return (basis.unflatten(-1, normals.shape[-2:]) @ columns.mT).mT


@geometry.origin.register(*_SHAPES)
def _(space):
    _supported(space)
    k, m = space.k_landmarks, space.ambient_dim
    rows = torch.eye(k - 1, m, dtype=torch.float64) * torch.arange(m, 0, -1)
    return helmert(k, rows) @ (rows / rows.norm())


@geometry.constraint_residual.register(*_SHAPES)
def _(space, point):
    defect = (torch.linalg.matrix_norm(point) - 1).abs() + point.mean(-2).abs().amax(-1)
    # on a line in space, rotations about it make the orbit smaller: no manifold there
    line = turning(point.mT @ point) < 4 * torch.finfo(point.dtype).eps
    return defect + line.to(defect)


@geometry.embed.register(*_SHAPES)
def _(space, point):
    # Products of Helmert coordinates, and oriented volumes, which tell mirror images
    # apart. In the plane that is z z* / sqrt 2, real and imaginary, and an isometry.
    n, z = space.k_landmarks - 1, _coordinates(point)
    weight = torch.ones(n, n, dtype=point.dtype, device=point.device)
    weight = weight.triu(1) + math.sqrt(0.5) * weight.diag().diag()
    products = weight * (z.unsqueeze(-1) * z.unsqueeze(-2)).sum(-3)
    if space.ambient_dim == 2:
        area = z[..., 1, :, None] * z[..., 0, None, :]
        return (products + weight.triu(1).mT * (area - area.mT)).flatten(-2)
    upper = [i * n + j for i in range(n) for j in range(i, n)]
    index = torch.tensor(upper, device=point.device)
    a, b, c = (z @ _triples(n, point)).unflatten(-1, (3, -1)).unbind(-2)
    # twice, so that flat shapes leave their plane about as fast as in the metric
    volumes = 2 * (torch.linalg.cross(a, b, dim=-2) * c).sum(-2)
    return torch.cat([products.flatten(-2).index_select(-1, index), volumes], dim=-1)


@geometry.pull_back.register(*_SHAPES)
def _(space, vector, base_point):
    # the adjoint, which is bounded where shapes become singular: in the plane it is the
    # projection as well, the embedding being an isometry
    _, adjoint = vjp(  # type: ignore[misc]
        lambda p: geometry.embed(space, p), base_point
    )
    return geometry.to_tangent(space, adjoint(vector)[0], base_point)


_TRIPLES: dict[int, torch.Tensor] = {}


def _triples(n, like):
    """Which triples of n rows span the q oriented volumes, as combinations (n, 3 q).

    All of them, or fewer generic ones: shapes next to a flat one are told apart by any
    3 n - 6 generic volumes, and a few more keep the image far from degenerate.
    """
    if n not in _TRIPLES:
        some = itertools.combinations(range(n), 3)
        chosen = np.eye(n)[list(some)]
        if len(chosen) > 4 * n:
            # volumes of the same sum of squares, on average
            drawn = np.random.default_rng(0).normal(size=(4 * n, 3, n))
            chosen = drawn * (24 * n) ** (-1 / 6)
        _TRIPLES[n] = torch.from_numpy(chosen.swapaxes(0, 1).reshape(-1, n).T.copy())
    return _TRIPLES[n].to(like)


# Geodesics: those of the pre-shape sphere, between aligned points ------------------------


def _rotation(matrix):
    """The rotation R that maximises tr(R^T M), for (..., m, m); smooth where unique."""
    if matrix.shape[-1] == 2:
        cosine = trace(matrix)
        sine = matrix[..., 1, 0] - matrix[..., 0, 1]
        length = geometry.safe_sqrt(cosine.square() + sine.square())
        any_will_do = length == 0
        length = torch.where(any_will_do, 1.0, length)
        cosine, sine = torch.where(any_will_do, 1.0, cosine / length), sine / length
        return torch.stack([cosine, -sine, sine, cosine], dim=-1).reshape(matrix.shape)
    left, _, right = torch.linalg.svd(matrix.detach())
    sign = torch.linalg.det(left @ right).sign()[..., None, None]
    last = left[..., 2:] @ right[..., 2:, :]
    rotation = (left @ right + (sign - 1) * last).detach()
    # derivatives of singular vectors may be infinite where R's are not; two steps of
    # Newton's method from the solution have three right ones
    eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    tiny = 4 * torch.finfo(matrix.dtype).eps
    for _ in range(2):
        turned = rotation.mT @ matrix
        skew = turned - turned.mT
        skew = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)
        weight = (trace(turned) + tiny)[..., None, None] * eye - (turned + turned.mT) / 2
        half = (torch.linalg.inv(weight) @ skew.unsqueeze(-1)).squeeze(-1) / 2
        quaternion = torch.cat([torch.ones_like(half[..., :1]), half], dim=-1)
        quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
        rotation = rotation @ rotation_from_quaternion(quaternion)
    return rotation


def align(point, base_point):
    """The point turned towards the base point, the cosine, and the sine of their angle."""
    aligned = point @ _rotation(point.mT @ base_point)
    cosine = _inner(aligned, base_point)
    tangent = aligned - cosine[..., None, None] * base_point
    return aligned, cosine, geometry.safe_sqrt(_inner(tangent, tangent))


@geometry.exp.register(*_SHAPES)
def _(space, tangent_vec, base_point):
    angle = geometry.safe_sqrt(_inner(tangent_vec, tangent_vec))[..., None, None]
    moved = angle.cos() * base_point + torch.sinc(angle / math.pi) * tangent_vec
    return geometry.projection(space, moved)


@geometry.log.register(*_SHAPES)
def _(space, point, base_point):
    aligned, cosine, sine = align(point, base_point)
    small = sine == 0
    stretch = torch.atan2(sine, cosine) / torch.where(small, 1.0, sine)
    stretch = torch.where(small, 1.0, stretch)
    return stretch[..., None, None] * geometry.to_tangent(space, aligned, base_point)


@geometry.dist.register(*_SHAPES)
def _(space, point_a, point_b):
    _, cosine, sine = align(point_a, point_b)
    return math.sqrt(geometry.metric_scale(space)) * torch.atan2(sine, cosine)


# The uniform measure ----------------------------------------------------------------------


@geometry.log_volume.register(*_SHAPES)
def _(space):
    n = space.k_landmarks - 1
    if space.ambient_dim == 2:
        value = (n - 1) * math.log(math.pi) - math.lgamma(n)
    else:  # the integral over pre-shapes of 1 over the volume of the orbit; see below
        value = (1.5 * n - 2) * math.log(math.pi) + math.lgamma(n - 1.5)
        value = value - math.log(4) - math.lgamma(n) - math.lgamma(1.5 * (n - 1))
    return value + 0.5 * geometry.dim(space) * math.log(geometry.metric_scale(space))


@geometry.unit_cube_dim.register(*_SHAPES)
def _(space):
    n = space.k_landmarks - 1
    return 2 * n if space.ambient_dim == 2 else 5 * n - 3


@geometry.uniform_from_cube.register(*_SHAPES)
def _(space, cube):
    # In the plane all orbits are as long. In space, the orbit of x has the volume
    # 8 pi^2 det(G)^(1/2), with a^T G a = |x A|^2, A the cross product by a. One over it is
    # a normal integral over a in R^3; turn a to an axis, integrate its length, and what is
    # left is w^(-3/2), w the share of the plane across that axis in |x|^2: a beta law,
    # which is w's for uniform x with three degrees of freedom less.
    k = space.k_landmarks
    tiny = torch.finfo(cube.dtype).eps / 2
    normal = torch.special.ndtri(cube.clamp(tiny, 1 - tiny))
    rows = normal[:, : 2 * k - 2]
    if space.ambient_dim == 3:
        fewer, along = normal[:, 2 * k - 2 :].split([2 * k - 5, k - 1], dim=-1)
        across = rows * (fewer.norm(dim=-1) / rows.norm(dim=-1)).unsqueeze(-1)
        rows = torch.cat([across.unflatten(-1, (k - 1, 2)), along.unsqueeze(-1)], dim=-1)
    columns = helmert(k, normal)
    return geometry.projection(
        space, columns @ rows.reshape(len(cube), k - 1, space.ambient_dim)
    )
