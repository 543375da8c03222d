"""Normal laws of many correlated numbers: factor analysis."""

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.checks import as_points

__all__ = ["LowRankNormal"]

_ROUNDS = 20
_LEAST_SHARE = 1e-3  # of an entry's variance that is noise, at least (Heywood cases)


class LowRankNormal(Distribution):
    r"""Normal law of :math:`x = m + W z + \sigma \odot \varepsilon`, z of ``rank`` numbers.

    Its covariance is :math:`W W^T + \operatorname{diag}(\sigma^2)`: as a base it says what
    is linear about data of high dimension, for ``dim * (rank + 2)`` numbers. White noise
    until it is fitted.

    Parameters
    ----------
    space : geomstats Euclidean
    rank : int
        Number of factors, less than ``space.dim``.
    dtype : torch.dtype, optional

    Attributes
    ----------
    mean : torch.nn.Parameter, shape=(dim,)
    factor : torch.nn.Parameter, shape=(dim, rank)
    log_noise : torch.nn.Parameter, shape=(dim,)

    Raises
    ------
    ValueError
        For points that are no vectors, or a rank out of range.
    """

    def __init__(self, space, rank, dtype=None):
        super().__init__(space, dtype)
        if tuple(space.shape) != (space.dim,):
            raise ValueError(
                f"space: expected a space of vectors, got points of shape {space.shape}."
            )
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank < space.dim:
            raise ValueError(
                f"rank: expected an integer from 1 to {space.dim - 1}, got {rank!r}."
            )
        for name, shape in {
            "mean": (space.dim,),
            "factor": (space.dim, rank),
            "log_noise": (space.dim,),
        }.items():
            zeros = torch.zeros(shape, dtype=self.dtype)
            self.register_parameter(name, torch.nn.Parameter(zeros))

    @torch.no_grad()
    def fit(self, X):
        """Maximum likelihood by principal factors (Jöreskog 1967), at fixed cost.

        Parameters
        ----------
        X : torch.Tensor or array, shape=(n, dim)
            More than ``dim`` points.

        Returns
        -------
        self : LowRankNormal

        Raises
        ------
        ValueError
            For too few points, or entries that do not vary.
        """
        X = as_points(self.space, X, "X").to(self.device)
        if len(X) <= self.space.dim:
            raise ValueError(f"X: expected more than {self.space.dim} points, got {len(X)}.")
        mean = X.double().mean(0)
        covariance = sum(
            (part.double() - mean).T @ (part.double() - mean) for part in X.split(8192)
        ) / len(X)
        variance = covariance.diagonal()
        if not bool((variance > 0).all()):
            raise ValueError(
                f"X: expected entries that vary, got {int((variance <= 0).sum())} that do not."
            )
        rank = self.factor.shape[1]
        noise = variance / 2
        for _ in range(_ROUNDS):
            scale = noise.sqrt().unsqueeze(1)
            values, vectors = torch.linalg.eigh(covariance / (scale * scale.T))
            gain = (values[-rank:] - 1).clamp_min(0).sqrt()
            factor = scale * vectors[:, -rank:] * gain
            noise = (variance - factor.square().sum(1)).clamp_min(_LEAST_SHARE * variance)
        self.mean.copy_(mean)
        self.factor.copy_(factor)
        self.log_noise.copy_(noise.log() / 2)
        return self

    def _log_prob(self, x):
        normal = torch.distributions.LowRankMultivariateNormal(
            self.mean, self.factor, (2 * self.log_noise).exp(), validate_args=False
        )
        return normal.log_prob(x) - geometry.log_volume_element(self.space, x)

    def _draw(self, n, generator):
        options = {"generator": generator, "device": self.device, "dtype": self.dtype}
        dim, rank = self.factor.shape
        common = torch.randn(n, rank, **options) @ self.factor.T
        own = torch.randn(n, dim, **options) * self.log_noise.exp()
        return self.mean + common + own, None
