"""The exact volume change: dim forward-mode products at once, Gram matrix, Cholesky or QR."""

import warnings

import torch
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

from geoflow_plugin.geometry.forward_mode import jvp

__all__ = ["VolumeChangeError", "forward_mode", "half_log_det", "pushforward", "reverse_mode"]

# Smallest singular values of J, its columns scaled to unit length, in units of rounding.
# Measured on products of random matrices, alone and with slopes of a network between them,
# of rank one less than their dimension (2 to 100): at most 7. The error by QR is 4 to 32 over
# that value (dimensions 2 to 100, every condition, both precisions).
RANK = 16.0  # not told from zero
DOUBT = 128.0  # the volume is not good to a tenth of a nat
NUMBERS = 2**20  # derivatives beyond which arithmetic outweighs calls, and memory counts


class VolumeChangeError(FloatingPointError):
    """J^T J is singular to rounding, or not finite."""


def pushforward(mapping, points, directions):
    """Values at points, and derivatives along tangent vectors at them.

    The directions are batched, the points are not: they go through the mapping once. Where
    the derivatives are many, the graph of the first half of them is not kept but made again
    on the way back, after that of the second half is gone: half the memory, at most half more
    time.

    Parameters
    ----------
    mapping : callable
        Points (n, *shape) to (n, *out_shape), row by row, without chance.
    points : torch.Tensor, shape=(n, *shape)
    directions : torch.Tensor, shape=(k, n, *shape)

    Returns
    -------
    value : torch.Tensor, shape=(n, *out_shape)
    derivatives : torch.Tensor, shape=(k, n, *out_shape)
    """
    try:
        if not _is_large(mapping, points, directions):
            return forward_mode(mapping, points, directions)
        first, second = directions.tensor_split(2)
        _, *rows = checkpoint(forward_mode, mapping, points, first, use_reentrant=False)
        value, *more = forward_mode(mapping, points, second)
        return value, torch.cat(rows + more)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
    warnings.warn(
        "the mapping has no forward-mode derivative; taking it from two reverse passes "
        f"instead, which is slower ({reason})",
        stacklevel=3,
    )
    return reverse_mode(mapping, points, directions)


def forward_mode(mapping, points, directions):
    """What ``pushforward`` says, all at once by ``torch.func``."""

    def along(direction):
        return jvp(mapping, (points,), (direction,))

    batched = vmap(along, out_dims=(None, 0), randomness="same")  # type: ignore[arg-type]
    return batched(directions)


def _is_large(mapping, points, directions):
    """Whether there is a graph to keep, outside the transforms of torch.func, and large."""
    if not torch.is_grad_enabled() or torch._C._functorch.maybe_current_level() is not None:
        return False
    count = len(directions) * len(points)
    if count <= NUMBERS // 1024:
        return False
    with torch.no_grad():
        return count * mapping(points)[0].numel() > NUMBERS


def reverse_mode(mapping, points, directions):
    """The same by two reverse passes: J v is the derivative of u -> J^T u along v."""
    with torch.enable_grad():
        value, cotangent, pulled = linear_pullback(mapping, points)
        (derivatives,) = torch.autograd.grad(
            pulled, cotangent, directions, create_graph=True, is_grads_batched=True
        )
    if torch.is_grad_enabled():
        return value, derivatives
    return value.detach(), derivatives.detach()


def linear_pullback(mapping, points):
    """Values at points, and the graph of u -> J^T u; call with gradients enabled.

    Returns
    -------
    value : torch.Tensor, shape=(n, *out_shape)
    cotangent, pulled : torch.Tensor, shape=(n, *out_shape) and (n, *shape)
        A point u = 0 and J^T u as a function of it, whose derivative is J.

    Raises
    ------
    ValueError
        If reverse mode finds no derivative, or none of that.
    """
    if not points.requires_grad:
        points = points.detach().requires_grad_()
    value, pulled = mapping(points), None
    if value.requires_grad:
        cotangent = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(
            value, points, cotangent, create_graph=True, allow_unused=True
        )
    if pulled is None or not pulled.requires_grad:
        raise ValueError(
            "mapping: expected images that depend on the points and that reverse mode can "
            "differentiate twice."
        )
    return value, cotangent, pulled


def half_log_det(derivatives):
    """Half the log determinant of the Gram matrix of vectors (k, n, *out_shape), (n,).

    From the Cholesky factor of the Gram matrix, and where that has lost half of its digits,
    from a QR decomposition of the vectors, which does not square their condition number.

    Raises
    ------
    VolumeChangeError
        Where the vectors are dependent to rounding, or not finite.
    """
    rows = derivatives.flatten(2).movedim(0, 1)
    value, weak = _by_cholesky(rows @ rows.mT)
    if not bool(weak.any()):
        return value
    # apart, as what failed has gradients that are not finite
    firm = rows[~weak]
    parts = [_by_cholesky(firm @ firm.mT)[0], _by_qr(rows[weak], weak)]
    order = torch.cat([(~weak).nonzero(), weak.nonzero()]).flatten().argsort()
    return torch.cat(parts)[order]


def _by_cholesky(gram):
    """Half the log determinants of Gram matrices, and where they lost half their digits.

    Of vectors of unit length, so that their scales do not count. The error is some units of
    rounding times the diagonal of the inverse (4 to 40 in dimensions 2 to 100, measured on
    random matrices of condition 3 to the inverse of rounding, in both precisions).
    """
    squared = gram.diagonal(dim1=-2, dim2=-1)
    length = squared.sqrt()
    root, info = torch.linalg.cholesky_ex(gram / (length.unsqueeze(-1) * length.unsqueeze(-2)))
    value = (length * root.diagonal(dim1=-2, dim2=-1)).log().sum(-1)
    with torch.no_grad():
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
        loss = inverse.square().sum(-2).amax(-1)
        weak = (info != 0) | ~(loss < torch.finfo(gram.dtype).eps ** -0.5)
    return value, weak


def _by_qr(rows, mask):
    """The same by QR decompositions of vectors (m, k, D), those of the samples in a mask."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    root = torch.linalg.qr((rows / length).mT).R
    with torch.no_grad():
        finite = root.isfinite().flatten(1).all(-1)
        singular = torch.linalg.svdvals(torch.where(finite[:, None, None], root, 0.0))
        room = singular[:, -1] / torch.finfo(rows.dtype).eps
    bad = torch.zeros_like(mask).index_put((mask,), ~(finite & (room > RANK)))
    if bool(bad.any()):
        raise VolumeChangeError(
            "mapping: expected an injective derivative, got J^T J that is singular to "
            f"rounding in {rows.dtype}, or not finite, at {name_samples(bad)}."
        )
    doubtful = torch.zeros_like(mask).index_put((mask,), room < DOUBT)
    if bool(doubtful.any()):
        warnings.warn(
            f"J^T J is nearly singular to working precision at {name_samples(doubtful)}; the "
            "volume there may be off by a tenth of a nat and more",
            stacklevel=4,
        )
    return (length.squeeze(-1) * root.diagonal(dim1=-2, dim2=-1).abs()).log().sum(-1)


def name_samples(mask, most=5):
    """Where a mask is true, in words."""
    index = mask.nonzero().flatten().tolist()
    shown = ", ".join(map(str, index[:most])) + (", ..." if len(index) > most else "")
    return f"{'sample' if len(index) == 1 else 'samples'} {shown} of {len(mask)}"
