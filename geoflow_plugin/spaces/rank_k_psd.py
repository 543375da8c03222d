"""Positive semidefinite matrices of fixed rank k, under the flat metric and Bures-Wasserstein.

X = Y Y^T for full-rank factors Y (n, k), up to rotations of the columns. With P the
projector on the range of X, the tangent vectors are the symmetric V with (I - P) V (I - P)
= 0. geomstats gives the space a dimension that is k too small, and under the flat metric an
exponential that leaves it; here that has none.

The manifold is not contractible, so that no chart covers it, but one leaves out a null set
alone: where the leading block of X is definite, X has one factor of lower trapezoidal form
with a positive diagonal. Normal laws, kernels and charts are those of its entries, of the
logarithms of its diagonal: densities vanish as the leading block becomes singular.
"""

import math

import torch
from geomstats.geometry.rank_k_psd_matrices import (
    PSDBuresWassersteinMetric,
    RankKPSDMatrices,
)

from geoflow_plugin import geometry
from geoflow_plugin.spaces import linear
from geoflow_plugin.spaces.euclidean import euclidean
from geoflow_plugin.spaces.frames import orthonormal_complement, orthonormal_rows
from geoflow_plugin.spaces.matrix_functions import symmetrize
from geoflow_plugin.spaces.rotations import polar_factor


def _triangular_entries(space, like):
    """Rows and columns of the factor's entries below its diagonal."""
    rows, columns = torch.tril_indices(space.n, space.rank, -1, device=like.device)
    return rows, columns


# The flat tangent geometry ------------------------------------------------------------


@geometry.dim.register(RankKPSDMatrices)
def _(space):
    return space.n * space.rank - space.rank * (space.rank - 1) // 2


@geometry.is_compact.register(RankKPSDMatrices)
def _(space):
    return False


def _leading(space, point):
    """The k leading eigenvalues and vectors, ascending, without derivatives."""
    values, vectors = torch.linalg.eigh(symmetrize(point).detach())
    return values[..., -space.rank :].detach(), vectors[..., -space.rank :].detach()


def _frame(point, values, vectors):
    """Orthonormal basis (..., n, k) of the range, smooth near each point."""
    # the image of a basis, brought to unit length lest its Gram matrix loses digits
    return orthonormal_rows((point @ (vectors / values.unsqueeze(-2))).mT).mT


def _range(space, point):
    return _frame(point, *_leading(space, point))


def _floor(point):
    """Below this, rounding does not tell an eigenvalue from zero."""
    number = torch.finfo(point.dtype)
    size = point.detach().abs().amax((-2, -1))
    return (4 * point.shape[-1] * number.eps * size).clamp_min(number.tiny)


@geometry.projection.register(RankKPSDMatrices)
def _(space, point):
    point = symmetrize(point)
    values, vectors = _leading(space, point)
    floor = _floor(point).unsqueeze(-1)
    # where a leading eigenvalue is not positive it is raised, without derivatives
    short = (values <= floor).any(-1, keepdim=True)
    raised = torch.where(values > floor, values, 100 * floor)
    nearest = symmetrize((vectors * raised.unsqueeze(-2)) @ vectors.mT)
    apart = short.unsqueeze(-1)
    point = torch.where(apart, vectors @ vectors.mT, point)
    frame = _frame(point, torch.where(short, 1, values), vectors)
    smooth = symmetrize(frame @ (frame.mT @ point @ frame) @ frame.mT)
    return torch.where(apart, nearest, smooth)


@geometry.to_tangent.register(RankKPSDMatrices)
def _(space, vector, base_point):
    vector, frame = symmetrize(vector), _range(space, base_point)
    half = frame.mT @ vector
    along = frame @ half
    return along + along.mT - frame @ (half @ frame) @ frame.mT


@geometry.tangent_basis.register(RankKPSDMatrices)
def _(space, base_point):
    frame = _range(space, base_point)
    inside = linear.symmetric_basis(space.rank, base_point)
    inside = frame.unsqueeze(-3) @ inside @ frame.mT.unsqueeze(-3)
    across = torch.einsum("...ia,...jb->...abij", frame, orthonormal_complement(frame))
    across = (across + across.mT).flatten(-4, -3) / math.sqrt(2)
    return torch.cat([inside, across], dim=-3)


@geometry.constraint_residual.register(RankKPSDMatrices)
def _(space, point):
    spectrum = torch.linalg.eigvalsh(symmetrize(point))
    rest, values = spectrum[..., : -space.rank], spectrum[..., -space.rank :]
    size = 1 + values.abs().amax(-1)
    excess = (rest.abs().amax(-1) + (point - point.mT).abs().amax((-2, -1))) / size
    defect = _floor(point) - values[..., 0]
    return excess + torch.where(defect >= 0, 1 + defect, 0)


@geometry.origin.register(RankKPSDMatrices)
def _(space):
    eye = torch.eye(space.n, space.rank, dtype=torch.float64)
    return eye @ eye.mT


@geometry.model.register(RankKPSDMatrices)
def _(space):
    n, k = space.n, space.rank

    def to_model(x):
        root = torch.linalg.cholesky(x[..., :k, :k])
        below = torch.linalg.solve_triangular(root, x[..., k:, :k].mT, upper=False).mT
        factor = torch.cat([root, below], dim=-2)
        rows, columns = _triangular_entries(space, x)
        diagonal = root.diagonal(dim1=-2, dim2=-1).log()
        return torch.cat([diagonal, factor[..., rows, columns]], dim=-1)

    def from_model(z):
        rows, columns = _triangular_entries(space, z)
        entry = torch.arange(len(rows), device=z.device)
        basis = torch.zeros(len(rows), n, k, dtype=z.dtype, device=z.device)
        basis = basis.index_put((entry, rows, columns), basis.new_ones(()))
        below = (z[..., k:] @ basis.flatten(1)).unflatten(-1, (n, k))
        diagonal = torch.diag_embed(z[..., :k].exp())
        factor = below + torch.nn.functional.pad(diagonal, (0, 0, 0, n - k))
        return factor @ factor.mT

    return geometry.Model(
        euclidean(geometry.dim(space)), to_model, from_model, isometric=False
    )


# Bures-Wasserstein metric: the quotient of the flat one of factors ----------------------

_on_quotient = (RankKPSDMatrices, PSDBuresWassersteinMetric)


def _factor(space, point):
    """Any Y with Y Y^T = X, smooth near each point."""
    _, vectors = _leading(space, point)
    image = point @ vectors
    root = torch.linalg.cholesky(vectors.mT @ image)
    return torch.linalg.solve_triangular(root, image.mT, upper=False).mT


def _lyapunov(point, basis):
    """Matrix of V -> X V + V X, which keeps tangent spaces, in a tangent basis."""
    image = point.unsqueeze(-3) @ basis
    return (image + image.mT).flatten(-2) @ basis.flatten(-2).mT


def _solve_lyapunov(space, point, vector):
    """The tangent H with X H + H X = V: the horizontal lift of V to Y is H Y."""
    basis = geometry.tangent_basis(space, point)
    inverse = torch.linalg.inv(_lyapunov(point, basis))
    flat = basis.flatten(-2)
    weight = inverse @ (flat @ vector.flatten(-2).unsqueeze(-1))
    return (weight.mT @ flat).squeeze(-2).unflatten(-1, space.shape)


# the default serves flat metrics
geometry.inner_product.register(RankKPSDMatrices)(geometry.inner_product.__wrapped__)


@geometry.inner_product.register(*_on_quotient)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    product = tangent_vec_a * _solve_lyapunov(space, base_point, tangent_vec_b)
    return geometry.outer_scale(space) / 2 * product.sum((-2, -1))


@geometry.gram.register(*_on_quotient)
def _(space, base_point):
    basis = geometry.tangent_basis(space, base_point)
    inverse = torch.linalg.inv(_lyapunov(base_point, basis))
    return geometry.outer_scale(space) / 2 * symmetrize(inverse)


@geometry.sharp.register(*_on_quotient)
def _(space, covector, base_point):
    return 4 * symmetrize(base_point @ covector) / geometry.outer_scale(space)


@geometry.exp.register(*_on_quotient)
def _(space, tangent_vec, base_point):
    half = _solve_lyapunov(space, base_point, tangent_vec)
    return base_point + tangent_vec + symmetrize(half @ base_point @ half)


@geometry.log.register(*_on_quotient)
def _(space, point, base_point):
    # the factor turned to be nearest to that of the base point
    base, end = _factor(space, base_point), _factor(space, point)
    lift = end @ polar_factor(end.mT @ base) - base
    return 2 * symmetrize(lift @ base.mT)
