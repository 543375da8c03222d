"""Checks of the points and numbers a caller brings."""

import math

import torch

from geoflow_plugin.geometry.tangent import constraint_residual, is_compact


def check_counts(at_least=1, **counts):
    """Refuse, by name, what is no integer or too small a one."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise ValueError(f"{name}: expected an integer >= {at_least}, got {value!r}.")


def check_positive(**numbers):
    """Refuse, by name, what is no positive, finite number."""
    for name, value in numbers.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a positive number, got {value!r}.")


def as_dtype(dtype):
    """A floating-point dtype; torch's default one for None."""
    if dtype is None:
        return torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}.")
    return dtype


def as_shape(shape, name="shape"):
    """A tuple of positive integers."""
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if not sizes or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in sizes):
        raise ValueError(f"{name}: expected a tuple of positive integers, got {shape!r}.")
    return sizes


def belongs(space, point, atol=None):
    """Whether each point lies on the space.

    Parameters
    ----------
    space : geomstats Manifold
    point : torch.Tensor, shape=(..., *space.shape)
    atol : float, optional
        Largest constraint residual; default: 1e-4 in float32, 1e-6 in float64.

    Returns
    -------
    torch.Tensor of bool, shape=(...,)
    """
    return constraint_residual(space, point) <= (_tolerance(point) if atol is None else atol)


def _tolerance(point):
    return 1e-6 if point.dtype == torch.float64 else 1e-4


def check_points(space, point, name="x", dtype=None, device=None, allow_empty=False):
    """Refuse anything but a batch of finite points on the space.

    Parameters
    ----------
    space : geomstats Manifold
    point : torch.Tensor, shape=(n, *space.shape)
    name : str
        What the caller calls this argument; it opens every message.
    dtype, device : optional
        What the points have to match.
    allow_empty : bool
        Whether n = 0 is fine.

    Raises
    ------
    TypeError
        Not a floating-point tensor, or of another dtype or device than asked for.
    ValueError
        Wrong shape, empty, NaN or infinite, or off the manifold.
    """
    if not isinstance(point, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(point).__name__}.")
    if not point.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {point.dtype}.")
    is_compact(space)  # refuses unknown spaces by name
    shape = tuple(space.shape)
    if point.ndim != len(shape) + 1 or tuple(point.shape[1:]) != shape:
        raise ValueError(
            f"{name}: expected shape (n, {', '.join(map(str, shape))}) for points of "
            f"{type(space).__qualname__}, got {tuple(point.shape)}."
        )
    if point.shape[0] == 0 and not allow_empty:
        raise ValueError(f"{name}: expected at least one point, got an empty batch.")
    if dtype is not None and point.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype}, got {point.dtype}; convert the points or move "
            "the distribution with .to(dtype)."
        )
    if device is not None and point.device != torch.device(device):
        raise TypeError(
            f"{name}: expected device {device}, got {point.device}; move the points or "
            "the distribution with .to(device)."
        )
    if torch.compiler.is_compiling():
        return
    try:
        finite = bool(point.detach().isfinite().all())
    except RuntimeError:
        # Under torch.func.vmap values cannot be looked at; shapes were.
        return
    if not finite:
        raise ValueError(f"{name}: expected finite points, got NaN or infinity.")
    try:
        residual = constraint_residual(space, point.detach())
    except torch.linalg.LinAlgError:  # too far off to be decomposed
        residual = point.new_full((len(point),), math.inf)
    if not bool((residual <= _tolerance(point)).all()):
        far = float(residual.max())
        raise ValueError(
            f"{name}: expected points on {type(space).__qualname__}, got a constraint "
            f"residual of {far:.3g}; project them first "
            "(geoflow_plugin.geometry.projection)."
        )
