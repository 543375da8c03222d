"""Normal laws of fields on a periodic lattice, with all of its symmetries."""

import math

import torch
from torch import nn

from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.networks.lattice import lattice_orbits

__all__ = ["LatticeNormal"]


class LatticeNormal(Distribution):
    r"""Centred normal law that is diagonal in the waves of a lattice, and learnable.

    .. math::
        \hat x_k = \sigma_k \hat z_k, \quad z \sim N(0, 1)

    with one scale for each orbit of waves under reflections and exchanges of axes. White
    noise at first. As a base of a flow it says all that is quadratic about a target, and
    leaves to the flow what is not.

    Parameters
    ----------
    space : geomstats Euclidean
        Of dimension side ** lattice_dim, with the standard metric.
    side : int
        Sites in each direction.
    lattice_dim : int
        Number of directions.
    dtype : torch.dtype, optional

    Raises
    ------
    ValueError
        If the space has another dimension.
    """

    orbit: torch.Tensor

    def __init__(self, space, side, lattice_dim=2, dtype=None):
        super().__init__(space, dtype)
        check_counts(side=side, lattice_dim=lattice_dim)
        if tuple(space.shape) != (side**lattice_dim,):
            raise ValueError(
                f"space: expected Euclidean({side}**{lattice_dim}) for a lattice of side "
                f"{side} in {lattice_dim} dimensions, got points of shape "
                f"{tuple(space.shape)}."
            )
        orbit, n_orbits = lattice_orbits(side, lattice_dim)
        self.lattice = (side,) * lattice_dim
        self.register_buffer("orbit", orbit, persistent=False)
        self.log_scale = nn.Parameter(torch.zeros(n_orbits, dtype=self.dtype))

    def _filtered(self, x, scale):
        """Fields (n, n_sites) whose waves are multiplied by (n_sites,)."""
        axes = tuple(range(1, len(self.lattice) + 1))
        half = self.lattice[-1] // 2 + 1
        scale = scale.reshape(self.lattice)[..., :half]
        spectrum = torch.fft.rfftn(x.reshape(-1, *self.lattice), dim=axes) * scale
        return torch.fft.irfftn(spectrum, s=self.lattice, dim=axes).reshape(x.shape)

    def _log_prob(self, x):
        log_scale = self.log_scale[self.orbit]
        white = self._filtered(x, (-log_scale).exp())
        constant = 0.5 * math.log(2 * math.pi) * white.shape[1]
        return -0.5 * white.square().sum(1) - constant - log_scale.sum()

    def _draw(self, n, generator):
        white = torch.randn(
            n, len(self.orbit), generator=generator, device=self.device, dtype=self.dtype
        )
        return self._filtered(white, self.log_scale[self.orbit].exp()), None
