"""The uniform distribution of a compact space."""

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution

__all__ = ["Uniform"]


class Uniform(Distribution):
    """Uniform (Haar) distribution: log density minus the log of the total volume.

    Parameters
    ----------
    space : geomstats Manifold
        A compact space.
    dtype : torch.dtype, optional

    Raises
    ------
    ValueError
        If the space has infinite volume.
    TypeError
        If the space is not supported.
    """

    def __init__(self, space, dtype=None):
        super().__init__(space, dtype)
        if not geometry.is_compact(space):
            raise ValueError(
                f"space: {type(space).__qualname__} has infinite volume, hence no "
                "uniform distribution; use WrappedNormal."
            )
        geometry.unit_cube_dim(space)  # refuses a metric of no known uniform measure

    @classmethod
    def supports(cls, space):
        """Whether the space is known and compact, and its measure known."""
        try:
            compact = geometry.is_compact(space)
            if compact:
                geometry.unit_cube_dim(space)
        except (TypeError, AttributeError):
            return False
        return compact and super().supports(space)

    def _log_prob(self, x):
        # zero times x keeps batching and derivatives of any transform alive
        return 0 * x.flatten(1).sum(-1) - geometry.log_volume(self.space)

    def _draw(self, n, generator):
        x = geometry.random_uniform(self.space, n, generator, self.device, self.dtype)
        return x, None
