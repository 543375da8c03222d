"""Flat complex spaces and the complex Poincaré disk, as real arrays (..., 2)."""

import math

import torch
from geomstats.geometry.complex_matrices import ComplexMatrices
from geomstats.geometry.complex_poincare_disk import (
    ComplexPoincareDisk,
    ComplexPoincareDiskMetric,
)
from geomstats.geometry.hermitian import Hermitian, HermitianMetric
from geomstats.geometry.hermitian_matrices import HermitianMatrices

from geoflow_plugin import geometry
from geoflow_plugin.spaces import linear
from geoflow_plugin.spaces.hyperbolic import hyperboloid
from geoflow_plugin.spaces.matrix_functions import (
    bracket_log_volume,
    log_determinant,
    matrix_exp,
    matrix_log,
    squared_arsinh_quotient,
    trace,
)
from geoflow_plugin.spaces.poincare import (
    ball_gap,
    ball_to_hyperboloid,
    beyond,
    hyperboloid_to_ball,
    into_ball,
)
from geoflow_plugin.spaces.real_view import RealView, narrow, register_open_view, widen

# of complex matrices as well, whose metric is a subclass
geometry.frobenius_scale.register(HermitianMetric)(lambda metric: 1.0)


def register_flat_view(cls):
    """The geometry of a linear space under the Frobenius metric.

    ``linear.linear_basis`` has to be registered for the class as well.
    """
    register_open_view(cls)
    linear.register_linear_geometry(cls)
    linear.register_constant_metric(cls, geometry.FlatMetric, linear.flat_model)


class RealComplexMatrices(RealView, of=ComplexMatrices):
    """Complex matrices as real arrays (m, n, 2)."""


class RealHermitian(RealView, of=Hermitian):
    """C^n as real arrays (n, 2)."""


for _cls in (RealComplexMatrices, RealHermitian):
    register_flat_view(_cls)
    linear.linear_basis.register(_cls)(linear.entry_basis)

    @geometry.is_euclidean.register(_cls)
    def _(space):
        metric = getattr(space, "metric", None)
        return metric is None or geometry.frobenius_scale(metric) is not None


class RealHermitianMatrices(RealView, of=HermitianMatrices):
    """Hermitian matrices as real arrays (n, n, 2)."""

    def _real_dim(self, space):
        return math.prod(space.shape)


def hermitian_basis(n, like):
    """Orthonormal basis of the Hermitian n x n matrices, (n^2, n, n, 2)."""
    real, imaginary = linear.symmetric_basis(n, like), linear.skew_basis(n, like)
    pairs = [(real, torch.zeros_like(real)), (torch.zeros_like(imaginary), imaginary)]
    return torch.cat([torch.stack(pair, dim=-1) for pair in pairs])


register_flat_view(RealHermitianMatrices)


@linear.linear_basis.register(RealHermitianMatrices)
def _(space, like):
    return hermitian_basis(space.shape[0], like)


# Functions of Hermitian matrices ----------------------------------------------------------


def hermitian_log(point):
    """Logarithm of positive definite matrices (..., n, n, 2), in closed form for n = 2."""
    matrix = widen(point)
    if matrix.shape[-1] != 4:
        return narrow(matrix_log(matrix))
    eye = torch.eye(4, dtype=matrix.dtype, device=matrix.device)
    mean = (log_determinant(matrix) / 4)[..., None, None]
    matrix = matrix * (-mean).exp()
    deviator = matrix - trace(matrix)[..., None, None] / 4 * eye
    squared_sine = deviator.square().sum((-2, -1), keepdim=True) / 4
    return narrow(mean * eye + squared_arsinh_quotient(squared_sine).sqrt() * deviator)


def hermitian_exp(tangent_vec):
    """Exponential of Hermitian matrices (..., n, n, 2)."""
    return narrow(matrix_exp(widen(tangent_vec)))


def exp_log_volume(tangent, basis):
    """Log volume change of an exponential at the identity of a symmetric space.

    Parameters
    ----------
    tangent : torch.Tensor, shape=(..., n, n)
        Symmetric matrices.
    basis : torch.Tensor, shape=(dim, n, n)
        Orthonormal basis of the symmetric matrices that are tangent to the space.

    Returns
    -------
    log_change : torch.Tensor, shape=(...,)
        Log determinant of sinh(A) / A, where A^2 is a quarter of the tangent vector's
        squared bracket on the basis: a power series, smooth at repeated eigenvalues.
    """
    product = tangent.unsqueeze(-3) @ basis
    return bracket_log_volume((product - product.mT).flatten(-2))


# The disk: a quarter of the metric of the ball ------------------------------------------


class RealPoincareDisk(RealView, of=ComplexPoincareDisk):
    """The complex Poincaré disk as real arrays (1, 2)."""


register_open_view(RealPoincareDisk)
linear.register_linear_geometry(RealPoincareDisk)
linear.linear_basis.register(RealPoincareDisk)(linear.entry_basis)

_on_disk = (RealPoincareDisk, ComplexPoincareDiskMetric)


@geometry.model.register(*_on_disk)
def _(space):
    return geometry.Model(
        hyperboloid(2, 0.25),
        lambda x: ball_to_hyperboloid(x.squeeze(-2)),
        lambda y: hyperboloid_to_ball(y).unsqueeze(-2),
    )


@geometry.projection.register(RealPoincareDisk)
def _(space, point):
    return into_ball(point)


@geometry.constraint_residual.register(RealPoincareDisk)
def _(space, point):
    return beyond(ball_gap(point.squeeze(-2)))


@geometry.inner_product.register(*_on_disk)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    product = (tangent_vec_a * tangent_vec_b).sum((-2, -1))
    gap = ball_gap(base_point.squeeze(-2))
    return geometry.outer_scale(space) * product / gap.square()


@geometry.log_volume_element.register(*_on_disk)
def _(space, point):
    return math.log(geometry.outer_scale(space)) - 2 * ball_gap(point.squeeze(-2)).log()


@geometry.sharp.register(*_on_disk)
def _(space, covector, base_point):
    gap = ball_gap(base_point.squeeze(-2))[..., None, None]
    return covector * gap.square() / geometry.outer_scale(space)
