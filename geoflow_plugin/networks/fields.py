"""Fields of any space: perceptrons from points to ambient vectors."""

import math

import torch
from torch import nn
from torch.nn.utils import skip_init

from geoflow_plugin.geometry.checks import as_dtype, as_shape, check_counts, check_positive
from geoflow_plugin.networks.context import Standardize, with_context

__all__ = ["FourierField"]


class FourierField(nn.Module):
    """Multilayer perceptron on random Fourier features of the ambient coordinates.

    The last layer starts at zero, so that a flow starts at its base.

    Parameters
    ----------
    shape : tuple of int
        Shape of a point and of a vector, ``space.shape``.
    n_features : int
        Number of frequencies (each gives a sine and a cosine).
    hidden : int
        Width of the hidden layers.
    depth : int
        Number of hidden layers.
    max_frequency : float
        Frequencies are spread logarithmically from 1/2 to this.
    context_dim : int
        Number of conditioning variables, (n, context_dim); ``fit`` standardizes them.
    generator : torch.Generator, optional
    dtype : torch.dtype, optional
        Default: torch's default dtype, as for any module.
    """

    def __init__(
        self,
        shape,
        n_features=32,
        hidden=64,
        depth=2,
        max_frequency=8.0,
        context_dim=0,
        generator=None,
        dtype=None,
    ):
        super().__init__()
        dtype, self.shape, self.context_dim = as_dtype(dtype), as_shape(shape), context_dim
        check_counts(0, context_dim=context_dim)
        self.standardize = Standardize(context_dim, dtype) if context_dim else None
        self.features = FourierFeatures(shape, n_features, max_frequency, generator, dtype)
        self.hidden, self.out = perceptron(
            2 * n_features + context_dim,
            hidden,
            depth,
            math.prod(self.shape),
            generator,
            dtype,
        )

    def forward(self, x, context=None):
        """Vectors (n, *shape) at points (n, *shape), given contexts (n, context_dim)."""
        features = with_context(self.features(x), self.standardize, context)
        return self.out(self.hidden(features)).reshape(x.shape)


class FourierFeatures(nn.Module):
    """Sines and cosines of learned frequencies, (n, *shape) to (n, 2 * n_features)."""

    amplitude: torch.Tensor

    def __init__(self, shape, n_features, max_frequency, generator, dtype):
        super().__init__()
        shape = as_shape(shape)
        check_counts(n_features=n_features)
        check_positive(max_frequency=max_frequency)
        scale = torch.logspace(-1, math.log2(max_frequency), n_features, base=2.0, dtype=dtype)
        direction = torch.randn(n_features, math.prod(shape), generator=generator, dtype=dtype)
        direction = direction / direction.norm(dim=1, keepdim=True)
        self.frequency = nn.Parameter(scale[:, None] * direction)
        # High frequencies have large derivatives; the amplitudes even them out.
        self.register_buffer("amplitude", 1 / (1 + scale).repeat(2))

    def forward(self, x):
        phase = x.flatten(1) @ self.frequency.mT
        return torch.cat([phase.sin(), phase.cos()], dim=-1) * self.amplitude


def perceptron(size, hidden, depth, n_outputs, generator, dtype):
    """Hidden layers, and a last one that starts at zero."""
    check_counts(hidden=hidden, depth=depth)
    widths = [size, *[hidden] * depth]
    layers = []
    for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [linear(width_in, width_out, generator, dtype), nn.SiLU()]
    out = _unset_linear(widths[-1], n_outputs, generator, dtype)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    return nn.Sequential(*layers), out


def linear(width_in, width_out, generator, dtype):
    """Linear layer whose weights are drawn from a generator."""
    layer = _unset_linear(width_in, width_out, generator, dtype)
    with torch.no_grad():
        layer.weight.normal_(0, 1 / math.sqrt(width_in), generator=generator)
        layer.bias.zero_()
    return layer


def _unset_linear(width_in, width_out, generator, dtype):
    """Linear layer to be filled; nn.Linear's own weights come from the global stream."""
    if generator is None:
        return nn.Linear(width_in, width_out, dtype=dtype)
    return skip_init(nn.Linear, width_in, width_out, dtype=dtype)
