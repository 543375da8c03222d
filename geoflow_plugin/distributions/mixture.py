"""Mixtures of distributions on one space."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from geoflow_plugin.distributions.base import Distribution, sample_from, takes_context
from geoflow_plugin.distributions.checks import as_numbers, as_points, check_component
from geoflow_plugin.distributions.mixture_weights import choose, likeliest_weights
from geoflow_plugin.geometry.checks import check_counts

__all__ = ["Mixture"]


class Mixture(Distribution):
    """Weighted mixture sum_j weight_j p_j(x) of distributions on one space.

    A Moser flow on the uniform base mixed with a kernel density is itself a Moser
    flow: its base is the mixture of the kernel density and the uniform law, its field
    moves the uniform part alone. A context goes to the components that take one; the
    weights do not depend on it.

    Parameters
    ----------
    space : geomstats Manifold
    components : sequence of distributions on the space
        Ours or of normflows.
    weights : sequence of float, optional
        Positive; default: equal. ``fit`` replaces them.
    """

    components: Any  # a ModuleList of distributions
    weights: torch.Tensor

    def __init__(self, space, components, weights=None):
        if isinstance(components, str) or not isinstance(components, Iterable):
            raise TypeError(
                f"components: expected a sequence of distributions, got {components!r}."
            )
        components = list(components)
        for component in components:
            check_component(space, component, "components")
        if not components:
            raise ValueError("components: expected at least one distribution, got none")
        dtypes = {c.dtype for c in components if hasattr(c, "dtype")}
        if len(dtypes) > 1:
            raise TypeError(
                f"components: expected one dtype, got {sorted(map(str, dtypes))}; "
                "convert them with .to(dtype)."
            )
        dtype = next((c.dtype for c in components if hasattr(c, "dtype")), None)
        super().__init__(space, dtype)
        self.components = nn.ModuleList(components)
        self.conditional = any(map(takes_context, components))
        dims = {c.context_dim for c in components if getattr(c, "context_dim", None)}
        if len(dims) > 1:
            raise ValueError(f"components: expected one context_dim, got {sorted(dims)}.")
        self.context_dim = dims.pop() if dims else None
        weights = [1.0] * len(components) if weights is None else weights
        weights = as_numbers(weights, "weights", self.dtype)
        valid = weights.shape == (len(components),) and bool((weights > 0).all())
        if not valid or not bool(weights.isfinite().all()):
            raise ValueError(
                f"weights: expected {len(components)} positive numbers, got "
                f"{weights.tolist()}."
            )
        self.register_buffer("weights", weights / weights.sum())

    def fit(self, X, *, n_iterations=500, context=None):
        """Maximise the likelihood of X over the weights alone (concave, by EM).

        Use data that no component was fitted to, or the one that remembers most wins.
        The first component is the baseline: it is kept alone unless the mixture beats
        it by more than two standard errors of their paired difference.

        Parameters
        ----------
        X : torch.Tensor or array, shape=(n, *space.shape)
        n_iterations : int
        context : torch.Tensor or array, shape=(n, k), optional
            For components that are conditional.

        Returns
        -------
        self : Mixture

        Raises
        ------
        TypeError, ValueError
            For anything but a batch of finite points on the space.
        """
        self._check_metric()
        check_counts(n_iterations=n_iterations)
        X = as_points(self.space, X).to(self.device, self.dtype)
        given = self._given(context, len(X))
        with torch.no_grad():
            columns = [_log_prob(c, X, **given) for c in self.components]
            log_density = torch.stack(columns, dim=1).double()
            log_weights = likeliest_weights(log_density, n_iterations)
            mixed = torch.logsumexp(log_density + log_weights, dim=1)
            gain = mixed - log_density[:, 0]
            if len(X) < 2 or gain.mean() <= 2 * gain.std() / math.sqrt(len(X)):
                log_weights = torch.full_like(log_weights, -math.inf)
                log_weights[0] = 0.0
            self.weights.copy_(log_weights.exp())
        return self

    def _log_prob(self, x, context=None):
        values = [
            _log_prob(component, x, context) + weight.log()
            for component, weight in zip(self.components, self.weights, strict=True)
            if weight > 0
        ]
        return torch.logsumexp(torch.stack(values), dim=0)

    def _draw(self, n, generator, context=None):
        index = choose(self.weights, n, generator)
        if context is not None:
            x = self._anchor.new_zeros(n, *self.space.shape)
            for j, component in enumerate(self.components):
                rows = (index == j).nonzero().squeeze(1)
                if len(rows):
                    x[rows] = sample_from(component, len(rows), generator, context[rows])
            return x, None
        counts = torch.bincount(index, minlength=len(self.components)).tolist()
        parts = [
            sample_from(component, count, generator)
            for component, count in zip(self.components, counts, strict=True)
            if count
        ]
        if not parts:
            return self._anchor.new_zeros(0, *self.space.shape), None
        order = torch.randperm(n, generator=generator, device=self.device)
        return torch.cat(parts)[order], None


def _log_prob(component, x, context=None):
    if context is None or not takes_context(component):
        return component.log_prob(x)
    return component.log_prob(x, context=context)
