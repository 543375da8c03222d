"""What a distribution takes as points, numbers and options, and refuses by name."""

import numpy as np
import torch

from geoflow_plugin import geometry
from geoflow_plugin.geometry.checks import check_counts, check_positive

__all__ = [
    "as_context",
    "as_device",
    "as_numbers",
    "as_points",
    "check_component",
    "check_fit_options",
    "check_seed",
]


def as_device(device):
    """A torch.device, or an error that names the argument."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: expected a torch.device or its name, got {device!r}.")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} is none of torch's ({error}).") from error


def as_numbers(values, name, dtype):
    """Real numbers as a tensor, or a TypeError that names the argument."""
    try:
        # by way of NumPy, whose floats do not depend on torch's default dtype
        is_tensor = isinstance(values, torch.Tensor)
        numbers = values if is_tensor else torch.as_tensor(np.asarray(values))
        if numbers.is_complex():
            raise TypeError("complex")
        return numbers.detach().to(dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected real numbers, got {values!r}.") from error


def check_component(space, distribution, name):
    """Refuse what is no distribution, or one of ours that lives on another space."""
    geometry.log_volume_element(space, geometry.origin(space)[None])  # refuses by name
    if not callable(getattr(distribution, "log_prob", None)):
        raise TypeError(
            f"{name}: expected a distribution with log_prob, got "
            f"{type(distribution).__name__}."
        )
    other = getattr(distribution, "space", space)
    if type(other) is not type(space) or tuple(other.shape) != tuple(space.shape):
        raise ValueError(
            f"{name}: expected a distribution on {type(space).__qualname__} with points "
            f"of shape {tuple(space.shape)}, got one on {type(other).__qualname__} with "
            f"shape {tuple(other.shape)}."
        )


def as_points(space, x, name="X"):
    """Checked tensor of the points in a tensor or array, in its own dtype."""
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f":
            raise TypeError(f"{name}: expected a floating-point array, got {x.dtype}.")
        x = torch.as_tensor(np.array(x, copy=True))
    geometry.check_points(space, x, name)
    return x.detach()


def as_context(context, n, device, dtype):
    """Checked tensor (n, k) of what points are conditioned on, converted."""
    numbers = as_numbers(context, "context", dtype) if not _has_graph(context) else context
    if numbers.ndim != 2 or len(numbers) != n:
        raise ValueError(
            f"context: expected shape ({n}, k), a row for each point, got "
            f"{tuple(numbers.shape)}."
        )
    if not bool(numbers.detach().isfinite().all()):
        raise ValueError("context: expected finite numbers, got NaN or infinity.")
    return numbers.to(device, dtype)


def _has_graph(x):
    return isinstance(x, torch.Tensor) and x.requires_grad


def check_fit_options(max_steps, batch_size, learning_rate, patience, seed):
    """Refuse options of ``fit`` that are out of range."""
    counts = {"max_steps": max_steps, "batch_size": batch_size}
    if patience is not None:
        counts["patience"] = patience
    check_counts(**counts)
    check_positive(learning_rate=learning_rate)
    check_seed(seed)


def check_seed(seed):
    """Refuse what is no integer."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected an integer, got {seed!r}.")
