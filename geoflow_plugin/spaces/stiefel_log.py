"""The logarithm of Stiefel manifolds under the canonical metric.

A canonical geodesic from X is exp(t G) X with G = [[A, -B^T], [B, 0]] in a frame [X, X']
of m = min(n, 2 p) columns that spans both ends, so that the logarithm is the completion of
[X, X']^T Y to a rotation whose own logarithm has a zero corner. The matrix-algebraic
iteration of Zimmermann and Hueper turns the completion until it has. It uses derivatives
of nothing and gets close; Newton's method on exp(V) = Y takes it to rounding.

It converges for ends closer than 0.89 pi, Rentmeesters' bound on the injectivity radius,
and most often beyond, where what it finds is a geodesic but maybe not a shortest one.
Where it does not converge, the logarithm is NaN.

References
----------
.. [ZH22] R. Zimmermann, K. Hueper. "Computing the Riemannian logarithm on the Stiefel
   manifold: metrics, methods and performance", SIAM J. Matrix Anal. Appl. 43(2), 2022.
"""

import cmath

import torch
from geomstats.geometry.stiefel import Stiefel, StiefelCanonicalMetric

from geoflow_plugin import geometry
from geoflow_plugin.spaces.frames import orthonormal_complement
from geoflow_plugin.spaces.geodesics import polish_logarithm
from geoflow_plugin.spaces.sphere import sphere

_N_STEPS = 20  # of the iteration that finds the start of Newton's method


def _rotation_log(rotation):
    """Logarithm of rotations, skew, by way of a Hermitian matrix with their eigenvectors.

    Of a turn by t it has the eigenvalue cos(t - 1), so that t and -t are told apart.
    """
    turned = cmath.exp(-1j) * rotation
    vectors = torch.linalg.eigh((turned + turned.mH) / 2).eigenvectors
    values = (vectors.conj() * (rotation.to(vectors) @ vectors)).sum(-2)
    matrix = (vectors * values.angle().unsqueeze(-2)) @ vectors.mH
    return -(matrix.imag - matrix.imag.mT) / 2


def _completed(columns):
    """Rotations with given first columns (..., m, p), the rest near the identity's."""
    p = columns.shape[-1]
    rest = orthonormal_complement(columns)
    left, _, right = torch.linalg.svd(rest[..., p:, :])
    # the sign of the weakest direction is free to make the determinant one
    turned = torch.cat([columns, rest @ (left @ right).mT], dim=-1)
    sign = torch.linalg.det(turned).sign()[..., None, None]
    weakest = left[..., -1:]
    flip = (1 - sign) * weakest @ weakest.mT
    return torch.cat([columns, turned[..., p:] - turned[..., p:] @ flip], dim=-1)


def _corner_turn(generator, p):
    """The turn of the completion that removes the corner C, up to third order.

    It solves S T + T S = C with S = B B^T / 12 - 1/2, kept negative where B is large.
    """
    lower, corner = generator[..., p:, :p], generator[..., p:, p:]
    values, vectors = torch.linalg.eigh(lower @ lower.mT)
    total = (values.unsqueeze(-1) + values.unsqueeze(-2)) / 12 - 1
    solution = vectors.mT @ corner @ vectors / total.clamp_max(-0.3)
    return vectors @ solution @ vectors.mT


def _approximate_log(point, base_point):
    """The logarithm to a few digits, of arrays without derivatives."""
    n, p = point.shape[-2:]
    inner = base_point.mT @ point
    if n > 2 * p:
        side, height = torch.linalg.qr(point - base_point @ inner)
        # once more, lest the frame is not orthogonal where the ends are close
        side = torch.linalg.qr(side - base_point @ (base_point.mT @ side))[0]
    else:
        side = orthonormal_complement(base_point)
    frame = torch.cat([base_point, side], dim=-1)
    rotation = frame.mT @ point
    if n > p:
        rotation = _completed(rotation)
    generator = _rotation_log(rotation)
    if rotation.shape[-1] - p > 1:
        for _ in range(_N_STEPS):
            turn = torch.linalg.matrix_exp(_corner_turn(generator, p))
            rotation = torch.cat([rotation[..., :p], rotation[..., p:] @ turn], dim=-1)
            generator = _rotation_log(rotation)
    return frame @ generator[..., :p]


@geometry.log.register(Stiefel, StiefelCanonicalMetric)
def _(space, point, base_point):
    if space.p == 1:
        ends = point.squeeze(-1), base_point.squeeze(-1)
        return geometry.log(sphere(space.n - 1), *ends).unsqueeze(-1)
    point, base_point = torch.broadcast_tensors(point, base_point)
    start = _approximate_log(point.detach(), base_point.detach())
    return polish_logarithm(space, start, point, base_point)
