"""A field of gradients on a mesh, smooth on the surface itself."""

from typing import NamedTuple

import torch
from torch import nn
from torch.func import vmap

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.geometry.checks import as_dtype, check_counts

__all__ = ["EigenfunctionField"]

_PART = 2048  # points at which all eigenfunctions are held
_FLOOR = 1e-2  # of leave-one-out densities over the uniform one


class EigenfunctionField(nn.Module):
    r"""Gradient of a potential in the eigenfunctions of a mesh's own Laplacian.

    .. math::
        \operatorname{div} w = -\sum_k a_k \varphi_k, \qquad
        -\Delta \varphi_k = \lambda_k \varphi_k,

    with learned :math:`a_k` and :math:`\varphi_k` averaged over each face, so that the density
    of a Moser flow is a series of the smoothest functions that the surface has. A field that
    is smooth in R^3 has a rough divergence where the surface is rough.

    Parameters
    ----------
    space : MeshSurface
    n_eigenfunctions : int
        How many at most, constants apart; a mesh has as many as vertices. By Weyl's law the
        last of n has waves of the length :math:`\sqrt{\pi \, \mathrm{area} / n}`.
    dtype : torch.dtype, optional
        Default: torch's default dtype, as for any module.

    Attributes
    ----------
    coefficients : torch.Tensor, shape=(n_eigenfunctions,)
        a; zero at first, so that a flow starts at its base, and what ``initialize`` makes of
        the data where a fit begins. Functions have a mean square of one over the surface.
    eigenvalues : torch.Tensor, shape=(n_eigenfunctions,)

    Raises
    ------
    TypeError
        For a space without edges.
    """

    eigenvalues: torch.Tensor
    flux: torch.Tensor

    # Under Adam, coefficients of order one have to move faster than weights.
    _gain = 30.0
    context_dim = 0

    def __init__(self, space, n_eigenfunctions=400, dtype=None):
        super().__init__()
        dtype = as_dtype(dtype)
        check_counts(n_eigenfunctions=n_eigenfunctions)
        self.space = space
        eigenvalues, flux = geometry.smooth_fluxes(space, n_eigenfunctions)
        self.register_buffer("eigenvalues", eigenvalues.to(dtype))
        self.register_buffer("flux", flux.to(dtype))
        self.scaled_coefficients = nn.Parameter(torch.zeros(len(eigenvalues), dtype=dtype))

    @property
    def coefficients(self):
        """Coefficients of the eigenfunctions, shape=(n_eigenfunctions,)."""
        return self._speed() * self.scaled_coefficients

    def _speed(self):
        return self._gain * (self.eigenvalues[0] / self.eigenvalues).sqrt()

    def fluxes(self):
        """Fluxes through the edges of the mesh, along their conormals, shape=(n_edges,)."""
        return self.flux @ self.coefficients

    def forward(self, x):
        """Tangent vectors (n, 3) at points (n, 3) of the mesh."""
        return value_and_divergence(self.space, self, x)[0]

    @torch.no_grad()
    def initialize(self, points, generator=None):
        """Start from the density of points that have diffused on the surface for a while.

        Its coefficients are the means of the eigenfunctions over the points, damped by
        exp(-eigenvalue * time), with the time that serves the leave-one-out likelihood of a
        flow on the uniform base best.

        Parameters
        ----------
        points : torch.Tensor, shape=(n, 3)
        generator : torch.Generator, optional
            Chooses some of many points to judge times by; a CPU generator.
        """
        n, value = len(points), self._values(points)
        mean = value.mean(0)
        some = value[torch.randperm(n, generator=generator)[:4096].to(points.device)]
        others = some * (n * mean - some) / max(n - 1, 1)
        best, best_likelihood = torch.zeros_like(mean), 0.0
        for halving in range(24):
            damping = (-self.eigenvalues * 2.0**-halving / self.eigenvalues[0]).exp()
            likelihood = float((1 + others @ damping).clamp_min(_FLOOR).log().mean())
            if likelihood > best_likelihood:
                best, best_likelihood = damping * mean, likelihood
        self.scaled_coefficients.copy_(best / self._speed())

    def _values(self, points):
        """Eigenfunctions at points (n, 3), averaged over each face, shape=(n, k)."""
        interpolate = geometry.interpolation(self.space)

        def eigenfunction(flux, x):
            return -interpolate(Through(flux), x)[1]

        parts = [
            vmap(eigenfunction, in_dims=(1, None), out_dims=1)(self.flux, part)
            for part in points.split(_PART)
        ]
        return torch.cat(parts)


class Through(NamedTuple):
    """A field that is known by its fluxes through edges."""

    flux: torch.Tensor

    def fluxes(self):
        """Fluxes, shape=(n_edges,)."""
        return self.flux
