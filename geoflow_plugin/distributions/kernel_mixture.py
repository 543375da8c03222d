"""Mixtures of the kernels of a space at given centres."""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.mixture_weights import choose

__all__ = ["CHUNK", "KernelMixture", "exponent", "log_sum_exp", "over_chunks"]

CHUNK = 2**17  # pairs of points held at a time; they fit a core's cache


class KernelMixture(Distribution):
    """Mixture of the kernels of ``geometry.kernel_separation`` at given centres.

    On spheres these are von Mises-Fisher laws, on tori products of von Mises laws, on
    rotations matrix Langevin laws, on R^d normal laws, on meshes normal laws of R^3
    restricted to the surface, elsewhere normal laws of the tangent space at the centre,
    carried to the space (on generic level sets, bounded laws much like them).

    Parameters
    ----------
    space : geomstats Manifold
    centers : torch.Tensor, shape=(m, *space.shape)
    bandwidths : torch.Tensor, shape=(b,) or (b, m)
        Shared by all centres, or one for each of them; in units of the metric.
    weights : torch.Tensor, shape=(b,) or (b, m)
        Positive; shared weights are spread evenly over the centres.
    uniform : float
        Share of the uniform law, in [0, 1), which keeps the density positive where
        kernels end (``geometry.kernel_radius``).
    """

    def __init__(self, space, centers, bandwidths, weights, uniform=0.0):
        super().__init__(space, centers.dtype)
        self.register_buffer("centers", centers.detach().clone())
        self.register_buffer("bandwidths", bandwidths.detach().to(centers).clone())
        self.register_buffer("weights", weights.detach().to(centers).clone())
        self.uniform = float(uniform)
        self.to(centers.device)
        self._normalize()

    def _normalize(self):
        """Turn the weights into log amplitudes of the kernels, (b, 1) or (b, m)."""
        shared = self.weights.ndim == 1
        columns = (lambda t: t.unsqueeze(-1)) if shared else (lambda t: t)
        bandwidths = columns(self.bandwidths)
        normalizer = geometry.log_kernel_integral(self.space, bandwidths, self.centers)
        total = self.weights.sum()
        if shared:
            total = total * len(self.centers)
        amplitude = columns((self.weights / total).log()) - normalizer
        if self.uniform:
            amplitude = amplitude + math.log1p(-self.uniform)
        self.register_buffer("_log_normalizer", normalizer, persistent=False)
        self.register_buffer("_log_amplitude", amplitude, persistent=False)
        precision = 0.5 / self.bandwidths.square()
        self.register_buffer("_precision", columns(precision), persistent=False)

    def _log_prob(self, x):
        return over_chunks(self._log_density, x, len(self.centers))

    def training_log_prob(self, x, generator=None, **given):
        """Log density without the kernel that stands on a point itself.

        A point that equals k of the m centres is scored by the other m - 1, the k - 1
        equal ones included: leave-one-out for the points that the estimate was fitted
        to, the ordinary log density elsewhere.
        """
        return over_chunks(self._log_density_elsewhere, x, len(self.centers))

    def _log_density(self, x):
        squared, log_volume = geometry.kernel_separation(self.space, x, self.centers)
        terms = [
            log_sum_exp(exponent(a, p, squared, log_volume))
            for a, p in zip(self._log_amplitude, self._precision, strict=True)
        ]
        return self._log_sum(terms)

    def _log_density_elsewhere(self, x):
        squared, log_volume = geometry.kernel_separation(self.space, x, self.centers)
        own = squared.detach() == 0
        left_out = own & (own.cumsum(1) == 1)  # one of equal centres
        terms = [
            log_sum_exp(exponent(a, p, squared, log_volume).masked_fill(left_out, -math.inf))
            for a, p in zip(self._log_amplitude, self._precision, strict=True)
        ]
        value = self._log_sum(terms)
        share = self.weights.sum(0) / self.weights.sum()
        if self.weights.ndim == 1:
            share = torch.ones_like(squared[0]) / len(self.centers)
        rest = 1 - (1 - self.uniform) * (left_out * share).sum(1)
        return value - rest.clamp_min(torch.finfo(rest.dtype).eps).log()

    def _log_sum(self, terms):
        """Log of the sum of the kernels and of the uniform law's share."""
        if self.uniform:
            level = math.log(self.uniform) - geometry.log_volume(self.space)
            terms = [*terms, torch.full_like(terms[0], level)]
        return torch.logsumexp(torch.stack(terms), dim=0)

    def _draw(self, n, generator):
        weights = (self._log_amplitude + self._log_normalizer).exp()
        weights = weights.expand(len(self.bandwidths), len(self.centers))
        index = choose(weights.flatten(), n, generator)
        row, center = index // len(self.centers), index % len(self.centers)
        bandwidths = self.bandwidths.reshape(len(self.bandwidths), -1)
        bandwidth = bandwidths.expand_as(weights)[row, center]
        x = geometry.random_kernel(self.space, self.centers[center], bandwidth, generator)
        return self._spread(x, generator), None

    def _spread(self, x, generator):
        """Replace a share of points, drawn from kernels, by points of the uniform law."""
        if not self.uniform:
            return x
        n, options = len(x), {"generator": generator, "device": x.device}
        level = geometry.random_uniform(self.space, n, dtype=x.dtype, **options)
        chosen = torch.rand(n, dtype=torch.float64, **options) < self.uniform
        return torch.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), level, x)


def exponent(log_amplitude, precision, squared, log_volume):
    """Log of a kernel at squared distances (n, m) from its centres."""
    exponent = log_amplitude - precision * squared
    return exponent if log_volume is None else exponent - log_volume


def log_sum_exp(exponents):
    """torch.logsumexp along dim 1 with half its passes over memory."""
    peak = exponents.detach().amax(1, keepdim=True).clamp_min(-1e30)
    # what is below exp(-80) of the largest changes no digit, and denormals are slow
    return (exponents - peak).clamp_min(-80).exp().sum(1).log() + peak.squeeze(1)


def over_chunks(function, x, n_centers):
    """A function of points, a bounded number of pairs with centres at a time."""
    size = max(1, CHUNK // n_centers)
    if len(x) <= size:
        return function(x)
    return torch.cat([function(part) for part in x.split(size)])
