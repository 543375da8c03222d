"""Conditional kernel density: the honest baseline of densities p(x | c)."""

import math

import torch
from torch import nn

from geoflow_plugin import geometry
from geoflow_plugin.distributions.checks import as_context
from geoflow_plugin.distributions.conditional_kernels import ConditionalKernelMixture
from geoflow_plugin.distributions.kernel_density import KernelDensity
from geoflow_plugin.distributions.mixture_weights import likeliest_weights
from geoflow_plugin.networks.context import Standardize

__all__ = ["ConditionalKernelDensity"]

_FACTORS = 2.0 ** torch.arange(3, -6, -1, dtype=torch.float64)  # of a context's spread
_SWEEPS = 2


class ConditionalKernelDensity(KernelDensity):
    r"""Product kernels: a kernel density of points that are weighted by their contexts.

    .. math::
        p(x \mid c) = \frac{\sum_i e^{-\frac12 \|(c - c_i) / b\|^2} K_h(x; x_i)}
                           {\sum_i e^{-\frac12 \|(c - c_i) / b\|^2}}

    (Hyndman, Bashtannyk, Grunwald 1996.) One bandwidth b for each conditioning variable, and
    a mixture of several h, are those of the largest leave-one-out conditional likelihood: b by
    coordinate search over powers of 2 of the variable's spread, from 8 spreads (where it says
    hardly anything) down, h by EM for each.

    Parameters
    ----------
    space, bandwidth, dtype
        As for ``KernelDensity``.

    Attributes
    ----------
    context_bandwidths : torch.Tensor, shape=(k,)
        After ``fit``: b, in the units of the context.
    """

    conditional = True
    n_queries = 512  # data points on which bandwidths are judged

    def fit(self, X, context, *, seed=0):  # type: ignore[override]
        """Place a kernel on every point and choose the bandwidths.

        Parameters
        ----------
        X : torch.Tensor or array, shape=(n, *space.shape)
            At least two points of the space.
        context : torch.Tensor or array, shape=(n, k)
            What each point is conditioned on.
        seed : int
            Chooses the points on which bandwidths are judged when there are many.

        Returns
        -------
        self : ConditionalKernelDensity

        Raises
        ------
        TypeError, ValueError
            For anything but a batch of finite points on the space, with finite contexts.
        """
        X = self._take_points(X, seed)
        self.context_dim = None  # that of these data, whatever came before
        context = as_context(context, len(X), self.device, self.dtype).detach()
        shares = _GaussianShares(context)
        bandwidths = (self._grid(X) if self.bandwidth is None else self.bandwidth).to(X)
        chosen = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
        search = _Search(self, X, bandwidths, shares, chosen[: self.n_queries].to(X.device))
        scale, weights = search.run()
        shares.scale.copy_(scale)
        weights, uniform = self._without_uniform(weights, len(X))
        kept = weights > self.negligible
        self.context_dim = context.shape[1]
        self.kernels = ConditionalKernelMixture(
            self.space, X, bandwidths[kept], weights[kept], shares, self.context_dim, uniform
        )
        return self

    @property
    def bandwidths(self):
        """Bandwidths of points in use after ``fit``, shape=(b,)."""
        return self._fitted().kernels.bandwidths

    @property
    def weights(self):
        """Their shares of the kernels, shape=(b,)."""
        return self._fitted().kernels.weights

    @property
    def uniform(self):
        """Share of the uniform law, zero where kernels are positive everywhere."""
        return self._fitted().kernels.uniform

    @property
    def context_bandwidths(self):
        """Bandwidths b in the units of the context, shape=(k,)."""
        shares = self._fitted().log_shares
        return shares.scale * shares.standardize.scale

    def _log_prob(self, x, context=None):
        return self._fitted()._log_prob(x, context)

    def training_log_prob(self, x, generator=None, **given):
        """Leave-one-out log density, for points that the estimate was fitted to."""
        return self._fitted().training_log_prob(x, **given)

    def _draw(self, n, generator, context=None):
        return self._fitted()._draw(n, generator, context)

    def _fitted(self):
        if self.kernels is None:
            raise ValueError(
                f"{type(self).__name__}: not fitted yet; call fit(X, context) with points of "
                "the space."
            )
        return self.kernels


class _GaussianShares(nn.Module):
    """Shares of data given a context, a normal law's of the way to their own."""

    scale: torch.Tensor
    places: torch.Tensor

    def __init__(self, context):
        super().__init__()
        self.standardize = Standardize(context.shape[1], context.dtype).to(context.device)
        self.standardize.initialize(context)
        self.register_buffer("places", self.standardize(context))
        self.register_buffer("scale", torch.ones_like(self.places[0]))

    def forward(self, context):
        return self.logits(self.standardize(context), self.scale).log_softmax(1)

    def logits(self, given, scale):
        """Of standardized contexts (n, k): up to a constant each, (n, m)."""
        squared = torch.cdist(
            given / scale, self.places / scale, compute_mode="donot_use_mm_for_euclid_dist"
        )
        return -0.5 * squared.square()


class _Search:
    """Leave-one-out conditional likelihoods of some rows, for one scale after another."""

    def __init__(self, estimate, X, bandwidths, shares, rows):
        self.shares, self.rows = shares, rows
        space = estimate.space
        normalizer = geometry.log_kernel_integral(space, bandwidths.unsqueeze(-1), X)
        squared, log_volume = geometry.kernel_separation(space, X[rows], X)
        # kernels (b, rows, n) relative to the largest of a row, in bounded blocks of b
        self.kernels = []
        for h, c in zip(bandwidths, normalizer, strict=True):
            value = -c - squared / (2 * h.square())
            value = value if log_volume is None else value - log_volume
            value[torch.arange(len(rows), device=X.device), rows] = -math.inf
            peak = value.amax(1, keepdim=True).clamp_min(-1e30)
            self.kernels.append(((value - peak).exp(), peak.squeeze(1).double()))
        self.level = -geometry.log_volume(space) if estimate._kernels_end() else None

    def run(self):
        """Scale (k,) and shares of the bandwidths, by coordinate search."""
        best = self._best([(f.expand(self.shares.places.shape[1])) for f in _FACTORS])
        dim = len(best[1])
        for _ in range(_SWEEPS if dim > 1 else 0):
            for j in range(dim):
                candidates = []
                for factor in _FACTORS:
                    scale = best[1].clone()
                    scale[j] = factor
                    candidates.append(scale)
                best = max(best, self._best(candidates), key=lambda found: found[0])
        return best[1], best[2]

    def _best(self, scales):
        return max((self._judge(scale) for scale in scales), key=lambda found: found[0])

    def _judge(self, scale):
        """Likelihood with this scale and the best shares of bandwidths, by EM."""
        shares, rows = self.shares, self.rows
        logits = shares.logits(shares.places[rows], scale.to(shares.places))
        logits[torch.arange(len(rows), device=rows.device), rows] = -math.inf
        weight = logits.softmax(1)
        columns = [
            ((weight * kernel).sum(1).double() + 1e-300).log() + peak
            for kernel, peak in self.kernels
        ]
        if self.level is not None:
            columns.append(torch.full_like(columns[0], self.level))
        log_density = torch.stack(columns, dim=1)
        log_weights = likeliest_weights(log_density, 100)
        likelihood = float(torch.logsumexp(log_density + log_weights, dim=1).mean())
        return likelihood, scale, log_weights.exp()
