"""The normal law of a tangent space, carried to the space by the exponential."""

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.checks import as_numbers

__all__ = ["WrappedNormal"]


class WrappedNormal(Distribution):
    """Law of exp_mean(scale * z), z standard normal in the tangent space at the mean.

    The density sums over every preimage under the exponential, divided by its volume
    change. On a compact space of dimension 2 or more, laws wide enough to go round it
    therefore have integrable poles: at the cut locus of the mean, of weight
    exp(-(pi / scale)^2 / 2), and at the mean itself, of weight exp(-(2 pi / scale)^2 / 2)
    (rounding bounds them).

    Parameters
    ----------
    space : geomstats Manifold
    mean : torch.Tensor, shape=space.shape, optional
        Default: a fixed point of the space (first pole, identity, origin).
    scale : float
        Standard deviation per tangent direction, in units of the metric.
    dtype : torch.dtype, optional
        Default: that of the mean, or torch's default dtype.

    Raises
    ------
    ValueError, TypeError
        For a mean off the space, a scale that is not positive, an unknown space.
    """

    def __init__(self, space, mean=None, scale=1.0, dtype=None):
        if mean is not None:
            if not isinstance(mean, torch.Tensor):
                mean = as_numbers(mean, "mean", torch.float64)
            geometry.check_points(space, mean[None], "mean")
            dtype = dtype or mean.dtype
        super().__init__(space, dtype)
        if mean is None:
            mean = geometry.origin(space).to(self.dtype)
        scale = as_numbers(scale, "scale", self.dtype)
        if scale.ndim or not bool(scale.isfinite()) or not bool(scale > 0):
            raise ValueError(f"scale: expected one positive number, got {scale}.")
        self.register_buffer("mean", mean.detach().to(self.dtype).clone())
        self.register_buffer("scale", scale.detach().clone())

    def _log_prob(self, x):
        mean = self.mean.expand(x.shape)
        return geometry.wrapped_normal_log_prob(self.space, x, mean, self.scale)

    def _draw(self, n, generator):
        mean = self.mean.expand(n, *self.mean.shape)
        x = geometry.random_wrapped_normal(self.space, mean, self.scale, generator)
        return x, None
