"""Symmetric positive definite matrices, an open set of the symmetric ones, by metric.

Where the exponential of a metric is no diffeomorphism in closed form, normal laws and
charts are those of the matrix logarithm.
"""

import math

import torch
from geomstats.geometry.spd_matrices import (
    LieCholeskyMetric,
    SPDAffineMetric,
    SPDBuresWassersteinMetric,
    SPDEuclideanMetric,
    SPDLogEuclideanMetric,
    SPDMatrices,
    SPDPowerMetric,
)

from geoflow_plugin import geometry
from geoflow_plugin.spaces import linear
from geoflow_plugin.spaces.euclidean import add, euclidean, subtract
from geoflow_plugin.spaces.matrix_functions import (
    exp_log_volume,
    log_determinant,
    matrix_exp,
    matrix_log,
    matrix_sqrt,
    nearest_positive,
    positive_step,
    positivity_residual,
    separation,
    symmetrize,
    trace,
)

# The flat geometry ---------------------------------------------------------------------


@linear.linear_basis.register(SPDMatrices)
def _(space, like):
    return linear.symmetric_basis(space.n, like)


linear.register_linear_geometry(SPDMatrices)


@geometry.projection.register(SPDMatrices)
def _(space, point):
    return nearest_positive(point)


@geometry.constraint_residual.register(SPDMatrices)
def _(space, point):
    return positivity_residual(point)


@geometry.retraction.register(SPDMatrices)
def _(space, tangent_vec, base_point):
    return positive_step(tangent_vec, base_point)


@geometry.origin.register(SPDMatrices)
def _(space):
    return torch.eye(space.n, dtype=torch.float64)


@geometry.is_compact.register(SPDMatrices)
def _(space):
    return False


@geometry.model.register(SPDMatrices)
def _(space):
    return geometry.Model(
        euclidean(space.dim),
        lambda x: linear.coordinates(space, matrix_log(x)),
        lambda z: matrix_exp(linear.combination(space, z)),
        isometric=False,
    )


# Affine-invariant metric: a symmetric space of nonpositive curvature ------------------


def congruent(matrix, root):
    """The product root @ matrix @ root.T, symmetric to the last digit."""
    return symmetrize(root @ matrix @ root.mT)


def whiten(matrix, root):
    """The matrix of which ``congruent`` makes this one; root is lower triangular."""
    half = torch.linalg.solve_triangular(root, matrix, upper=False)
    return symmetrize(torch.linalg.solve_triangular(root, half.mT, upper=False))


@geometry.inner_product.register(SPDMatrices, SPDAffineMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    inverse = torch.linalg.inv(base_point)
    product = (inverse @ tangent_vec_a) * (tangent_vec_b @ inverse)
    return geometry.outer_scale(space) * product.sum((-2, -1))


@geometry.log_volume_element.register(SPDMatrices, SPDAffineMetric)
def _(space, point):
    constant = 0.5 * space.dim * math.log(geometry.outer_scale(space))
    return constant - (space.n + 1) / 2 * log_determinant(point)


@geometry.sharp.register(SPDMatrices, SPDAffineMetric)
def _(space, covector, base_point):
    return symmetrize(base_point @ covector @ base_point) / geometry.outer_scale(space)


@geometry.exp.register(SPDMatrices, SPDAffineMetric)
def affine_exp(space, tangent_vec, base_point):
    """Exponential of the affine metric at any base point."""
    root = torch.linalg.cholesky(base_point)
    return congruent(matrix_exp(whiten(tangent_vec, root)), root)


@geometry.log.register(SPDMatrices, SPDAffineMetric)
def _(space, point, base_point):
    root = torch.linalg.cholesky(base_point)
    return congruent(matrix_log(whiten(point, root)), root)


@geometry.dist.register(SPDMatrices, SPDAffineMetric)
def _(space, point_a, point_b):
    whitened = whiten(point_b - point_a, torch.linalg.cholesky(point_a))
    squared, _ = separation(whitened)
    return geometry.safe_sqrt(geometry.outer_scale(space) * squared)


@geometry.random_tangent_normal.register(SPDMatrices, SPDAffineMetric)
def _(space, base_point, generator=None):
    shape = (*base_point.shape[:-2], space.dim)
    normal = geometry.random_normal(shape, base_point, generator)
    root = torch.linalg.cholesky(base_point)
    normal = congruent(linear.combination(space, normal), root)
    return normal / math.sqrt(geometry.outer_scale(space))


@geometry.random_wrapped_normal.register(SPDMatrices, SPDAffineMetric)
@geometry.random_kernel.register(SPDMatrices, SPDAffineMetric)
def _(space, mean, scale, generator=None):
    normal = geometry.random_tangent_normal(space, mean, generator)
    return affine_exp(space, scale[..., None, None] * normal, mean)


@geometry.wrapped_normal_log_prob.register(SPDMatrices, SPDAffineMetric)
def _(space, point, mean, scale):
    tangent = matrix_log(whiten(point, torch.linalg.cholesky(mean)))
    squared = geometry.outer_scale(space) * tangent.square().sum((-2, -1))
    value = -0.5 * squared / scale.square() - exp_log_volume(tangent)
    return value - geometry.log_kernel_normalizer(space, scale)


@geometry.kernel_separation.register(SPDMatrices, SPDAffineMetric)
def _(space, point, centers):
    inverse = torch.linalg.inv(torch.linalg.cholesky(centers))
    difference = inverse @ (point.unsqueeze(1) - centers) @ inverse.mT
    squared, change = separation(difference)
    return geometry.outer_scale(space) * squared, change


@geometry.log_kernel_normalizer.register(SPDMatrices, SPDAffineMetric)
def _(space, bandwidth):
    return space.dim * (0.5 * math.log(2 * math.pi) + bandwidth.log())


# Metrics pulled back by a diffeomorphism ----------------------------------------------


@geometry.model.register(SPDMatrices, SPDLogEuclideanMetric)
def _(space):
    return geometry.Model(geometry.bare_metric(space).image_space, matrix_log, matrix_exp)


@geometry.log_volume_element.register(SPDMatrices, SPDLogEuclideanMetric)
def _(space, point):
    image = matrix_log(point)
    target = geometry.log_volume_element(geometry.bare_metric(space).image_space, image)
    change = exp_log_volume(image) + (space.n + 1) / 2 * trace(image)
    return target - change + 0.5 * space.dim * math.log(geometry.outer_scale(space))


@geometry.model.register(SPDMatrices, SPDPowerMetric)
def _(space):
    metric = geometry.bare_metric(space)
    power = float(metric.diffeo.power)
    return geometry.Model(
        metric.image_space,
        lambda x: matrix_exp(power * matrix_log(x)),
        lambda y: matrix_exp(matrix_log(y) / power),
    )


@geometry.model.register(SPDMatrices, LieCholeskyMetric)
def _(space):
    return geometry.Model(
        geometry.bare_metric(space).image_space,
        torch.linalg.cholesky,
        lambda root: symmetrize(root @ root.mT),
    )


# Incomplete metrics -------------------------------------------------------------------

# the default serves flat metrics, where that of ``intrinsic`` would ask for autodiff
geometry.inner_product.register(SPDMatrices)(geometry.inner_product.__wrapped__)


geometry.exp.register(SPDMatrices, SPDEuclideanMetric)(add)
geometry.log.register(SPDMatrices, SPDEuclideanMetric)(subtract)


def _lyapunov(space, point):
    """Matrix of V -> X V + V X in the symmetric basis, shape (..., dim, dim)."""
    basis = linear.symmetric_basis(space.n, point)
    image = point.unsqueeze(-3) @ basis
    return (image + image.mT).flatten(-2) @ basis.flatten(1).mT


def _solve_lyapunov(space, point, vector):
    coordinates = linear.coordinates(space, vector).unsqueeze(-1)
    root = torch.linalg.cholesky(_lyapunov(space, point))
    solution = torch.cholesky_solve(coordinates, root).squeeze(-1)
    return linear.combination(space, solution)


@geometry.inner_product.register(SPDMatrices, SPDBuresWassersteinMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    product = tangent_vec_a * _solve_lyapunov(space, base_point, tangent_vec_b)
    return geometry.outer_scale(space) / 2 * product.sum((-2, -1))


@geometry.gram.register(SPDMatrices, SPDBuresWassersteinMetric)
def _(space, base_point):
    inverse = torch.linalg.inv(_lyapunov(space, base_point))
    return geometry.outer_scale(space) / 2 * symmetrize(inverse)


@geometry.log_volume_element.register(SPDMatrices, SPDBuresWassersteinMetric)
def _(space, point):
    constant = 0.5 * space.dim * math.log(geometry.outer_scale(space) / 2)
    return constant - log_determinant(_lyapunov(space, point)) / 2


@geometry.sharp.register(SPDMatrices, SPDBuresWassersteinMetric)
def _(space, covector, base_point):
    return 4 * symmetrize(base_point @ covector) / geometry.outer_scale(space)


@geometry.exp.register(SPDMatrices, SPDBuresWassersteinMetric)
def _(space, tangent_vec, base_point):
    half = _solve_lyapunov(space, base_point, tangent_vec)
    return base_point + tangent_vec + symmetrize(half @ base_point @ half)


@geometry.log.register(SPDMatrices, SPDBuresWassersteinMetric)
def _(space, point, base_point):
    # (X Y)^(1/2) = L (L^T Y L)^(1/2) L^-1 with X = L L^T
    root = torch.linalg.cholesky(base_point)
    middle = root @ matrix_sqrt(symmetrize(root.mT @ point @ root))
    product = torch.linalg.solve_triangular(root, middle, upper=False, left=False)
    return 2 * (symmetrize(product) - base_point)
