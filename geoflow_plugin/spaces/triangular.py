"""Lower triangular matrices with a positive or a unit diagonal."""

import math

import torch
from geomstats.geometry.invariant_metric import _InvariantMetricMatrix
from geomstats.geometry.positive_lower_triangular_matrices import (
    CholeskyMetric,
    PLTUnitDiagMatrices,
    PositiveLowerTriangularMatrices,
)
from geomstats.geometry.spd_matrices import SPDMatrices

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import unsupported
from geoflow_plugin.spaces import linear
from geoflow_plugin.spaces.euclidean import add, euclidean, subtract


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
        return linear.coordinates(space, _off_diagonal(x) + torch.diag_embed(logs))

    def from_model(z):
        x = linear.combination(space, z)
        return _off_diagonal(x) + torch.diag_embed(_diagonal(x).exp())

    target = euclidean(space.dim)
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


# Invariant metrics ---------------------------------------------------------------------

_invariant = (PositiveLowerTriangularMatrices, _InvariantMetricMatrix)


def _at_identity(space, vector, point):
    """Tangent vectors translated to the identity by the inverse of the point."""
    left = geometry.bare_metric(space).left
    return torch.linalg.solve_triangular(point, vector, upper=False, left=left)


def _identity_metric(space, like):
    return torch.as_tensor(geometry.bare_metric(space).metric_mat_at_identity).to(like)


def _entries(matrix):
    n = matrix.shape[-1]
    rows, columns = torch.tril_indices(n, n, device=matrix.device)
    return matrix[..., rows, columns]


@geometry.inner_product.register(*_invariant)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    a = _entries(_at_identity(space, tangent_vec_a, base_point))
    b = _entries(_at_identity(space, tangent_vec_b, base_point))
    value = (a @ _identity_metric(space, a) * b).sum(-1)
    return geometry.outer_scale(space) * value


_AFFINE: list[SPDMatrices] = []


@geometry.model.register(*_invariant)
def _(space):
    # L L^T takes the left-invariant metric that counts entries below the diagonal by half
    # to a quarter of the affine one; for n = 2 stretching the one entry there is enough
    metric = geometry.bare_metric(space)
    unit = torch.equal(_identity_metric(space, torch.ones(())), torch.eye(space.dim))
    if space.n != 2 or not metric.left or not unit:
        return _log_diagonal(space, isometric=False)
    if not _AFFINE:
        target = SPDMatrices(2)
        target.metric = 0.25 * target.metric
        _AFFINE.append(target)

    def stretched(root, factor):
        return root + (factor - 1) * root.tril(-1)

    def to_model(x):
        root = stretched(x, math.sqrt(2))
        return root @ root.mT

    def from_model(y):
        return stretched(torch.linalg.cholesky(y), math.sqrt(0.5))

    return geometry.Model(_AFFINE[0], to_model, from_model)


@geometry.exp.register(*_invariant)
def _(space, tangent_vec, base_point, n_steps=64):
    if geometry.model(space).isometric:
        return geometry.exp.__wrapped__(space, tangent_vec, base_point)
    # the momentum P of the velocity W at the identity obeys Euler and Poincare's equation
    # P' = W^T P - P W^T (left), and the point g' = g W: no derivative is taken of anything
    left = geometry.bare_metric(space).left
    velocity = _at_identity(space, tangent_vec, base_point)
    metric = _identity_metric(space, velocity)
    inverse = torch.linalg.inv(metric)

    def derivative(point, momentum):
        w = linear.combination(space, _entries(momentum) @ inverse)
        turned = w.mT @ momentum - momentum @ w.mT
        return (point @ w, turned.tril()) if left else (w @ point, -turned.tril())

    def moved(state, rate, step):
        return [x + step * v for x, v in zip(state, rate, strict=True)]

    state = [base_point, linear.combination(space, _entries(velocity) @ metric)]
    step = 1 / n_steps
    for _ in range(n_steps):  # of Runge and Kutta
        a = derivative(*state)
        b = derivative(*moved(state, a, step / 2))
        c = derivative(*moved(state, b, step / 2))
        d = derivative(*moved(state, c, step))
        for rate, weight in ((a, 1), (b, 2), (c, 2), (d, 1)):
            state = moved(state, rate, weight * step / 6)
    return state[0]


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
        euclidean(space.dim),
        lambda x: scale * linear.coordinates(space, x),
        lambda z: linear.combination(space, z / scale) + _eye(space, z),
    )


geometry.exp.register(PLTUnitDiagMatrices)(add)
geometry.log.register(PLTUnitDiagMatrices)(subtract)
