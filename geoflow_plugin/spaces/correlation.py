"""Full-rank correlation matrices: positive definite, of unit diagonal.

All metrics but the affine quotient are pulled back from a flat or hyperbolic space by a
diffeomorphism. Two of those diffeomorphisms solve an equation: the solution is found
without derivatives, and each simplified Newton step taken from there makes one more
order of derivatives right.
"""

import torch
from geomstats.geometry.full_rank_correlation_matrices import (
    EuclideanCholeskyMetric,
    FullRankCorrelationAffineQuotientMetric,
    FullRankCorrelationMatrices,
    LogEuclideanCholeskyMetric,
    LogScaledMetric,
    OffLogMetric,
    PolyHyperbolicCholeskyMetric,
)

from geoflow_plugin import geometry
from geoflow_plugin.spaces import linear
from geoflow_plugin.spaces.euclidean import euclidean
from geoflow_plugin.spaces.matrix_functions import (
    matrix_exp,
    matrix_log,
    nearest_positive,
    positive_step,
    positivity_residual,
    symmetrize,
)
from geoflow_plugin.spaces.spd import affine_exp

_ORDERS = 4  # of derivatives that an implicit solution has


def _diagonal(matrix):
    return matrix.diagonal(dim1=-2, dim2=-1)


def _eye(like):
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _hollow(matrix):
    return matrix * (1 - _eye(matrix))


def _correlation(covariance):
    """Correlation matrix of a covariance matrix."""
    scale = _diagonal(covariance).rsqrt()
    scaled = scale.unsqueeze(-1) * covariance * scale.unsqueeze(-2)
    return _hollow(symmetrize(scaled)) + _eye(covariance)


# The flat geometry: an open set of an affine space ------------------------------------


@linear.linear_basis.register(FullRankCorrelationMatrices)
def _(space, like):
    return linear.symmetric_basis(space.n, like, diagonal=False)


linear.register_linear_geometry(FullRankCorrelationMatrices)


@geometry.projection.register(FullRankCorrelationMatrices)
def _(space, point):
    return _correlation(nearest_positive(point))


@geometry.constraint_residual.register(FullRankCorrelationMatrices)
def _(space, point):
    defect = (_diagonal(point) - 1).abs().amax(-1)
    return defect + positivity_residual(point)


@geometry.retraction.register(FullRankCorrelationMatrices)
def _(space, tangent_vec, base_point):
    return _correlation(positive_step(tangent_vec, base_point))


@geometry.origin.register(FullRankCorrelationMatrices)
def _(space):
    return torch.eye(space.n, dtype=torch.float64)


@geometry.is_compact.register(FullRankCorrelationMatrices)
def _(space):
    return False


# Metrics of the Cholesky factor --------------------------------------------------------


def _unit_cholesky(point):
    """Cholesky factor with its rows divided by their diagonal entries."""
    root = torch.linalg.cholesky(point)
    return root / _diagonal(root).unsqueeze(-1)


def _from_factor(root):
    return _correlation(root @ root.mT)


def _log_unit_lower(matrix):
    """Logarithm of lower triangular matrices of unit diagonal, a finite series."""
    eye, nilpotent = _eye(matrix), matrix.tril(-1)
    series = torch.zeros_like(matrix)
    for k in range(matrix.shape[-1] - 1, 0, -1):
        series = eye / k - nilpotent @ series
    return nilpotent @ series


def _exp_strictly_lower(matrix):
    eye = _eye(matrix)
    series = eye.expand_as(matrix)
    for k in range(matrix.shape[-1] - 1, 0, -1):
        series = eye + matrix @ series / k
    return series


@geometry.model.register(FullRankCorrelationMatrices)
def _(space):
    return geometry.Model(
        euclidean(space.dim),
        lambda x: _lower_coordinates(space, _log_unit_lower(_unit_cholesky(x))),
        lambda z: _from_factor(_exp_strictly_lower(_lower_combination(space, z))),
        isometric=False,
    )


def _lower_coordinates(space, matrix):
    rows, columns = torch.tril_indices(space.n, space.n, -1, device=matrix.device)
    return matrix[..., rows, columns]


def _lower_combination(space, coordinates):
    basis = linear.lower_basis(space.n, coordinates, diagonal=False)
    flat = coordinates @ basis.flatten(1)
    return flat.reshape(*coordinates.shape[:-1], *space.shape)


@geometry.model.register(FullRankCorrelationMatrices, EuclideanCholeskyMetric)
def _(space):
    return geometry.Model(
        geometry.bare_metric(space).image_space, _unit_cholesky, _from_factor
    )


@geometry.model.register(FullRankCorrelationMatrices, LogEuclideanCholeskyMetric)
def _(space):
    return geometry.Model(
        geometry.bare_metric(space).image_space,
        lambda x: _log_unit_lower(_unit_cholesky(x)),
        lambda y: _from_factor(_exp_strictly_lower(y)),
    )


@geometry.model.register(FullRankCorrelationMatrices, PolyHyperbolicCholeskyMetric)
def _(space):
    # rows of the Cholesky factor are points of hemispheres, their last entry the height
    n = space.n

    def to_model(x):
        root = torch.linalg.cholesky(x)
        rows = [root[..., i, : i + 1].flip(-1) for i in range(1, n)]
        if n > 2:
            return torch.cat(rows, dim=-1)
        height, side = rows[0].unbind(-1)
        return torch.stack([1 / height, side / height], dim=-1)

    def from_model(y):
        if n == 2:
            height, side = y.unbind(-1)
            y = torch.stack([1 / height, side / height], dim=-1)
        first = torch.eye(n, dtype=y.dtype, device=y.device)[0]
        rows = [first.expand(*y.shape[:-1], n)]
        for i, row in enumerate(y.split(list(range(2, n + 1)), dim=-1), start=1):
            rows.append(torch.nn.functional.pad(row.flip(-1), (0, n - 1 - i)))
        return _from_factor(torch.stack(rows, dim=-2))

    return geometry.Model(geometry.bare_metric(space).image_space, to_model, from_model)


# Off-log metric: the logarithm without its diagonal -----------------------------------


def _exp_derivative(matrix):
    """Derivative of the diagonal of exp(S + diag(d)) in d, without derivatives itself."""
    values, vectors = torch.linalg.eigh(matrix.detach())
    mean = (values.unsqueeze(-1) + values.unsqueeze(-2)) / 2
    half = (values.unsqueeze(-1) - values.unsqueeze(-2)) / 2
    small = half.abs() < 1e-4
    safe = torch.where(small, 1.0, half)
    quotient = torch.where(small, 1 + half.square() / 6, safe.sinh() / safe)
    products = vectors.unsqueeze(-3) * vectors.unsqueeze(-2)  # (..., i, j, k)
    weighted = products @ (mean.exp() * quotient).unsqueeze(-3)
    ridge = 8 * torch.finfo(values.dtype).eps  # lest rounding makes it singular
    return (weighted * products).sum(-1) + ridge * _eye(values)


def _unit_diagonal_log(hollow, n_steps=16):
    """The one symmetric matrix with this off-diagonal whose exponential is unit there."""
    symmetric = symmetrize(_hollow(hollow))
    constant = symmetric.detach()
    # Archakov and Hansen's contraction, then Newton's method on the same equation
    diagonal = -torch.logsumexp(constant, dim=-1)
    for step in range(n_steps):
        matrix = constant + torch.diag_embed(diagonal)
        values, vectors = torch.linalg.eigh(matrix)
        excess = torch.logsumexp(
            values.unsqueeze(-2) + 2 * vectors.abs().clamp_min(1e-30).log(), dim=-1
        )
        if step >= n_steps - 6:
            excess = _newton(_exp_derivative(matrix), excess)
        diagonal = diagonal - excess
    jacobian = _exp_derivative(constant + torch.diag_embed(diagonal))
    for _ in range(_ORDERS):
        image = torch.linalg.matrix_exp(symmetric + torch.diag_embed(diagonal))
        diagonal = diagonal - _newton(jacobian, _diagonal(image).log())
    return symmetric + torch.diag_embed(diagonal)


def _newton(jacobian, log_excess):
    """Newton step for the log of the diagonal, of which the derivative is near one."""
    return _solve(jacobian / log_excess.exp().unsqueeze(-1), log_excess)


@geometry.model.register(FullRankCorrelationMatrices, OffLogMetric)
def _(space):
    return geometry.Model(
        geometry.bare_metric(space).image_space,
        lambda x: _hollow(matrix_log(x)),
        lambda y: _hollow(matrix_exp(_unit_diagonal_log(y))) + _eye(y),
    )


# Log-scaled metric: the logarithm after scaling to unit row sums -----------------------


def _unit_sums_scaling(point, n_steps=25):
    """Positive d with diag(d) C diag(d) 1 = 1, the minimum of d'C d / 2 - sum log d."""
    constant = point.detach()
    scale = (point.shape[-1] / constant.sum((-2, -1))).sqrt()
    scaling = scale.unsqueeze(-1).expand(constant.shape[:-1])
    for _ in range(n_steps):
        gradient = _matvec(constant, scaling) - 1 / scaling
        step = _solve(constant + torch.diag_embed(scaling**-2), gradient)
        # damped while far: the function is self-concordant
        decrement = (gradient * step).sum(-1, keepdim=True).clamp_min(0).sqrt()
        damping = torch.where(decrement > 0.2, 1 / (1 + decrement), 1.0)
        scaling = scaling - damping * step
    hessian = constant + torch.diag_embed(scaling**-2)
    for _ in range(_ORDERS):
        scaling = scaling - _solve(hessian, _matvec(point, scaling) - 1 / scaling)
    return scaling


def _matvec(matrix, vector):
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _solve(matrix, vector):
    return _matvec(torch.linalg.inv(matrix), vector)  # see matrix_functions


@geometry.model.register(FullRankCorrelationMatrices, LogScaledMetric)
def _(space):
    def to_model(x):
        scaling = _unit_sums_scaling(x)
        return matrix_log(scaling.unsqueeze(-1) * x * scaling.unsqueeze(-2))

    return geometry.Model(
        geometry.bare_metric(space).image_space,
        to_model,
        lambda y: _correlation(matrix_exp(y)),
    )


# Quotient of the affine metric by diagonal scalings ------------------------------------


def _vertical_coordinates(vector, base_point, inverse):
    """Diagonal d such that d C + C d is the vertical part of a symmetric matrix."""
    operator = _eye(base_point) + base_point * inverse
    return _solve(operator, _diagonal(inverse @ vector))


@geometry.inner_product.register(
    FullRankCorrelationMatrices, FullRankCorrelationAffineQuotientMetric
)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    # the affine product of the horizontal lifts: the whole less its vertical part
    inverse = torch.linalg.inv(base_point)
    a, b = inverse @ tangent_vec_a, inverse @ tangent_vec_b
    vertical = _vertical_coordinates(tangent_vec_a, base_point, inverse)
    value = (a * b.mT).sum((-2, -1)) - 2 * (vertical * _diagonal(b)).sum(-1)
    return geometry.outer_scale(space) * value


@geometry.exp.register(FullRankCorrelationMatrices, FullRankCorrelationAffineQuotientMetric)
def _(space, tangent_vec, base_point):
    inverse = torch.linalg.inv(base_point)
    vertical = _vertical_coordinates(tangent_vec, base_point, inverse)
    lift = vertical.unsqueeze(-1) * base_point + base_point * vertical.unsqueeze(-2)
    return _correlation(affine_exp(space, tangent_vec - lift, base_point))
