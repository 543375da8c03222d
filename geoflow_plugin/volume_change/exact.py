"""The exact volume change: dim forward-mode products at once, Gram matrix, Cholesky."""

import warnings

import torch
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

from geoflow_plugin.geometry.forward_mode import jvp

__all__ = ["VolumeChangeError", "forward_mode", "half_log_det", "pushforward", "reverse_mode"]

JITTERS = (1.0, 10.0, 100.0)  # what a Gram matrix may be helped by, in units of rounding
NUMBERS = 2**20  # derivatives beyond which arithmetic outweighs calls, and memory counts


class VolumeChangeError(FloatingPointError):
    """J^T J is not positive definite, or not finite, beyond what jitter may mend."""


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

    Raises
    ------
    VolumeChangeError
        Where the Gram matrix is not positive definite.
    """
    rows = derivatives.flatten(2).movedim(0, 1)
    gram = rows @ rows.mT
    value, failed = _half_log_det(gram)
    if bool(failed.any()):
        return _half_log_det_with_jitter(gram, failed)
    return value


def _half_log_det(gram):
    root, info = torch.linalg.cholesky_ex(gram)
    value = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return value, (info != 0) | ~value.isfinite()


def _half_log_det_with_jitter(gram, failed):
    """The same where rounding made a Gram matrix indefinite: a little more than it holds."""
    first = failed
    size = gram.shape[-1]
    scale = gram.detach().diagonal(dim1=-2, dim2=-1).mean(-1)
    rounding = size * torch.finfo(gram.dtype).eps * scale
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    for factor in JITTERS:
        jitter = torch.where(first, factor * rounding, torch.zeros_like(rounding))
        value, failed = _half_log_det(gram + jitter[:, None, None] * eye)
        if not bool(failed.any()):
            warnings.warn(
                f"J^T J is singular to working precision at {name_samples(first)}; its "
                f"diagonal was raised by {factor * size:.3g} units of rounding, and the "
                "volume there is no more than an order of magnitude",
                stacklevel=2,
            )
            return value
    raise VolumeChangeError(
        f"mapping: expected an injective derivative, got J^T J that is not positive "
        f"definite, or not finite, at {name_samples(failed)} (mean of its diagonal there: "
        f"{float(scale[failed][0]):.3g})."
    )


def name_samples(mask, most=5):
    """Where a mask is true, in words."""
    index = mask.nonzero().flatten().tolist()
    shown = ", ".join(map(str, index[:most])) + (", ..." if len(index) > most else "")
    return f"{'sample' if len(index) == 1 else 'samples'} {shown} of {len(mask)}"
