"""Linear spaces of matrices under flat metrics.

Such a space is known by an orthonormal basis; coordinates in it make it Euclidean under
any constant metric, and a model that is not isometric under any other.
"""

import functools
import math

import torch
from geomstats.geometry.general_linear import SquareMatrices
from geomstats.geometry.lower_triangular_matrices import (
    LowerTriangularMatrices,
    StrictlyLowerTriangularMatrices,
)
from geomstats.geometry.matrices import Matrices, MatricesDiagMetric
from geomstats.geometry.skew_symmetric_matrices import SkewSymmetricMatrices
from geomstats.geometry.special_euclidean import SpecialEuclideanMatricesLieAlgebra
from geomstats.geometry.stratified.point_set import PointSetMetric
from geomstats.geometry.symmetric_matrices import (
    HollowMatricesPermutationInvariantMetric,
    NullRowSumsPermutationInvariantMetric,
    NullRowSumsSymmetricMatrices,
    SymmetricHollowMatrices,
    SymmetricMatrices,
)

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError, required_function
from geoflow_plugin.spaces.euclidean import add, euclidean, has_flat_metric, subtract

# Bases ----------------------------------------------------------------------------------


@required_function
def linear_basis(space, like):
    """Frobenius-orthonormal basis (dim, *space.shape) of a linear space of arrays."""


def _from_entries(shape, entries, like):
    """Basis whose k-th element has ``value`` at each ``(k, row, column)`` listed."""
    k, row, column, value = zip(*entries, strict=True) if entries else ([], [], [], [])
    basis = torch.zeros(shape, dtype=like.dtype, device=like.device)
    index = torch.tensor([k, row, column], dtype=torch.long, device=like.device)
    return basis.index_put(tuple(index), torch.tensor(value, dtype=like.dtype).to(like))


def symmetric_basis(n, like, diagonal=True):
    """Orthonormal basis of the symmetric n x n matrices, or of the hollow ones."""
    pairs = [(i, j) for i in range(n) for j in range(i + (not diagonal), n)]
    half = math.sqrt(0.5)
    entries = []
    for k, (i, j) in enumerate(pairs):
        if i == j:
            entries.append((k, i, i, 1.0))
        else:
            entries += [(k, i, j, half), (k, j, i, half)]
    return _from_entries((len(pairs), n, n), entries, like)


def skew_basis(n, like):
    """Orthonormal basis of the skew-symmetric n x n matrices."""
    rows, columns = torch.triu_indices(n, n, offset=1, device=like.device)
    index = torch.arange(len(rows), device=like.device)
    basis = torch.zeros(len(rows), n, n, dtype=like.dtype, device=like.device)
    half = torch.full_like(index, 1, dtype=like.dtype) / math.sqrt(2)
    basis = basis.index_put((index, rows, columns), half)
    return basis.index_put((index, columns, rows), -half)


def lower_basis(n, like, diagonal=True):
    """Orthonormal basis of the lower triangular n x n matrices."""
    pairs = [(i, j) for i in range(n) for j in range(i + diagonal)]
    entries = [(k, i, j, 1.0) for k, (i, j) in enumerate(pairs)]
    return _from_entries((len(pairs), n, n), entries, like)


def helmert(n, like):
    """Orthonormal columns (n, n - 1) that span the complement of the constants."""
    columns = []
    for k in range(1, n):
        scale = 1 / math.sqrt(k * (k + 1))
        columns.append([scale] * k + [-k * scale] + [0.0] * (n - k - 1))
    return torch.tensor(columns, dtype=like.dtype, device=like.device).reshape(n - 1, n).mT


@linear_basis.register(Matrices)
@linear_basis.register(SquareMatrices)
def entry_basis(space, like):
    """Basis of all arrays of the space's shape, one element an entry."""
    size = math.prod(space.shape)
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return eye.reshape(size, *space.shape)


@linear_basis.register(SymmetricMatrices)
def _(space, like):
    return symmetric_basis(space.n, like)


@linear_basis.register(SymmetricHollowMatrices)
def _(space, like):
    return symmetric_basis(space.n, like, diagonal=False)


@linear_basis.register(NullRowSumsSymmetricMatrices)
def _(space, like):
    columns = helmert(space.n, like)
    return columns @ symmetric_basis(space.n - 1, like) @ columns.mT


@linear_basis.register(SkewSymmetricMatrices)
def _(space, like):
    return skew_basis(space.n, like)


@linear_basis.register(SpecialEuclideanMatricesLieAlgebra)
def _(space, like):
    turns = torch.nn.functional.pad(skew_basis(space.n, like), (0, 1, 0, 1))
    entries = [(k, k, space.n, 1.0) for k in range(space.n)]
    return torch.cat([turns, _from_entries((space.n, *space.shape), entries, like)])


@linear_basis.register(LowerTriangularMatrices)
def _(space, like):
    return lower_basis(space.n, like)


@linear_basis.register(StrictlyLowerTriangularMatrices)
def _(space, like):
    return lower_basis(space.n, like, diagonal=False)


# Their geometry -------------------------------------------------------------------------


def coordinates(space, array):
    """Coordinates (..., dim) of arrays in the basis of the space."""
    n_axes = len(space.shape)
    return array.flatten(-n_axes) @ linear_basis(space, array).flatten(1).mT


def combination(space, weights):
    """Arrays (..., *space.shape) that have these coordinates (..., dim)."""
    flat = weights @ linear_basis(space, weights).flatten(1)
    return flat.reshape(*weights.shape[:-1], *space.shape)


def _project(space, array):
    return combination(space, coordinates(space, array))


def _tangent_projection(space, vector, base_point):
    return _project(space, vector)


def _constant_basis(space, base_point):
    basis = linear_basis(space, base_point)
    batch = base_point.shape[: base_point.ndim - len(space.shape)]
    return basis.expand(*batch, *basis.shape)


def residual(space, point):
    """Largest entry by which arrays miss the space."""
    return (point - _project(space, point)).abs().flatten(-len(space.shape)).amax(-1)


def register_linear_geometry(cls):
    """The flat geometry of a linear space, or of an open set in one.

    ``linear_basis`` has to be registered for the class as well; an open set replaces
    ``projection`` and ``constraint_residual`` by its own.
    """
    geometry.projection.register(cls)(_project)
    geometry.to_tangent.register(cls)(_tangent_projection)
    geometry.tangent_basis.register(cls)(_constant_basis)
    geometry.constraint_residual.register(cls)(residual)


def flat_model(space):
    """Coordinates in which a multiple of the Frobenius product is the Euclidean one."""
    metric = getattr(space, "metric", None)
    scale = 1.0 if metric is None else geometry.frobenius_scale(metric)
    scale = math.sqrt(scale / geometry.outer_scale(space))
    return geometry.Model(
        euclidean(space.dim),
        lambda x: scale * coordinates(space, x),
        lambda z: combination(space, z / scale),
    )


def _constant_model(space):
    """Coordinates in which a constant metric is the Euclidean one."""

    def root(like):
        # not geometry.gram, which asks for this very model
        basis = linear_basis(space, like)
        pairs = basis.unsqueeze(0), basis.unsqueeze(1), torch.zeros_like(basis)
        gram = geometry.inner_product(space, *pairs) / geometry.outer_scale(space)
        return torch.linalg.cholesky(gram)

    def to_model(x):
        return coordinates(space, x) @ root(x)

    def from_model(z):
        solve = torch.linalg.solve_triangular
        weights = solve(root(z), z.unsqueeze(-2), upper=False, left=False)
        return combination(space, weights.squeeze(-2))

    return geometry.Model(euclidean(space.dim), to_model, from_model)


def _linear_model(space):
    """Coordinates alone, where nothing is known of the metric."""
    maps = functools.partial(coordinates, space), functools.partial(combination, space)
    return geometry.Model(euclidean(space.dim), *maps, isometric=False)


def register_constant_metric(cls, metric_class, model):
    """Coordinates and straight lines of a linear space under a class of metrics."""
    geometry.model.register(cls, metric_class)(model)
    geometry.exp.register(cls, metric_class)(add)
    geometry.log.register(cls, metric_class)(subtract)


for _cls in (
    Matrices,
    SquareMatrices,
    SymmetricMatrices,
    SymmetricHollowMatrices,
    NullRowSumsSymmetricMatrices,
    SkewSymmetricMatrices,
    LowerTriangularMatrices,
    StrictlyLowerTriangularMatrices,
    SpecialEuclideanMatricesLieAlgebra,
):
    register_linear_geometry(_cls)
    geometry.model.register(_cls)(_linear_model)
    register_constant_metric(_cls, geometry.FlatMetric, flat_model)


def _weighed_product(space, tangent_vec_a, tangent_vec_b, base_point):
    weight = torch.as_tensor(geometry.bare_metric(space).metric_coeffs).to(tangent_vec_a)
    product = (weight * tangent_vec_a * tangent_vec_b).sum((-2, -1))
    return geometry.outer_scale(space) * product


def _invariant_product(space, tangent_vec_a, tangent_vec_b, base_point):
    metric = geometry.bare_metric(space)
    product = tangent_vec_a @ tangent_vec_b
    value = metric.alpha * product.diagonal(dim1=-2, dim2=-1).sum(-1)
    if isinstance(metric, HollowMatricesPermutationInvariantMetric):
        sums = tangent_vec_a.sum((-2, -1)) * tangent_vec_b.sum((-2, -1))
        value = value + metric.beta * product.sum((-2, -1)) + metric.gamma * sums
    else:
        diagonals = [t.diagonal(dim1=-2, dim2=-1) for t in (tangent_vec_a, tangent_vec_b)]
        traces = diagonals[0].sum(-1) * diagonals[1].sum(-1)
        value = value + metric.delta * (diagonals[0] * diagonals[1]).sum(-1)
        value = value + metric.zeta * traces
    return geometry.outer_scale(space) * value


_CONSTANT = {
    (Matrices, MatricesDiagMetric): _weighed_product,
    (SquareMatrices, MatricesDiagMetric): _weighed_product,
    (SymmetricMatrices, MatricesDiagMetric): _weighed_product,
    (SkewSymmetricMatrices, MatricesDiagMetric): _weighed_product,
    (LowerTriangularMatrices, MatricesDiagMetric): _weighed_product,
    (StrictlyLowerTriangularMatrices, MatricesDiagMetric): _weighed_product,
    (SymmetricHollowMatrices, HollowMatricesPermutationInvariantMetric): _invariant_product,
    (NullRowSumsSymmetricMatrices, NullRowSumsPermutationInvariantMetric): _invariant_product,
}
for _where, _product in _CONSTANT.items():
    geometry.inner_product.register(*_where)(_product)
    register_constant_metric(*_where, _constant_model)


@geometry.is_compact.register(Matrices, PointSetMetric)
def _(space):
    raise UnsupportedError(
        f"space: {type(space.metric).__qualname__} measures between classes of arrays, which "
        "are a stratified set and no manifold; equip the arrays with a MatricesMetric."
    )


geometry.is_euclidean.register(Matrices)(has_flat_metric)
geometry.is_euclidean.register(SquareMatrices)(has_flat_metric)
