"""Invertible and full-rank matrices: open sets of matrices under the flat metric.

What they leave out is a null set, so that the laws of all matrices are theirs. Matrices of
positive determinant are half of all, and have the laws of X = Q R, Q a rotation and R
triangular with positive diagonal: a normal law of Q times one of the entries of R, the
logarithms of its diagonal among them.
"""

import math

import torch
from geomstats.geometry.full_rank_matrices import FullRankMatrices
from geomstats.geometry.general_linear import GeneralLinear
from geomstats.geometry.matrices import MatricesMetric
from geomstats.geometry.product_manifold import ProductManifold

from geoflow_plugin import geometry
from geoflow_plugin.spaces.euclidean import add, euclidean, subtract
from geoflow_plugin.spaces.linear import (
    entry_basis,
    linear_basis,
    lower_basis,
    register_linear_geometry,
)
from geoflow_plugin.spaces.rotation_vector import rotation_group

_TRIANGULAR: dict[int, ProductManifold] = {}


def _positive(space):
    return getattr(space, "positive_det", False)


@geometry.is_compact.register(FullRankMatrices)
@geometry.is_compact.register(GeneralLinear)
def _(space):
    return False


# Laws ---------------------------------------------------------------------------------


def _model(space):
    if _positive(space):
        return _triangular_model(space)
    return geometry.Model(
        euclidean(space.dim),
        lambda x: x.flatten(-2),
        lambda z: z.unflatten(-1, space.shape),
    )


def _triangular_model(space):
    n = space.n
    if n == 1:
        return geometry.Model(
            euclidean(1),
            lambda x: x.squeeze(-1).log(),
            lambda z: z.exp().unsqueeze(-1),
            isometric=False,
        )
    if n not in _TRIANGULAR:
        _TRIANGULAR[n] = ProductManifold([rotation_group(n), euclidean(n * (n + 1) // 2)])
    target = _TRIANGULAR[n]

    def below(like):
        return lower_basis(n, like, diagonal=False).flatten(1)

    def to_model(point):
        root = torch.linalg.cholesky(point.mT @ point)
        rotation = torch.linalg.solve_triangular(root, point.mT, upper=False).mT
        diagonal = root.diagonal(dim1=-2, dim2=-1).log()
        rest = root.flatten(-2) @ below(root).mT
        return torch.cat([rotation.flatten(-2), diagonal, rest], dim=-1)

    def from_model(image):
        rotation, diagonal, rest = image.split([n * n, n, n * (n - 1) // 2], dim=-1)
        root = torch.diag_embed(diagonal.exp()) + (rest @ below(image)).unflatten(-1, (n, n))
        return rotation.unflatten(-1, (n, n)) @ root.mT

    return geometry.Model(target, to_model, from_model, isometric=False)


def _unequipped_model(space):
    return _model(space) if getattr(space, "metric", None) is None else None


# The flat geometry of the matrices ----------------------------------------------------


def _directions(space, point):
    """Singular vectors and values, with the sign of the determinant on the last value."""
    left, values, right = torch.linalg.svd(point.detach(), full_matrices=False)
    if _positive(space):
        sign = torch.linalg.det(left @ right).sign().unsqueeze(-1)
        values = torch.cat([values[..., :-1], sign * values[..., -1:]], dim=-1)
    return left, values, right


def _is_outside(values):
    rounding = torch.finfo(values.dtype).eps * values[..., :1].abs().clamp_min(1e-30)
    return values <= 4 * rounding


def _project(space, point):
    """Nearest matrix that is clearly inside; other than points inside, no derivative."""
    left, values, right = _directions(space, point)
    floor = math.sqrt(torch.finfo(values.dtype).eps) * values[..., :1].clamp_min(1.0)
    shift = torch.where(_is_outside(values), floor - values, 0)
    if _positive(space):
        # the last singular direction carries the sign of the determinant
        sign = torch.linalg.det(left @ right).sign().unsqueeze(-1)
        shift = torch.cat([shift[..., :-1], sign * shift[..., -1:]], dim=-1)
    return point + (left * shift.unsqueeze(-2)) @ right


def _inner_product(space, tangent_vec_a, tangent_vec_b, base_point):
    return geometry.metric_scale(space) * (tangent_vec_a * tangent_vec_b).sum((-2, -1))


def _origin(space):
    return torch.eye(*space.shape, dtype=torch.float64)


def _residual(space, point):
    _, values, _ = _directions(space, point)
    outside = _is_outside(values)
    # at the border the distance is zero, and it is still outside
    depth = torch.where(outside, values.abs().clamp_min(1.0), 0)
    return depth.amax(-1)


for _cls in (FullRankMatrices, GeneralLinear):
    register_linear_geometry(_cls)
    geometry.projection.register(_cls)(_project)
    geometry.constraint_residual.register(_cls)(_residual)
    geometry.origin.register(_cls)(_origin)
    geometry.inner_product.register(_cls)(_inner_product)
    geometry.model.register(_cls)(_unequipped_model)
    geometry.model.register(_cls, MatricesMetric)(_model)
    # straight lines may leave the set, and come back to it on the far side
    geometry.exp.register(_cls, MatricesMetric)(add)
    geometry.log.register(_cls, MatricesMetric)(subtract)
    linear_basis.register(_cls)(entry_basis)
