"""Kernel density estimation, with one bandwidth or a mixture of several."""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.checks import as_numbers, as_points, check_seed
from geoflow_plugin.distributions.kernel_mixture import CHUNK as _CHUNK
from geoflow_plugin.distributions.kernel_mixture import KernelMixture, exponent, log_sum_exp
from geoflow_plugin.distributions.mixture_weights import likeliest_weights

__all__ = ["KernelDensity", "KernelMixture"]


class KernelDensity(Distribution):
    """Kernel density estimate whose bandwidths are chosen by held-out likelihood.

    Parameters
    ----------
    space : geomstats Manifold
    bandwidth : float, sequence of float, or None
        One bandwidth is used as it is; among several the estimate is the mixture that
        maximises the leave-one-out likelihood of the data (a concave problem, solved
        by EM). Default: a grid of powers of 2, from the spread of the data down to
        where the dtype's digits end.
    dtype : torch.dtype, optional
        Default: that of the data.

    Notes
    -----
    Data with exact repeats make the leave-one-out likelihood favour the smallest
    bandwidth on offer, without bound; drop repeats first if they mean nothing.

    On a compact space whose kernels end (``geometry.kernel_radius``: generic level sets)
    the uniform law joins the mixture, with a share of 1 / (n + 1) at least.
    """

    n_queries = 4096  # data points on which the mixture of bandwidths is judged
    negligible = 5e-3  # bandwidths of a smaller share are dropped

    def __init__(self, space, bandwidth=None, dtype=None):
        super().__init__(space, dtype)
        _check_kernels(space)
        if bandwidth is not None:
            bandwidth = as_numbers(bandwidth, "bandwidth", torch.float64).reshape(-1)
            if not len(bandwidth) or not bool(((bandwidth > 0) & bandwidth.isfinite()).all()):
                raise ValueError(
                    f"bandwidth: expected positive numbers, got {bandwidth.tolist()}."
                )
        self.bandwidth = bandwidth
        self._dtype = dtype
        self.kernels = None

    @classmethod
    def supports(cls, space):
        """Whether the space has a normalised kernel."""
        try:
            _check_kernels(space)
        except (TypeError, AttributeError):
            return False
        return super().supports(space)

    def fit(self, X, *, seed=0):
        """Place a kernel on every point and choose the bandwidths.

        Parameters
        ----------
        X : torch.Tensor or array, shape=(n, *space.shape)
            At least two points of the space.
        seed : int
            Chooses the points on which bandwidths are judged when there are many.

        Returns
        -------
        self : KernelDensity

        Raises
        ------
        TypeError, ValueError
            For anything but a batch of finite points on the space.
        """
        X = self._take_points(X, seed)
        bandwidths = self.bandwidth
        if bandwidths is None:
            bandwidths = self._grid(X)
        bandwidths = bandwidths.to(X)
        weights, uniform = torch.ones_like(bandwidths), 0.0
        if len(bandwidths) > 1 or self._kernels_end():
            generator = torch.Generator().manual_seed(seed)
            weights = self._share_weights(X, bandwidths, generator)
            weights, uniform = self._without_uniform(weights, len(X))
            kept = weights > self.negligible
            bandwidths, weights = bandwidths[kept], weights[kept]
        weights = weights / weights.sum()
        self.kernels = KernelMixture(self.space, X, bandwidths, weights, uniform)
        return self

    def _take_points(self, X, seed):
        """Checked data in the estimate's dtype, to whose device it moves."""
        self._check_metric()
        X = as_points(self.space, X)
        if len(X) < 2:
            raise ValueError("X: expected at least two points, got one.")
        check_seed(seed)
        X = X.to(dtype=self._dtype or X.dtype)
        self.to(X.device, X.dtype)
        return X

    def _without_uniform(self, weights, n):
        """Shares of the kernels, and that of the uniform law where there is one."""
        uniform = 0.0
        if self._kernels_end():
            least = 1 / (n + 1)
            uniform = min(max(float(weights[-1]), least), 1 - least)
            weights = weights[:-1].clamp_min(torch.finfo(weights.dtype).tiny)
        return weights / weights.sum(), uniform

    @property
    def bandwidths(self):
        """Bandwidths in use after ``fit``, shape=(b,)."""
        return self._fitted().bandwidths

    @property
    def weights(self):
        """Their shares of the kernels, shape=(b,)."""
        return self._fitted().weights

    @property
    def uniform(self):
        """Share of the uniform law, zero where kernels are positive everywhere."""
        return self._fitted().uniform

    def _kernels_end(self):
        """Whether points may be beyond every kernel, and a uniform law is there to help."""
        radius = geometry.kernel_radius(self.space)
        return math.isfinite(radius) and geometry.is_compact(self.space)

    def _grid(self, X):
        spread = self._spread(X)
        widest = 2 * max(spread, 1e-3) / math.sqrt(geometry.dim(self.space))
        # from half their radius on kernels end without a kink
        widest = min(widest, geometry.kernel_radius(self.space) / 2)
        # narrower kernels than this would be rounded away in the points themselves
        narrowest = max(512 * torch.finfo(X.dtype).eps, 1e-5) * widest
        steps = int(math.log2(widest / narrowest)) + 1
        return widest * 0.5 ** torch.arange(steps, dtype=torch.float64)

    def _spread(self, X):
        """Root mean squared distance to the mean, or what pairs say of it."""
        try:
            scale = geometry.metric_scale(self.space)
        except TypeError:
            some = X[:: max(1, len(X) // 512)]
            squared, _ = geometry.kernel_separation(self.space, some, some)
            # lengths, where a kernel reaches at all: their squares may have no mean
            return float(squared[squared.isfinite()].sqrt().mean()) / math.sqrt(2)
        flat = X.flatten(1)
        return float((scale * (flat - flat.mean(0)).square().sum(-1).mean()).sqrt())

    def _share_weights(self, X, bandwidths, generator, n_iterations=500):
        """EM for the shares of the bandwidths under the leave-one-out likelihood."""
        n = len(X)
        rows = torch.randperm(n, generator=generator)[: self.n_queries]
        rows = rows.to(X.device)
        columns = bandwidths.unsqueeze(-1)
        normalizer = geometry.log_kernel_integral(self.space, columns, X)
        parts = []
        for part in rows.split(max(1, _CHUNK // n)):
            squared, log_volume = geometry.kernel_separation(self.space, X[part], X)
            squared[torch.arange(len(part)), part] = math.inf
            parts.append(
                torch.stack(
                    [
                        log_sum_exp(exponent(-c, 0.5 / h**2, squared, log_volume))
                        for h, c in zip(bandwidths, normalizer, strict=True)
                    ],
                    dim=1,
                )
            )
        log_density = torch.cat(parts).double()
        if self._kernels_end():
            level = math.log(n - 1) - geometry.log_volume(self.space)
            level = torch.full_like(log_density[:, :1], level)
            log_density = torch.cat([log_density, level], dim=1)
        return likeliest_weights(log_density, n_iterations).exp().to(bandwidths)

    def _log_prob(self, x):
        return self._fitted()._log_prob(x)

    def training_log_prob(self, x, generator=None, **given):
        """Leave-one-out log density; see ``KernelMixture.training_log_prob``."""
        return self._fitted().training_log_prob(x)

    def _draw(self, n, generator):
        return self._fitted()._draw(n, generator)

    def _fitted(self):
        if self.kernels is None:
            raise ValueError(
                "KernelDensity: not fitted yet; call fit(X) with points of the space."
            )
        return self.kernels


def _check_kernels(space):
    """Refuse by name a space without kernels."""
    center = geometry.origin(space)[None]
    geometry.log_kernel_integral(space, torch.ones(1, 1).to(center), center)
