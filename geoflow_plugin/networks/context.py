"""What networks are conditioned on: how many numbers, in which units, and on which side."""

import inspect
from functools import partial

import torch
from torch import nn

from geoflow_plugin.geometry.checks import as_dtype, check_counts

__all__ = ["Given", "Standardize", "context_dim_of", "refuse_context", "with_context"]


class Standardize(nn.Module):
    """Context in units of its spread in the data, (n, dim) to (n, dim).

    The identity until ``initialize`` is called, which the first ``fit`` of a flow does.

    Parameters
    ----------
    dim : int
        Number of conditioning variables.
    dtype : torch.dtype, optional

    Raises
    ------
    ValueError
        For no positive integer; when called, for a context of another length.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    is_placed: torch.Tensor

    def __init__(self, dim, dtype=None):
        super().__init__()
        check_counts(context_dim=dim)
        dtype = as_dtype(dtype)
        self.register_buffer("mean", torch.zeros(dim, dtype=dtype))
        self.register_buffer("scale", torch.ones(dim, dtype=dtype))
        # kept with the weights, so that a second fit moves nothing under them
        self.register_buffer("is_placed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def initialize(self, context):
        """Take mean and spread of the first data that come, (n, dim)."""
        if not self.is_placed:
            spread = context.std(0, correction=0)
            self.mean.copy_(context.mean(0))
            self.scale.copy_(torch.where(spread > 0, spread, 1.0))
            self.is_placed.fill_(1)

    def forward(self, context):
        """The context less its mean, over its spread."""
        dim = len(self.mean)
        if context is None or context.ndim != 2 or context.shape[1] != dim:
            found = "none" if context is None else f"shape {tuple(context.shape)}"
            raise ValueError(f"context: expected shape (n, {dim}), got {found}.")
        return (context - self.mean) / self.scale


class Given:
    """A network at what it is conditioned on: a function of points, as calculus wants it.

    Closed forms of its derivatives that the network has (``value_and_trace``,
    ``gradient_and_trace``) are there as well.
    """

    def __init__(self, network, context):
        self._network, self._context = network, context
        for name in ("value_and_trace", "gradient_and_trace"):
            if hasattr(network, name):
                setattr(self, name, partial(getattr(network, name), context=context))

    def __call__(self, x):
        """The network's values at points."""
        return self._network(x, self._context)


def context_dim_of(network):
    """Number of conditioning variables: 0 if it takes none, None if it does not say.

    The attribute ``context_dim``, where a network has it; otherwise what takes points
    alone takes none.
    """
    known = getattr(network, "context_dim", None)
    if known is not None:
        return known
    if hasattr(network, "at"):  # at each time another function, which says nothing here
        return None
    parameters = inspect.signature(network.forward).parameters.values()
    positional = [p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    several = any(p.kind is p.VAR_POSITIONAL or p.name == "context" for p in parameters)
    return None if several or len(positional) > 1 else 0


def refuse_context(context):
    """Say what to write instead of giving a context to a network that takes none."""
    if context is not None:
        raise ValueError(
            f"context: this network takes none; make it with context_dim={context.shape[-1]}."
        )


def with_context(features, standardize, context):
    """Features (n, f) beside the standardized context, where a network takes one."""
    if standardize is None:
        refuse_context(context)
        return features
    return torch.cat([features, standardize(context)], dim=-1)
