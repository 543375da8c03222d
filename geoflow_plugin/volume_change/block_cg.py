"""Conjugate gradients for several right-hand sides at once, batched over matrices.

All right-hand sides of a matrix share one Krylov space (block CG, O'Leary 1980), so that
four of them take about a quarter of the steps of one. The form is Dubrulle's (Retooling
the method of block conjugate gradients, 2001), which orthonormalises residuals and so
survives their becoming dependent. Residuals are made orthogonal to all before them, or to
the first ``_KEPT`` columns: by the recurrence alone they would not stay so in single
precision, and the steps not end. They build the block tridiagonal matrix of the Lanczos
process besides, whose functions are quadratures (Golub and Meurant 2010).
"""

from typing import NamedTuple

import torch

__all__ = ["BlockSolution", "block_conjugate_gradient", "correction", "log_quadrature"]

_KEPT = 64  # columns; beyond, memory would grow with the square of the dimension


class BlockSolution(NamedTuple):
    """What ``block_conjugate_gradient`` returns.

    Attributes
    ----------
    solution : torch.Tensor, shape=(n, dim, k)
    residual : torch.Tensor, shape=(n, k)
        Norm of the residual over that of the right-hand side, by recurrence.
    basis : torch.Tensor, shape=(n, dim, m)
        Orthonormal residuals, the first ``_KEPT`` and a block at the most.
    start : torch.Tensor, shape=(n, s, k)
        Right-hand sides in the first block of the basis, s = min(dim, k).
    diagonal, lower : list of torch.Tensor, shape=(n, s, s)
        Blocks of the Lanczos matrix, one more of the former than of the latter.
    """

    solution: torch.Tensor
    residual: torch.Tensor
    basis: torch.Tensor
    start: torch.Tensor
    diagonal: list
    lower: list


def block_conjugate_gradient(product, right, tolerance, max_steps):
    """Solve G x = b for symmetric positive definite G, known by its products.

    A matrix whose columns have all converged is frozen; the steps end when all are.

    Parameters
    ----------
    product : callable
        Columns (n, dim, s) to G times them, of the same shape.
    right : torch.Tensor, shape=(n, dim, k)
    tolerance : float
        Of the norm of a residual over that of its right-hand side.
    max_steps : int

    Returns
    -------
    BlockSolution
        Whether it converged is for the caller to see; not finite where G is singular.
    """
    norm = torch.linalg.vector_norm(right, dim=-2)
    residual_basis, weight = torch.linalg.qr(right)
    start, direction = weight, residual_basis
    size = start.shape[1]
    most = size * -(-min(_KEPT, right.shape[1]) // size)
    basis = right.new_zeros(*right.shape[:2], most)
    basis[..., :size] = residual_basis
    solution = torch.zeros_like(right)
    residual = torch.ones_like(norm)
    diagonal: list[torch.Tensor] = []
    lower: list[torch.Tensor] = []
    pivot = coupling = torch.zeros_like(start[..., :1])
    for step in range(max_steps):
        image = product(direction)
        previous, pivot = pivot, direction.mT @ image
        if step == 0:
            diagonal.append(pivot)
        else:
            lower.append(-coupling @ previous)
            diagonal.append(pivot - lower[-1] @ coupling.mT)
        inverse = torch.linalg.inv_ex(pivot)[0]
        active = ~(residual <= tolerance).all(-1)[:, None]
        change = direction @ (inverse @ weight)
        solution = torch.where(active[..., None], solution + change, solution)
        residual_basis = residual_basis - image @ inverse
        known = basis[..., : size * (step + 1)]
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            residual_basis = residual_basis - known @ (known.mT @ residual_basis)
        residual_basis, coupling = torch.linalg.qr(residual_basis)
        weight = coupling @ weight
        norms = torch.linalg.vector_norm(weight, dim=-2) / norm
        residual = torch.where(active, norms, residual)
        if bool((residual <= tolerance).all()):
            break
        if known.shape[-1] < most:
            basis[..., size * (step + 1) : size * (step + 2)] = residual_basis
        direction = residual_basis + direction @ coupling.mT
    return BlockSolution(solution, residual, known, start, diagonal, lower)


def correction(solved, residual):
    """What to add to a solution whose true residuals (n, dim, k) are these.

    Its first step of refinement: the Lanczos matrix, solved instead of G. No product is
    needed. None where not all of the basis was kept.
    """
    matrix = _lanczos_matrix(solved)
    if matrix.shape[-1] != solved.basis.shape[-1]:
        return None
    root, _ = torch.linalg.cholesky_ex(matrix)
    return solved.basis @ torch.cholesky_solve(solved.basis.mT @ residual, root)


def log_quadrature(solved):
    """Quadrature of b^T log(G) b for every right-hand side, shape (n, k)."""
    value, vector = torch.linalg.eigh(_lanczos_matrix(solved))
    tiny = torch.finfo(value.dtype).tiny
    share = (solved.start.mT @ vector[:, : solved.start.shape[1]]).square()
    return (share @ value.clamp_min(tiny).log().unsqueeze(-1)).squeeze(-1)


def _lanczos_matrix(solved):
    """G in the Lanczos basis, shape (n, m, m)."""
    size, count, n = solved.start.shape[1], len(solved.diagonal), len(solved.start)
    matrix = solved.start.new_zeros(n, count, size, count, size)
    for j, block in enumerate(solved.diagonal):
        matrix[:, j, :, j] = block
    for j, block in enumerate(solved.lower):
        matrix[:, j + 1, :, j] = block
        matrix[:, j, :, j + 1] = block.mT
    return matrix.reshape(n, count * size, count * size)
