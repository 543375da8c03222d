"""Stiefel manifolds St(n, p): orthonormal frames of p columns in R^n.

Their canonical metric, half Frobenius on what turns a frame within its span, makes them
quotients of the rotations: St(n, n - 1) is SO(n), and St(n, 1) a sphere, with its normal laws
and kernels. Others have no logarithm in closed form, so that theirs are carried by the Cayley
map instead of the exponential. The two agree to second order, and the Cayley map is a
diffeomorphism of the whole tangent space onto the frames X with I + C^T X invertible, C the
centre: all but a null set (of O(n) = St(n, n), the component of the centre).

References
----------
.. [JHD20] M. Jauch, P. Hoff, D. Dunson. "Random orthogonal matrices and the Cayley
   transform", Bernoulli 26(2), 2020. They have the map and its inverse; the volume change
   in closed form is the complementary minor of S -> (I - S)^-T S (I - S)^-1.
"""

import math

import torch
from geomstats.geometry.stiefel import Stiefel, StiefelCanonicalMetric

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import open_function, unsupported
from geoflow_plugin.spaces.carried_normal import register_carried_normal
from geoflow_plugin.spaces.frames import orthonormal_complement
from geoflow_plugin.spaces.linear import skew_basis
from geoflow_plugin.spaces.rotations import polar_factor
from geoflow_plugin.spaces.sphere import sphere


@open_function
def _turning_weight(space):
    """Weight w of |V|^2 = w |X^T V|^2 + |(I - X X^T) V|^2, outer scale apart."""
    if getattr(space, "metric", None) is None:
        return 1.0
    raise unsupported(space, "inner_product")


@_turning_weight.register(Stiefel, StiefelCanonicalMetric)
def _(space):
    return 0.5


# The flat tangent geometry ------------------------------------------------------------


@geometry.projection.register(Stiefel)
def _(space, point):
    q, r = torch.linalg.qr(point)
    return q @ polar_factor(r)


@geometry.to_tangent.register(Stiefel)
def _(space, vector, base_point):
    inner = base_point.mT @ vector
    return vector - base_point @ (inner + inner.mT) / 2


@geometry.tangent_basis.register(Stiefel)
def _(space, base_point):
    turns = base_point.unsqueeze(-3) @ skew_basis(space.p, base_point)
    rest = orthonormal_complement(base_point).mT[..., :, None, :, None]
    eye = torch.eye(space.p, dtype=base_point.dtype, device=base_point.device)
    tilts = (rest * eye[:, None, :]).flatten(-4, -3)
    return torch.cat([turns, tilts], dim=-3)


@geometry.origin.register(Stiefel)
def _(space):
    return torch.eye(space.n, space.p, dtype=torch.float64)


@geometry.constraint_residual.register(Stiefel)
def _(space, point):
    eye = torch.eye(space.p, dtype=point.dtype, device=point.device)
    return (point.mT @ point - eye).abs().flatten(-2).amax(-1)


# The canonical metric -----------------------------------------------------------------


@geometry.inner_product.register(Stiefel, StiefelCanonicalMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    turns = (base_point.mT @ tangent_vec_a) * (base_point.mT @ tangent_vec_b)
    total = (tangent_vec_a * tangent_vec_b).sum((-2, -1)) - turns.sum((-2, -1)) / 2
    return geometry.outer_scale(space) * total


@geometry.log_volume_element.register(Stiefel, StiefelCanonicalMetric)
def _(space, point):
    turns = space.p * (space.p - 1) / 2
    value = space.dim * math.log(geometry.outer_scale(space)) - turns * math.log(2)
    return torch.full(point.shape[:-2], value / 2, dtype=point.dtype, device=point.device)


@geometry.sharp.register(Stiefel, StiefelCanonicalMetric)
def _(space, covector, base_point):
    turned = base_point @ (base_point.mT @ covector)
    return (covector + turned) / geometry.outer_scale(space)


@geometry.frobenius_scale.register(StiefelCanonicalMetric)
def _(metric):
    return 1.0 if metric._space.p == 1 else None


@geometry.model.register(Stiefel, StiefelCanonicalMetric)
def _(space):
    if space.p > 1:
        return None
    found = sphere(space.n - 1)
    return geometry.Model(found, lambda x: x.squeeze(-1), lambda y: y.unsqueeze(-1))


def _generator(tangent_vec, base_point):
    """Skew matrix G, (..., n, n), of the canonical geodesic exp(t G) X along V = G X."""
    half = tangent_vec - base_point @ (base_point.mT @ tangent_vec) / 2
    outer = half @ base_point.mT
    return outer - outer.mT


@geometry.exp.register(Stiefel, StiefelCanonicalMetric)
def _(space, tangent_vec, base_point):
    return torch.linalg.matrix_exp(_generator(tangent_vec, base_point)) @ base_point


@geometry.retraction.register(Stiefel)
def _cayley(space, tangent_vec, base_point):
    half = _generator(tangent_vec, base_point) / 2
    eye = torch.eye(space.n, dtype=half.dtype, device=half.device)
    return torch.linalg.inv(eye - half) @ (base_point + half @ base_point)


# The uniform measure ------------------------------------------------------------------


@geometry.is_compact.register(Stiefel)
def _(space):
    return True


def log_volume_of_frames(n, p):
    """Log canonical volume of St(n, p), a tower of spheres S^(n-1), ..., S^(n-p)."""
    return sum(
        math.log(2) + k / 2 * math.log(math.pi) - math.lgamma(k / 2)
        for k in range(n - p + 1, n + 1)
    )


@geometry.log_volume.register(Stiefel)
def _(space):
    turns = space.p * (space.p - 1) / 2 * math.log(2 * _turning_weight(space))
    scale = space.dim * math.log(geometry.outer_scale(space))
    return log_volume_of_frames(space.n, space.p) + (turns + scale) / 2


def uniform_frames(cube, n, p):
    """Uniform frames (m, n, p) from uniform variates (m, n p)."""
    tiny = torch.finfo(cube.dtype).eps / 2
    normal = torch.special.ndtri(cube.clamp(tiny, 1 - tiny))
    # Q of a Gaussian matrix is Haar once the signs of diag(R) are made positive
    q, r = torch.linalg.qr(normal.reshape(-1, n, p))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


@geometry.unit_cube_dim.register(Stiefel)
def _(space):
    return space.n * space.p


@geometry.uniform_from_cube.register(Stiefel)
def _(space, cube):
    return uniform_frames(cube, space.n, space.p)


# Normal laws and kernels, carried by the Cayley map -----------------------------------


def pairs_last(array):
    """Matrices (..., k, l) as (k, l, ...): small ones are handled entry by entry."""
    return array.movedim((-2, -1), (0, 1)).contiguous()


def times(a, b):
    """Products of matrices (k, l, ...) and (l, m, ...), many times faster than matmul's."""
    total = a[:, 0, None] * b[None, 0]
    for j in range(1, len(b)):
        total = torch.addcmul(total, a[:, j, None], b[None, j])
    return total


def accretive_inverse(matrix):
    """Inverses of matrices (p, p, ...) of positive symmetric part, and log determinants.

    By elimination, which needs no pivots there; slogdet and solve are no alternative, since
    torch differentiates their forward derivatives wrongly. The last result says where the
    inverse keeps half its digits; elsewhere the others have no meaning, but are finite.
    """
    p, eps = len(matrix), torch.finfo(matrix.dtype).eps
    eye = torch.eye(p, dtype=matrix.dtype, device=matrix.device)
    eye = eye.reshape(p, p, *[1] * (matrix.ndim - 2)).expand_as(matrix)
    rows = torch.cat([matrix, eye], dim=1)
    log_det = torch.zeros_like(matrix[0, 0])
    regular = torch.ones_like(log_det, dtype=torch.bool)
    for j in range(p):
        positive = rows[j, j] > eps
        pivot = torch.where(positive, rows[j, j], 1.0)
        row = rows[j] / pivot
        cleared = rows - rows[:, j, None] * row
        rows = torch.cat([cleared[:j], row[None], cleared[j + 1 :]])
        log_det, regular = log_det + pivot.log(), regular & positive
    inverse = rows[:, p:]
    return inverse, log_det, regular & (inverse.square().sum((0, 1)) < 1 / eps)


def sum_of_squares(gram, weight):
    """Squared length of K W from K^T K and W."""
    return (gram * times(weight, weight.transpose(0, 1))).sum((0, 1))


def _cayley_separation(space, point, center):
    """Squared length of the V whose Cayley image is a point, and the log volume change.

    With Y = C^T X and W = (I + Y)^-1, half of V is C (W^T - W) + (X - C Y) W, and the
    volume grows by det((I + Y) / 2)^(n - 1). All is formed from X - C, so that near
    points keep their digits and equal ones are at exactly zero.
    """
    center = pairs_last(center)
    step = pairs_last(point) - center
    inner = times(center.transpose(0, 1), step)
    eye = torch.eye(space.p, dtype=inner.dtype, device=inner.device)
    eye = eye.reshape(space.p, space.p, *[1] * (inner.ndim - 2))
    weight, log_det, reached = accretive_inverse(2 * eye + inner)
    swapped = inner.transpose(0, 1)
    turn = times(weight.transpose(0, 1), times(inner - swapped, weight))
    gram = times(step.transpose(0, 1), step) - times(swapped, inner)
    squared = _turning_weight(space) * turn.square().sum((0, 1))
    squared = squared + sum_of_squares(gram, weight)
    squared = 4 * geometry.outer_scale(space) * squared
    log_volume = (space.n - 1) * (log_det - space.p * math.log(2))
    # frames that the map does not reach are infinitely far, and have no derivative
    return torch.where(reached, squared, math.inf), torch.where(reached, log_volume, 0)


register_carried_normal((Stiefel,), _cayley_separation, _cayley)
