"""The normal law of a tangent space, carried to the space by the exponential."""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.checks import as_numbers, as_points
from geoflow_plugin.geometry.dispatch import UnsupportedError

__all__ = ["WrappedNormal"]


class WrappedNormal(Distribution):
    """Law of exp_mean(scale * z), z standard normal in the tangent space at the mean.

    The density sums over every preimage under the exponential, divided by its volume
    change. On a compact space of dimension 2 or more, laws wide enough to go round it
    therefore have integrable poles: at the cut locus of the mean, of weight
    exp(-(pi / scale)^2 / 2), and at the mean itself, of weight exp(-(2 pi / scale)^2 / 2)
    (rounding bounds them).

    On a generic level set, which has no closed exponential, the normal law of the tangent
    space is carried along the normals at the mean and bent to end at
    ``geometry.kernel_radius``; what it has beyond that is uniform on the set.

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
        self._log_prob_at(self.mean[None], self.scale)  # refuses a space without normal laws

    @classmethod
    def supports(cls, space):
        """Whether the space has a normal law of known density."""
        try:
            mean = geometry.origin(space)[None].float()
            geometry.wrapped_normal_log_prob(space, mean, mean, torch.ones(()))
        except (TypeError, AttributeError):
            return False
        return super().supports(space)

    @torch.no_grad()
    def fit(self, X):
        """Take mean and scale from data: the Fréchet mean and the spread about it.

        Where there are no distances (generic level sets) the scale is the likeliest of a
        grid of powers of the root of 2.

        Parameters
        ----------
        X : torch.Tensor or array, shape=(n, *space.shape)
            At least two points of the space.

        Returns
        -------
        self : WrappedNormal

        Raises
        ------
        TypeError, ValueError
            For anything but a batch of finite points, of which two differ.
        """
        self._check_metric()
        X = as_points(self.space, X).to(self.device, self.dtype)
        mean = frechet_mean(self.space, X)
        try:
            if geometry.model(self.space) is not None:
                raise UnsupportedError  # in the lengths of the model, which are the law's
            squared = geometry.dist(self.space, X, mean.expand_as(X)).square()
        except UnsupportedError:
            squared, _ = geometry.kernel_separation(self.space, X, mean[None])
        scale = math.sqrt(float(squared.mean()) / geometry.dim(self.space))
        if not scale > 0:
            raise ValueError("X: expected two different points at least, got one.")
        self.mean.copy_(mean)
        radius = geometry.kernel_radius(self.space)
        if math.isfinite(radius):
            grid = radius * 2 ** torch.linspace(-10, 3, 27, dtype=X.dtype, device=X.device)
            scale = max(grid, key=lambda s: float(self._log_prob_at(X, s).mean()))
        self.scale.fill_(scale)
        return self

    def _log_prob(self, x):
        return self._log_prob_at(x, self.scale)

    def _log_prob_at(self, x, scale):
        mean = self.mean.expand(x.shape)
        return geometry.wrapped_normal_log_prob(self.space, x, mean, scale)

    def _draw(self, n, generator):
        mean = self.mean.expand(n, *self.mean.shape)
        x = geometry.random_wrapped_normal(self.space, mean, self.scale, generator)
        return x, None


def frechet_mean(space, X, n_iterations=20):
    """Point of least mean squared distance; the projected mean where there is no log."""
    found = geometry.model(space)
    if found is not None:
        return found.from_model(frechet_mean(found.space, found.to_model(X)))
    mean = geometry.projection(space, X.mean(0, keepdim=True))
    if not bool(mean.isfinite().all()):
        mean = X[:1]
    try:
        for _ in range(n_iterations):
            step = geometry.log(space, X, mean.expand_as(X)).mean(0, keepdim=True)
            mean = geometry.exp(space, step, mean)
    except UnsupportedError:
        pass
    return geometry.projection(space, mean)[0]
