"""Orthonormal frames that are smooth near each point, which is all a trace needs.

A frame that is smooth everywhere seldom exists. These start from any frame at the point
without its derivatives, carry it along by a smooth projector, and orthonormalise: the
value is the frame they started from, and every derivative is right.
"""

import math

import torch

__all__ = ["frame_from_projector", "orthonormal_complement", "orthonormal_rows"]


def orthonormal_rows(rows):
    """Gram-Schmidt on the rows of (..., k, d), by Cholesky: smooth to every order."""
    root = torch.linalg.cholesky(rows @ rows.mT)
    return torch.linalg.solve_triangular(root, rows, upper=False)


def frame_from_projector(project, base_point, dim, n_axes):
    """Frobenius-orthonormal tangent basis from the orthogonal projector on tangent spaces.

    Parameters
    ----------
    project : callable
        ``project(vector, base_point)``, linear in the vector, on arbitrary batches;
        smooth in the base point.
    base_point : torch.Tensor, shape=(..., *shape)
    dim : int
        Dimension of the tangent spaces.
    n_axes : int
        Number of axes of a point.

    Returns
    -------
    basis : torch.Tensor, shape=(..., dim, *shape)
        Differentiable in the base point along the space; not smooth from one point to
        the next, as no frame need be.
    """
    axis = base_point.ndim - n_axes
    batch, shape = base_point.shape[:axis], base_point.shape[axis:]
    size = math.prod(shape)

    def apply(rows, point):
        point = point.unsqueeze(axis).expand(*batch, rows.shape[-2], *shape)
        return project(rows.reshape(point.shape), point).flatten(axis + 1)

    fixed = base_point.detach()
    eye = torch.eye(size, dtype=fixed.dtype, device=fixed.device)
    matrix = apply(eye.expand(*batch, size, size), fixed).detach()
    # eigenvalues are 0 and 1: the last vectors span the tangent space
    vectors = torch.linalg.eigh((matrix + matrix.mT) / 2).eigenvectors
    start = vectors[..., size - dim :].mT.detach()
    return orthonormal_rows(apply(start, base_point)).reshape(*batch, dim, *shape)


def orthonormal_complement(frame):
    """Columns (..., n, n - p) that complete orthonormal ones (..., n, p).

    Differentiable in the frame, smooth near each one; which completion is arbitrary.
    """
    p = frame.shape[-1]
    full = torch.linalg.qr(frame.detach(), mode="complete").Q.detach()
    start = full[..., p:]
    return orthonormal_rows((start - frame @ (frame.mT @ start)).mT).mT
