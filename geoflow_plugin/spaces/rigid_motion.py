"""Rigid motions SE(n): homogeneous matrices, and vectors (rotation, translation).

Their left-invariant metrics are products of one of the rotations with the flat one of the
translations: the Frobenius product of matrices, under which a turn of the plane by t is
sqrt(2) t long, and for vectors the product in which it is t long.
"""

import math

import torch
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.special_euclidean import (
    SpecialEuclidean,
    SpecialEuclideanMatricesCanonicalLeftMetric,
)
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.spaces import rotation_vector
from geoflow_plugin.spaces.euclidean import euclidean, register_open_set
from geoflow_plugin.spaces.linear import skew_basis
from geoflow_plugin.spaces.sphere import sphere

Matrices = type(SpecialEuclidean(2, equip=False))
PlaneVectors = type(SpecialEuclidean(2, point_type="vector", equip=False))
SpaceVectors = type(SpecialEuclidean(3, point_type="vector", equip=False))

_PRODUCTS: dict[tuple[str, int], ProductManifold] = {}


def _product(kind, n):
    """Rotations times translations, made once."""
    if (kind, n) not in _PRODUCTS:
        if kind == "matrix":
            rotations = SpecialOrthogonal(n)
            rotations.metric = 2.0 * rotations.metric
        else:
            rotations = sphere(1) if n == 2 else SpecialOrthogonal(n)
        _PRODUCTS[kind, n] = ProductManifold([rotations, euclidean(n)])
    return _PRODUCTS[kind, n]


def _product_model(space, kind, to_rotation, from_rotation):
    """Model whose maps join and split the flattened rotation and the translation.

    ``to_rotation`` takes points to (rotation, translation), ``from_rotation`` back.
    """
    target = _product(kind, space.n)
    shape = target.factors[0].shape

    def to_model(point):
        rotation, translation = to_rotation(point)
        flat = torch.cat([rotation.flatten(-len(shape)), translation], dim=-1)
        return flat.unflatten(-1, target.shape)

    def from_model(image):
        flat = image.flatten(-len(target.shape))
        rotation = flat[..., : -space.n].unflatten(-1, shape)
        return from_rotation(rotation, flat[..., -space.n :])

    return geometry.Model(target, to_model, from_model)


# Matrices -----------------------------------------------------------------------------


@geometry.frobenius_scale.register(SpecialEuclideanMatricesCanonicalLeftMetric)
def _(metric):
    return 1.0


def _blocks(point):
    return point[..., :-1, :-1], point[..., :-1, -1]


def _assemble(rotation, translation, corner=1.0):
    """Matrices (..., n + 1, n + 1) with last row (0, corner)."""
    top = torch.cat([rotation, translation.unsqueeze(-1)], dim=-1)
    n = rotation.shape[-1]
    last = torch.eye(n + 1, dtype=top.dtype, device=top.device)[n] * corner
    return torch.cat([top, last.expand(*top.shape[:-2], 1, n + 1)], dim=-2)


@geometry.model.register(Matrices, SpecialEuclideanMatricesCanonicalLeftMetric)
def _matrix_model(space):
    return _product_model(space, "matrix", _blocks, _assemble)


@geometry.model.register(Matrices)
def _(space):
    # without a metric, the flat one of the array is the canonical one
    return _matrix_model(space) if getattr(space, "metric", None) is None else None


@geometry.is_compact.register(Matrices)
def _(space):
    return False


@geometry.projection.register(Matrices)
def _(space, point):
    rotation, translation = _blocks(point)
    group = rotation_vector.rotation_group(space.n)
    return _assemble(geometry.projection(group, rotation), translation)


@geometry.to_tangent.register(Matrices)
def _(space, vector, base_point):
    group = rotation_vector.rotation_group(space.n)
    turn = geometry.to_tangent(group, vector[..., :-1, :-1], base_point[..., :-1, :-1])
    translation = vector[..., :-1, -1].expand(turn.shape[:-1])
    return _assemble(turn, translation, corner=0.0)


@geometry.tangent_basis.register(Matrices)
def _(space, base_point):
    n, batch = space.n, base_point.shape[:-2]
    turns = base_point[..., None, :-1, :-1] @ skew_basis(n, base_point)
    turns = torch.nn.functional.pad(turns, (0, 1, 0, 1))
    eye = torch.eye(n, n + 1, dtype=base_point.dtype, device=base_point.device)
    shifts = torch.nn.functional.pad(eye.unsqueeze(-1), (n, 0))
    return torch.cat([turns, shifts.expand(*batch, n, n + 1, n + 1)], dim=-3)


@geometry.origin.register(Matrices)
def _(space):
    return torch.eye(space.n + 1, dtype=torch.float64)


@geometry.constraint_residual.register(Matrices)
def _(space, point):
    rotation, _ = _blocks(point)
    group = rotation_vector.rotation_group(space.n)
    last = torch.eye(space.n + 1, dtype=point.dtype, device=point.device)[-1]
    defect = (point[..., -1, :] - last).abs().amax(-1)
    return defect + geometry.constraint_residual(group, rotation)


# Vectors ------------------------------------------------------------------------------


def _left_invariant(space):
    metric = geometry.bare_metric(space)
    if not isinstance(metric, rotation_vector.InvariantVectorMetric) or not metric.left:
        raise UnsupportedError(
            "space: rigid motions as vectors are supported under their left-invariant "
            "metric only; geomstats' right-invariant one of SE(2) is not invariant."
        )


@geometry.model.register(PlaneVectors)
def _(space):
    _left_invariant(space)
    return _product_model(
        space,
        "vector",
        lambda x: (rotation_vector.circle_from_angle(x[..., :1]), x[..., 1:]),
        lambda r, t: torch.cat([rotation_vector.angle_from_circle(r), t], dim=-1),
    )


@geometry.model.register(SpaceVectors)
def _(space):
    _left_invariant(space)
    return _product_model(
        space,
        "vector",
        lambda x: (rotation_vector.matrix_from_vector(x[..., :3]), x[..., 3:]),
        lambda r, t: torch.cat([rotation_vector.vector_from_matrix(r), t], dim=-1),
    )


@geometry.log_volume_element.register(SpaceVectors)
def _(space, point):
    _left_invariant(space)
    scale = 0.5 * space.dim * math.log(geometry.outer_scale(space))
    return rotation_vector.log_ball_volume_element(point[..., :3]) + scale


for _cls in (PlaneVectors, SpaceVectors):
    register_open_set(_cls)

    @geometry.embed.register(_cls)
    def _(space, point):
        return geometry.model(space).to_model(point)

    @geometry.projection.register(_cls)
    def _(space, point):
        rotation = rotation_vector.shorten(point[..., : -space.n])
        return torch.cat([rotation, point[..., -space.n :]], dim=-1)

    @geometry.constraint_residual.register(_cls)
    def _(space, point):
        return rotation_vector.excess_length(point[..., : -space.n])
