"""Lower triangular matrices with a positive, or a unit, diagonal."""

import math

import torch
from geomstats.geometry.invariant_metric import _InvariantMetricMatrix
from geomstats.geometry.positive_lower_triangular_matrices import (
    CholeskyMetric,
    PLTUnitDiagMatrices,
    PositiveLowerTriangularMatrices,
    UnitNormedRowsPLTMatrices,
)

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError, unsupported
from geoflow_plugin.spaces import linear
from geoflow_plugin.spaces.spd import bare_metric


def _diagonal(matrix):
    return matrix.diagonal(dim1=-2, dim2=-1)


def _off_diagonal(matrix):
    return matrix - torch.diag_embed(_diagonal(matrix))


# Positive diagonal ---------------------------------------------------------------------


@linear.linear_basis.register(PositiveLowerTriangularMatrices)
def _(space, like):
    return linear.lower_basis(space.n, like)


linear.register_linear_geometry(PositiveLowerTriangularMatrices)


def _tiny(point):
    """Below this, relative to the entries, a diagonal entry cannot be told from zero."""
    number = torch.finfo(point.dtype)
    return (number.eps * point.abs().amax((-2, -1), keepdim=True)).clamp_min(number.tiny)


@geometry.projection.register(PositiveLowerTriangularMatrices)
def _(space, point):
    lower, diagonal = point.tril(-1), _diagonal(point)
    least = _tiny(lower)[..., 0].detach()
    diagonal = torch.where(diagonal > 0, diagonal, least)
    return lower + torch.diag_embed(diagonal)


@geometry.constraint_residual.register(PositiveLowerTriangularMatrices)
def _(space, point):
    least = _diagonal(point).amin(-1)
    above = point.triu(1).abs().amax((-2, -1))
    return above + torch.where(least <= 0, 1 - least, 0.0)


@geometry.retraction.register(PositiveLowerTriangularMatrices)
def _(space, tangent_vec, base_point):
    diagonal = _diagonal(base_point)
    growth = (_diagonal(tangent_vec) / diagonal).exp()
    lower = (base_point + tangent_vec).tril(-1)
    return lower + torch.diag_embed(diagonal * growth)


@geometry.origin.register(PositiveLowerTriangularMatrices)
@geometry.origin.register(PLTUnitDiagMatrices)
def _(space):
    return torch.eye(space.n, dtype=torch.float64)


@geometry.is_compact.register(PositiveLowerTriangularMatrices)
@geometry.is_compact.register(PLTUnitDiagMatrices)
def _(space):
    return False


def _log_diagonal(space, isometric):
    def to_model(x):
        logs = _diagonal(x).log()
        return linear._coordinates(space, _off_diagonal(x) + torch.diag_embed(logs))

    def from_model(z):
        x = linear._combination(space, z)
        return _off_diagonal(x) + torch.diag_embed(_diagonal(x).exp())

    target = linear.euclidean(space.dim)
    return geometry.Model(target, to_model, from_model, isometric)


@geometry.model.register(PositiveLowerTriangularMatrices, CholeskyMetric)
def _(space):
    return _log_diagonal(space, isometric=True)


@geometry.model.register(PositiveLowerTriangularMatrices)
def _(space):
    return _log_diagonal(space, isometric=False)


@geometry.log_volume_element.register(PositiveLowerTriangularMatrices, CholeskyMetric)
def _(space, point):
    constant = 0.5 * space.dim * math.log(geometry.outer_scale(space))
    return constant - _diagonal(point).log().sum(-1)


# the default serves flat metrics, where that of ``intrinsic`` would ask for autodiff
for _cls in (PositiveLowerTriangularMatrices, PLTUnitDiagMatrices):
    geometry.inner_product.register(_cls)(geometry.inner_product.__wrapped__)


@geometry.inner_product.register(PositiveLowerTriangularMatrices, _InvariantMetricMatrix)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    metric = bare_metric(space)
    matrix = torch.as_tensor(metric.metric_mat_at_identity).to(base_point)
    rows, columns = torch.tril_indices(space.n, space.n, device=base_point.device)

    def at_identity(vector):
        moved = torch.linalg.solve_triangular(
            base_point, vector, upper=False, left=metric.left
        )
        return moved[..., rows, columns]

    weighted = at_identity(tangent_vec_a) @ matrix
    value = (weighted * at_identity(tangent_vec_b)).sum(-1)
    return geometry.outer_scale(space) * value


# Unit diagonal: an affine space --------------------------------------------------------


@linear.linear_basis.register(PLTUnitDiagMatrices)
def _(space, like):
    return linear.lower_basis(space.n, like, diagonal=False)


linear.register_linear_geometry(PLTUnitDiagMatrices)


def _eye(space, like):
    return torch.eye(space.n, dtype=like.dtype, device=like.device)


@geometry.projection.register(PLTUnitDiagMatrices)
def _(space, point):
    return point.tril(-1) + _eye(space, point)


@geometry.constraint_residual.register(PLTUnitDiagMatrices)
def _(space, point):
    return (point.triu() - _eye(space, point)).abs().amax((-2, -1))


@geometry.model.register(PLTUnitDiagMatrices)
def _(space):
    metric = getattr(space, "metric", None)
    if metric is not None and geometry.frobenius_scale(metric) is None:
        raise unsupported(space, "model")
    scale = math.sqrt(geometry.metric_scale(space) / geometry.outer_scale(space))
    return geometry.Model(
        linear.euclidean(space.dim),
        lambda x: scale * linear._coordinates(space, x),
        lambda z: linear._combination(space, z / scale) + _eye(space, z),
    )


geometry.exp.register(PLTUnitDiagMatrices)(linear.add)
geometry.log.register(PLTUnitDiagMatrices)(linear.subtract)


# Unit rows -----------------------------------------------------------------------------


@geometry.is_compact.register(UnitNormedRowsPLTMatrices)
@geometry.model.register(UnitNormedRowsPLTMatrices)
def _(space):
    true_dim = space.n * (space.n - 1) // 2
    raise UnsupportedError(
        f"space: geomstats gives UnitNormedRowsPLTMatrices({space.n}) the dimension "
        f"{space.dim}, but it has {true_dim}, and every volume depends on it; use the "
        f"isometric OpenHemispheresProduct({space.n}), or FullRankCorrelationMatrices"
        f"({space.n}) under PolyHyperbolicCholeskyMetric."
    )
