"""A conditional distribution at one context, for all that takes distributions of points."""

import torch

from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.checks import as_context, as_numbers

__all__ = ["AtContext"]


class AtContext(Distribution):
    """The law p(. | c) of a conditional distribution at one c.

    With it plots, checks and two-sample tests of unconditional densities apply.

    Parameters
    ----------
    distribution : Distribution
        A conditional one.
    context : torch.Tensor or array, shape=(k,) or (1, k)

    Raises
    ------
    TypeError, ValueError
        For a distribution that takes no context, or anything but one finite context of its.
    """

    context: torch.Tensor

    def __init__(self, distribution, context):
        if not (isinstance(distribution, Distribution) and distribution.conditional):
            raise TypeError(
                "distribution: expected a conditional one of this package, got "
                f"{type(distribution).__name__}."
            )
        super().__init__(distribution.space, distribution.dtype)
        self.distribution = distribution
        rows = as_numbers(context, "context", distribution.dtype)
        rows = rows[None] if rows.ndim == 1 else rows
        rows = as_context(rows, 1, distribution.device, distribution.dtype).detach()
        self.register_buffer("context", distribution._given(rows, 1)["context"].clone())
        self.to(distribution.device)

    def _log_prob(self, x):
        given = {"context": self.context.expand(len(x), -1)}
        return self.distribution._log_prob(x, **given)

    def _draw(self, n, generator):
        return self.distribution._draw(n, generator, **{"context": self.context.expand(n, -1)})
