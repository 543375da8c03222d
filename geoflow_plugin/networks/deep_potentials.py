"""Potentials: modules from points, and what they are conditioned on, to scalars."""

import torch
from torch import nn

from geoflow_plugin.geometry.checks import as_dtype, as_shape, check_counts, check_positive
from geoflow_plugin.networks.context import (
    Standardize,
    context_dim_of,
    with_context,
)
from geoflow_plugin.networks.fields import FourierFeatures, linear, perceptron

__all__ = ["FourierPotential", "InputConvexPotential", "TimeDependentPotential"]


class FourierPotential(nn.Module):
    """Multilayer perceptron on random Fourier features of the ambient coordinates.

    The last layer starts at zero, so that a flow starts at its base.

    Parameters
    ----------
    shape : tuple of int
        Shape of a point, ``space.shape`` (or that of ``geometry.embed``).
    n_features : int
        Number of frequencies (each gives a sine and a cosine).
    hidden, depth : int
        Width and number of hidden layers.
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
        max_frequency=4.0,
        context_dim=0,
        generator=None,
        dtype=None,
    ):
        super().__init__()
        dtype, self.context_dim = as_dtype(dtype), context_dim
        check_counts(0, context_dim=context_dim)
        self.standardize = Standardize(context_dim, dtype) if context_dim else None
        self.features = FourierFeatures(shape, n_features, max_frequency, generator, dtype)
        self.hidden, self.out = perceptron(
            2 * n_features + context_dim, hidden, depth, 1, generator, dtype
        )

    def forward(self, x, context=None):
        """Scalars (n,) at points (n, *shape), given contexts (n, context_dim)."""
        features = with_context(self.features(x), self.standardize, context)
        return self.out(self.hidden(features)).squeeze(-1)


class InputConvexPotential(nn.Module):
    r"""Input-convex network (Amos, Xu, Kolter 2017), whose gradient is a monotone map.

    .. math::
        z_1 = s(A_0 x + b_0), \quad z_{i+1} = s(\lambda_i z_i + A_i x + b_i),
        \quad \varphi(x) = \lambda \cdot z

    with softplus s and every :math:`\lambda` positive (a softplus of what is learned).

    Parameters
    ----------
    shape : tuple of int
        Shape of a point of a Euclidean space.
    hidden, depth : int
        Width and number of hidden layers.
    generator : torch.Generator, optional
    dtype : torch.dtype, optional
    """

    def __init__(self, shape, hidden=64, depth=2, generator=None, dtype=None):
        super().__init__()
        check_counts(hidden=hidden, depth=depth)
        dtype, size = as_dtype(dtype), torch.Size(as_shape(shape)).numel()
        self.direct = nn.ModuleList(
            [linear(size, hidden, generator, dtype) for _ in range(depth)]
        )
        # softplus(-5) is small enough to start near the identity map
        self.raw = nn.ParameterList(
            [torch.full((hidden, hidden), -5.0, dtype=dtype) for _ in range(depth - 1)]
            + [torch.full((1, hidden), -5.0, dtype=dtype)]
        )

    def forward(self, x):
        """Scalars (n,) at points (n, *shape)."""
        flat, softplus = x.flatten(1), nn.functional.softplus
        state = softplus(self.direct[0](flat))
        for raw, direct in zip(self.raw[:-1], self.direct[1:], strict=True):
            state = softplus(state @ softplus(raw).mT + direct(flat))
        return (state @ softplus(self.raw[-1]).mT).squeeze(-1)


class TimeDependentPotential(nn.Module):
    """Potential that is interpolated linearly, in time, between others.

    Parameters
    ----------
    potentials : sequence of nn.Module
        At equally spaced times from 0 to ``end``; two at least.
    end : float
        Time of the last one: ``n_steps * step_size`` of the flow.
    """

    def __init__(self, potentials, end=1.0):
        super().__init__()
        if not isinstance(potentials, (list, tuple, nn.ModuleList)) or len(potentials) < 2:
            raise ValueError(f"potentials: expected two at least, got {potentials!r}.")
        if not all(isinstance(potential, nn.Module) for potential in potentials):
            raise TypeError(f"potentials: expected torch.nn.Modules, got {potentials!r}.")
        check_positive(end=end)
        self.potentials = nn.ModuleList(potentials)
        self.end = float(end)

    @property
    def context_dim(self):
        """That of the first potential."""
        return context_dim_of(self.potentials[0])

    def at(self, time):
        """The potential at a time, a float or a scalar tensor, as a callable."""
        last = len(self.potentials) - 1
        place = min(max(float(time) / self.end, 0.0), 1.0) * last
        first = min(int(place), last - 1)
        return _Blend(self.potentials[first], self.potentials[first + 1], place - first)


class _Blend:
    """Two potentials in shares 1 - s and s."""

    def __init__(self, first, second, share):
        self.first, self.second, self.share = first, second, share

    def __call__(self, *args):
        return torch.lerp(self.first(*args), self.second(*args), self.share)
