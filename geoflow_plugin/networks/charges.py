r"""Sums over softened point charges, with a backward pass that never leaves the cache.

For points x_n, charges q_k at c_k of width h_k, with s = |x_n - c_k|^2, t = |P (x_n - c_k)|^2
(P projects on the tangent space at x_n), S = s + h_k^2 and K = S^(-d/2):

.. math::
    \mathrm{pull}_n = \sum_k q_k K c_k, \quad
    \mathrm{push}_n = \sum_k q_k K, \quad
    \mathrm{bell}_n = \sum_k q_k K (1 - t / S).

Written out in torch operations the derivatives of these take some fifty passes over
(n, n_charges) arrays in memory; here blocks of points stay in cache and the backward
pass recomputes them.
"""

import torch

__all__ = ["charge_sums"]

_BLOCK = 2**16  # pairs held at a time


def charge_sums(points, basis, centers, widths, charges):
    """Sums pull (n, D), push (n,) and bell (n,) of the module docstring.

    Differentiable in centres, widths and charges. Derivatives in the points, and
    transforms of torch.func and torch.compile, take the plain path.

    Parameters
    ----------
    points : torch.Tensor, shape=(n, D)
    basis : torch.Tensor, shape=(d, n, D)
        Orthonormal basis of the tangent space at each point.
    centers : torch.Tensor, shape=(k, D)
    widths : torch.Tensor, shape=(k,)
    charges : torch.Tensor, shape=(k,) or (n, k)
        The same at all points, or each point's own.
    """
    arguments = points, basis, centers, widths, charges
    if torch.compiler.is_compiling() or points.requires_grad or basis.requires_grad:
        return _plain(*arguments)
    try:
        return _ChargeSums.apply(*arguments)
    except RuntimeError as error:
        if "functorch" not in str(error):
            raise
        return _plain(*arguments)


def _plain(points, basis, centers, widths, charges):
    softened, kernel, tangential, _ = _pairs(points, basis, centers, widths)
    bell = kernel * (1 - tangential / softened)
    if charges.ndim == 2:
        weighted = kernel * charges
        return weighted @ centers, weighted.sum(1), (bell * charges).sum(1)
    pull = kernel @ (charges.unsqueeze(-1) * centers)
    return pull, kernel @ charges, bell @ charges


def _pairs(points, basis, centers, widths):
    """Arrays (n, k): softened squared distance, kernel, tangential part, coordinates."""
    # differences before squares, so that near pairs keep their digits
    softened = sum(
        (points[:, j : j + 1] - centers[:, j]).square() for j in range(points.shape[1])
    )
    softened = softened + widths.square()
    coordinates = [(e * points).sum(-1, keepdim=True) - e @ centers.mT for e in basis]
    tangential = sum(coordinate.square() for coordinate in coordinates)
    return softened, _power(softened, len(basis)), tangential, coordinates


def _power(softened, dim):
    if dim == 2:
        return softened.reciprocal()
    if dim % 2 == 0:
        return softened.reciprocal() ** (dim // 2)
    root = softened.rsqrt()
    return root if dim == 1 else root**dim


def _blocks(n_points, n_charges):
    size = max(1, _BLOCK // max(1, n_charges))
    return [slice(i, min(i + size, n_points)) for i in range(0, n_points, size)]


def _of(charges, block):
    return charges[block] if charges.ndim == 2 else charges


class _ChargeSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, points, basis, centers, widths, charges):
        ctx.save_for_backward(points, basis, centers, widths, charges)
        blocks = _blocks(len(points), len(centers))
        parts = [
            _plain(points[b], basis[:, b], centers, widths, _of(charges, b)) for b in blocks
        ]
        if not parts:
            return _plain(points, basis, centers, widths, charges)
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_pull, grad_push, grad_bell):
        points, basis, centers, widths, charges = ctx.saved_tensors
        half_dim = len(basis) / 2
        to_centers = torch.zeros_like(centers)
        to_square = torch.zeros_like(widths)
        to_charges = torch.zeros_like(charges)
        for b in _blocks(len(points), len(centers)):
            x, e, q = points[b], basis[:, b], _of(charges, b)
            softened, kernel, tangential, coordinates = _pairs(x, e, centers, widths)
            inverse = softened.reciprocal()
            # what a unit charge contributes to the loss through each pair
            through_kernel = torch.addmm(grad_push[b].unsqueeze(-1), grad_pull[b], centers.mT)
            through_bell = grad_bell[b].unsqueeze(-1) * kernel
            share = tangential * inverse
            bell = through_bell * (1 - share)
            plain = through_kernel * kernel
            if charges.ndim == 2:
                to_charges[b] = plain + bell
                to_centers += (q * kernel).mT @ grad_pull[b]
            else:
                to_charges += (plain + bell).sum(0)
                to_centers += q.unsqueeze(-1) * (kernel.mT @ grad_pull[b])
            # derivative in S, then in s = |x - c|^2 and in the tangential coordinates
            along = (through_bell * share - half_dim * (plain + bell)) * inverse
            along *= q
            total = along.sum(0)
            to_square += total
            to_centers += 2 * (total.unsqueeze(-1) * centers - along.mT @ x)
            across = through_bell * inverse
            across *= 2 * q
            for direction, coordinate in zip(e, coordinates, strict=True):
                # t falls with the coordinate <e, x - c>, whose derivative in c is -e
                to_centers += (across * coordinate).mT @ direction
        return None, None, to_centers, 2 * widths * to_square, to_charges
