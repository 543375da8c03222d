"""Vector spaces: Euclidean space, and linear spaces of matrices under flat metrics.

A linear space of arrays is known by an orthonormal basis; coordinates in it make it
Euclidean, whatever the constant metric.
"""

import math

import torch
from geomstats.geometry.euclidean import CanonicalEuclideanMetric, Euclidean, EuclideanMetric
from geomstats.geometry.general_linear import SquareMatrices
from geomstats.geometry.lower_triangular_matrices import (
    LowerTriangularMatrices,
    StrictlyLowerTriangularMatrices,
)
from geomstats.geometry.matrices import Matrices, MatricesDiagMetric, MatricesMetric
from geomstats.geometry.minkowski import MinkowskiMetric
from geomstats.geometry.scalar_product_metric import ScalarProductMetric
from geomstats.geometry.skew_symmetric_matrices import SkewSymmetricMatrices
from geomstats.geometry.symmetric_matrices import (
    HollowMatricesPermutationInvariantMetric,
    NullRowSumsPermutationInvariantMetric,
    NullRowSumsSymmetricMatrices,
    SymmetricHollowMatrices,
    SymmetricMatrices,
)

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError, required_function

# Constant metrics ---------------------------------------------------------------------


@geometry.frobenius_scale.register(CanonicalEuclideanMetric)
@geometry.frobenius_scale.register(MatricesMetric)
def _(metric):
    return 1.0


@geometry.frobenius_scale.register(ScalarProductMetric)
def _(metric):
    inner = geometry.frobenius_scale(metric.underlying_metric)
    return None if inner is None else float(metric.scale) * inner


def _bare(space):
    metric = space.metric
    return getattr(metric, "underlying_metric", metric)


def _like(array, tensor):
    array = array if isinstance(array, torch.Tensor) else torch.as_tensor(array)
    return array.to(tensor)


# Euclidean space ----------------------------------------------------------------------


@geometry.projection.register(Euclidean)
def _(space, point):
    return point


def register_open_set(cls):
    """The flat tangent geometry of an open set in R^dim, or of coordinates (dim,)."""

    @geometry.to_tangent.register(cls)
    def _(space, vector, base_point):
        return vector

    @geometry.tangent_basis.register(cls)
    def _(space, base_point):
        eye = torch.eye(space.dim, dtype=base_point.dtype, device=base_point.device)
        return eye.expand(*base_point.shape[:-1], space.dim, space.dim)


register_open_set(Euclidean)


@geometry.origin.register(Euclidean)
def _(space):
    return torch.zeros(space.dim, dtype=torch.float64)


@geometry.constraint_residual.register(Euclidean)
def _(space, point):
    return torch.zeros_like(point[..., 0])


@geometry.exp.register(Euclidean)
@geometry.retraction.register(Euclidean)
def add(space, tangent_vec, base_point):
    """Exponential along straight lines."""
    return base_point + tangent_vec


@geometry.log.register(Euclidean)
def subtract(space, point, base_point):
    """Logarithm along straight lines."""
    return point - base_point


@geometry.is_compact.register(Euclidean)
def _(space):
    return False


@geometry.is_euclidean.register(Euclidean)
@geometry.is_euclidean.register(Matrices)
@geometry.is_euclidean.register(SquareMatrices)
def _(space):
    metric = getattr(space, "metric", None)
    return metric is None or geometry.frobenius_scale(metric) is not None


@geometry.wrapped_normal_log_prob.register(Euclidean)
def _(space, point, mean, scale):
    squared = _whiten(space, point - mean).square().sum(-1)
    normalizer = space.dim * (0.5 * math.log(2 * math.pi) + scale.log())
    return -0.5 * squared / scale.square() - normalizer


@geometry.log_kernel_normalizer.register(Euclidean)
def _(space, bandwidth):
    return space.dim * (0.5 * math.log(2 * math.pi) + bandwidth.log())


@geometry.random_kernel.register(Euclidean)
def _(space, center, bandwidth, generator=None):
    normal = geometry.random_tangent_normal(space, center, generator)
    return center + bandwidth[:, None] * normal


@geometry.chart.register(Euclidean)
def _(space, point):
    return point, -geometry.log_volume_element(space, point)


@geometry.chart_inverse.register(Euclidean)
def _(space, coordinates):
    return coordinates, geometry.log_volume_element(space, coordinates)


@geometry.inner_product.register(Euclidean, EuclideanMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    return (_whiten(space, tangent_vec_a) * _whiten(space, tangent_vec_b)).sum(-1)


@geometry.squared_chord.register(Euclidean, EuclideanMetric)
def _(space, point, centers):
    x, c = _whiten(space, point).unsqueeze(1), _whiten(space, centers)
    return sum((x[..., k] - c[:, k]).square() for k in range(space.dim))


def _whiten(space, vector):
    """Vectors whose Frobenius product is the metric's."""
    metric = getattr(space, "metric", None)
    scale = 1.0 if metric is None else geometry.frobenius_scale(metric)
    if scale is not None:
        return math.sqrt(scale) * vector
    matrix = geometry.outer_scale(space) * _like(_bare(space).metric_matrix_, vector)
    return vector @ torch.linalg.cholesky(matrix)


@geometry.is_compact.register(Euclidean, MinkowskiMetric)
def _(space):
    raise UnsupportedError(
        "space: MinkowskiMetric is indefinite: its volume is no measure of distance, and "
        "the space has no Riemannian geometry; equip it with a Euclidean metric."
    )


# Linear spaces of matrices ------------------------------------------------------------


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
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    half = math.sqrt(0.5)
    entries = []
    for k, (i, j) in enumerate(pairs):
        entries += [(k, i, j, half), (k, j, i, -half)]
    return _from_entries((len(pairs), n, n), entries, like)


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


@linear_basis.register(LowerTriangularMatrices)
def _(space, like):
    return lower_basis(space.n, like)


@linear_basis.register(StrictlyLowerTriangularMatrices)
def _(space, like):
    return lower_basis(space.n, like, diagonal=False)


def _coordinates(space, array):
    n_axes = len(space.shape)
    return array.flatten(-n_axes) @ linear_basis(space, array).flatten(1).mT


def _combination(space, coordinates):
    flat = coordinates @ linear_basis(space, coordinates).flatten(1)
    return flat.reshape(*coordinates.shape[:-1], *space.shape)


def _project(space, array):
    return _combination(space, _coordinates(space, array))


def _tangent_projection(space, vector, base_point):
    return _project(space, vector)


def _constant_basis(space, base_point):
    basis = linear_basis(space, base_point)
    batch = base_point.shape[: base_point.ndim - len(space.shape)]
    return basis.expand(*batch, *basis.shape)


def _linear_residual(space, point):
    return (point - _project(space, point)).abs().flatten(-len(space.shape)).amax(-1)


def register_linear_geometry(cls):
    """The flat geometry of a linear space, or of an open set in one.

    ``linear_basis`` has to be registered for the class as well; an open set replaces
    ``projection`` and ``constraint_residual`` by its own.
    """
    geometry.projection.register(cls)(_project)
    geometry.to_tangent.register(cls)(_tangent_projection)
    geometry.tangent_basis.register(cls)(_constant_basis)
    geometry.constraint_residual.register(cls)(_linear_residual)


def _flat_model(space):
    """Coordinates in which a constant metric is the Euclidean one."""
    target = euclidean(space.dim)
    metric = getattr(space, "metric", None)
    scale = 1.0 if metric is None else geometry.frobenius_scale(metric)
    if scale is not None:
        scale = math.sqrt(scale / geometry.outer_scale(space))
        return geometry.Model(
            target,
            lambda x: scale * _coordinates(space, x),
            lambda z: _combination(space, z / scale),
        )

    def root(like):
        # not geometry.gram, which asks for this very model
        basis = linear_basis(space, like)
        pairs = basis.unsqueeze(0), basis.unsqueeze(1), torch.zeros_like(basis)
        gram = geometry.inner_product(space, *pairs) / geometry.outer_scale(space)
        return torch.linalg.cholesky(gram)

    def to_model(x):
        return _coordinates(space, x) @ root(x)

    def from_model(z):
        solve = torch.linalg.solve_triangular
        coordinates = solve(root(z), z.unsqueeze(-2), upper=False, left=False)
        return _combination(space, coordinates.squeeze(-2))

    return geometry.Model(target, to_model, from_model)


_EUCLIDEAN: dict[int, Euclidean] = {}


def euclidean(dim):
    """Euclidean space of a dimension, made once: making it calls geomstats' backend."""
    if dim not in _EUCLIDEAN:
        _EUCLIDEAN[dim] = Euclidean(dim)
    return _EUCLIDEAN[dim]


for _cls in (
    Matrices,
    SquareMatrices,
    SymmetricMatrices,
    SymmetricHollowMatrices,
    NullRowSumsSymmetricMatrices,
    SkewSymmetricMatrices,
    LowerTriangularMatrices,
    StrictlyLowerTriangularMatrices,
):
    register_linear_geometry(_cls)
    geometry.model.register(_cls)(_flat_model)
    geometry.exp.register(_cls)(add)
    geometry.log.register(_cls)(subtract)


@geometry.inner_product.register(Matrices, MatricesDiagMetric)
@geometry.inner_product.register(SquareMatrices, MatricesDiagMetric)
@geometry.inner_product.register(SymmetricMatrices, MatricesDiagMetric)
@geometry.inner_product.register(SkewSymmetricMatrices, MatricesDiagMetric)
@geometry.inner_product.register(LowerTriangularMatrices, MatricesDiagMetric)
@geometry.inner_product.register(StrictlyLowerTriangularMatrices, MatricesDiagMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    weight = geometry.outer_scale(space) * _like(_bare(space).metric_coeffs, tangent_vec_a)
    return (weight * tangent_vec_a * tangent_vec_b).sum((-2, -1))


@geometry.inner_product.register(
    SymmetricHollowMatrices, HollowMatricesPermutationInvariantMetric
)
@geometry.inner_product.register(
    NullRowSumsSymmetricMatrices, NullRowSumsPermutationInvariantMetric
)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    metric = _bare(space)
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
