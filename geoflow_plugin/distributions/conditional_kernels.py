"""Mixtures of kernels whose shares depend on a context."""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.kernel_mixture import (
    CHUNK,
    KernelMixture,
    exponent,
    log_sum_exp,
)
from geoflow_plugin.distributions.mixture_weights import choose

__all__ = ["ConditionalKernelMixture"]


class ConditionalKernelMixture(Distribution):
    r"""Mixture of kernels, whose centres have shares that depend on a context.

    .. math::
        p(x \mid c) = \sum_b v_b \sum_k s_k(c) \, K_{h_{bk}}(x; x_k)

    Parameters
    ----------
    space : geomstats Manifold
    centers : torch.Tensor, shape=(m, *space.shape)
    bandwidths : torch.Tensor, shape=(b,) or (b, m)
        Shared by all centres, or one for each of them; in units of the metric.
    weights : torch.Tensor, shape=(b,)
        Positive shares of the bandwidths.
    log_shares : callable
        Contexts (n, context_dim) to logs of the shares of the centres, (n, m).
    context_dim : int
    uniform : float
        As for ``KernelMixture``.
    """

    conditional = True

    def __init__(
        self, space, centers, bandwidths, weights, log_shares, context_dim, uniform=0.0
    ):
        super().__init__(space, centers.dtype)
        if bandwidths.ndim == 2:
            weights = weights.unsqueeze(-1).expand_as(bandwidths)
        self.kernels = KernelMixture(space, centers, bandwidths, weights, uniform)
        self.log_shares, self.context_dim = log_shares, context_dim
        self.to(centers.device)

    def _log_prob(self, x, context=None):
        return self._in_parts(x, context)

    def training_log_prob(self, x, generator=None, **given):
        """Log density without the kernel that stands on a point itself."""
        return self._in_parts(x, given["context"], leave_out=True)

    def _in_parts(self, x, context, leave_out=False):
        size = max(1, CHUNK // len(self.kernels.centers))
        parts = zip(x.split(size), context.split(size), strict=True)
        return torch.cat([self._log_density(*part, leave_out) for part in parts])

    def _log_density(self, x, context, leave_out):
        kernels = self.kernels
        squared, log_volume = geometry.kernel_separation(self.space, x, kernels.centers)
        # the amplitudes hold even shares, 1 / m
        log_shares, rest = self.log_shares(context), 0.0
        if leave_out:
            own = squared.detach() == 0
            own &= own.cumsum(1) == 1  # one of equal centres
            rest = 1 - (1 - kernels.uniform) * (own * log_shares.exp()).sum(1)
            rest = rest.clamp_min(torch.finfo(x.dtype).eps).log()
            log_shares = log_shares.masked_fill(own, -math.inf)
        log_shares = log_shares + math.log(len(kernels.centers))
        terms = [
            log_sum_exp(exponent(log_shares + a, p, squared, log_volume))
            for a, p in zip(kernels._log_amplitude, kernels._precision, strict=True)
        ]
        return kernels._log_sum(terms) - rest

    @torch.no_grad()
    def _draw(self, n, generator, context=None):
        kernels, centers = self.kernels, self.kernels.centers
        if not n:
            return centers.new_zeros(0, *self.space.shape), None
        options = {"generator": generator, "device": centers.device}
        index = []
        for part in context.split(max(1, CHUNK // len(centers))):
            total = self.log_shares(part).double().exp().cumsum(1)
            uniform = torch.rand(len(part), 1, dtype=torch.float64, **options)
            index.append(torch.searchsorted(total, uniform * total[:, -1:], right=True))
        center = torch.cat(index).squeeze(1).clamp_max(len(centers) - 1)
        weights = kernels.weights.reshape(len(kernels.weights), -1)[:, 0]
        row = choose(weights, n, generator)
        bandwidths = kernels.bandwidths.reshape(len(weights), -1)
        bandwidth = bandwidths.expand(-1, len(centers))[row, center]
        x = geometry.random_kernel(self.space, centers[center], bandwidth, generator)
        return kernels._spread(x, generator), None
