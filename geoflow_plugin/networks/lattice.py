"""Potentials of fields on a periodic lattice, with all of its symmetries; those as a group."""

import itertools
import math

import torch
from torch import nn

from geoflow_plugin.geometry.checks import as_dtype, check_counts
from geoflow_plugin.networks.potentials import ACTIVATIONS

__all__ = ["LatticePotential", "lattice_orbits", "lattice_symmetries"]


class LatticePotential(nn.Module):
    r"""Quadratic form and one hidden layer of convolutions on a periodic lattice, symmetric.

    .. math::
        \varphi(x) = \tfrac12 \sum_k q_k |\hat x_k|^2
        + \sum_j a_j \sum_{\text{sites } r} s\big((w_j * x)_r + b_j\big)

    Sums over waves k and sites r are invariant under translations. Kernels w and the form q
    are learned as functions of the wave, one number for each orbit of waves under the point
    group of the lattice (reflections and exchanges of axes; D4 in the plane), so that the
    potential is invariant under that group for nothing: a free kernel would need a feature
    map for each of its eight images. With s = ln cosh, which is even and taken without
    bias, it is invariant under x -> -x as well.

    Gradient and Laplacian,

    .. math::
        \nabla\varphi = q * x + \sum_j a_j w_j * s'(w_j * x + b_j), \qquad
        \Delta\varphi = \sum_k q_k
        + \sum_j a_j \|w_j\|^2 \sum_r s''\big((w_j * x)_r + b_j\big),

    take 2 * width + 2 Hartley transforms, which are products with a side x side matrix along
    each axis: even kernels are diagonal between them.

    Parameters
    ----------
    side : int
        Sites in each direction.
    lattice_dim : int
        Number of directions.
    width : int
        Number of feature maps. Each is worth side ** lattice_dim hidden units that share
        their weights. At first they see averages over 0, 1, 2, 4, ... sites.
    activation : {"log_cosh", "softplus"}
        Softplus comes with biases, and is not even.
    generator : torch.Generator, optional
    dtype : torch.dtype, optional
        Default: torch's default dtype, as for any module.

    Raises
    ------
    ValueError
        For sizes that are no positive integers, or an unknown activation.
    """

    orbit: torch.Tensor
    waves: torch.Tensor

    def __init__(
        self,
        side,
        lattice_dim=2,
        width=4,
        activation="log_cosh",
        generator=None,
        dtype=None,
    ):
        super().__init__()
        check_counts(side=side, lattice_dim=lattice_dim, width=width)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {sorted(ACTIVATIONS)}, got {activation!r}."
            )
        dtype = as_dtype(dtype)
        self.shape = (side,) * lattice_dim
        self.width, self.activation = width, activation
        orbit, n_orbits = lattice_orbits(side, lattice_dim)
        self.register_buffer("orbit", orbit, persistent=False)
        self.register_buffer("waves", _waves(side).to(dtype), persistent=False)
        self.quadratic = nn.Parameter(torch.zeros(n_orbits, dtype=dtype))
        noise = torch.randn(width, n_orbits, generator=generator, dtype=dtype)
        self.spectrum = nn.Parameter(self._averages(n_orbits).to(dtype) + 0.02 * noise)
        amplitude = torch.randn(width, generator=generator, dtype=dtype)
        self.amplitude = nn.Parameter(0.01 * amplitude)
        bias = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.bias = None if activation == "log_cosh" else bias

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.waves = _waves(self.shape[0]).to(self.spectrum)  # to all digits of a new dtype
        return self

    def _averages(self, n_orbits):
        """Spectra (width, n_orbits) of Gaussian averages over ever more sites."""
        side, lattice_dim = self.shape[0], len(self.shape)
        sites = _sites(side, lattice_dim)
        wave = 2 * math.pi / side * torch.minimum(sites, side - sites).double()
        squared = torch.zeros(n_orbits, dtype=torch.float64)
        squared[self.orbit] = wave.square().sum(-1)
        reach = 2.0 ** torch.arange(self.width, dtype=torch.float64) / 2
        reach[0] = 0
        return (-0.5 * reach.clamp_max(side / 2).square().unsqueeze(1) * squared).exp()

    def forward(self, x):
        """Scalars (n,) at fields (n, n_sites) or (n, side, side, ...)."""
        value = ACTIVATIONS[self.activation][0]
        spectrum = self._spectrum_of(x)
        form = spectrum.square().flatten(1) @ self.quadratic[self.orbit] / 2
        hidden = self._hidden(spectrum).flatten(2)
        return form + value(hidden).sum(-1) @ self.amplitude

    def gradient(self, x):
        """Gradient, of the shape of the fields."""
        slope = ACTIVATIONS[self.activation][1]
        spectrum = self._spectrum_of(x)
        return self._combined(spectrum, slope(self._hidden(spectrum)), x)

    def gradient_and_trace(self, x, basis=None):
        """Gradient, and the trace of the Hessian over a basis.

        Parameters
        ----------
        x : torch.Tensor, shape=(n, n_sites) or (n, side, side, ...)
        basis : torch.Tensor, shape=(k, *x.shape), optional
            Default: an orthonormal basis, so that the trace is the Laplacian.

        Returns
        -------
        gradient : torch.Tensor, shape=x.shape
        trace : torch.Tensor, shape=(n,)
            Sum of <e_i, Hess e_i>.
        """
        _, slope_of, curvature_of = ACTIVATIONS[self.activation]
        spectrum = self._spectrum_of(x)
        slope = slope_of(self._hidden(spectrum))
        curvature = curvature_of(slope).flatten(2)
        form = self.quadratic[self.orbit]
        if basis is None:
            squares = self.spectrum[:, self.orbit].square().mean(-1)  # of kernels: Parseval
            trace = form.sum() + curvature.sum(-1) @ (self.amplitude * squares)
        else:
            along = self._spectrum_of(basis.flatten(0, 1))
            forms = (along.square().flatten(1) @ form).unflatten(0, basis.shape[:2])
            squares = self._convolved(along).flatten(2).square()
            squares = squares.unflatten(0, basis.shape[:2]).sum(0)
            trace = forms.sum(0) + (curvature * squares).sum(-1) @ self.amplitude
        return self._combined(spectrum, slope, x), trace

    def _transformed(self, fields):
        """Hartley transforms of fields (..., side, side, ...); twice is the identity."""
        for axis in range(-len(self.shape), 0):
            fields = (fields.movedim(axis, -1) @ self.waves).movedim(-1, axis)
        return fields

    def _spectrum_of(self, x):
        if math.prod(x.shape[1:]) != math.prod(self.shape):
            raise ValueError(
                f"x: expected fields on {self.shape} sites, got shape {tuple(x.shape)}."
            )
        return self._transformed(x.reshape(-1, *self.shape))

    def _kernels(self):
        """Spectra of the kernels, (width, side, side, ...)."""
        return self.spectrum[:, self.orbit].unflatten(1, self.shape)

    def _convolved(self, spectrum):
        """All w_j * x, (n, width, side, side, ...)."""
        return self._transformed(spectrum.unsqueeze(1) * self._kernels())

    def _hidden(self, spectrum):
        hidden = self._convolved(spectrum)
        if self.bias is None:
            return hidden
        return hidden + self.bias.reshape(-1, *[1] * len(self.shape))

    def _combined(self, spectrum, slope, x):
        """The gradient: q * x plus the sum of all a_j w_j * s'_j, of the shape of x."""
        amplitude = self.amplitude.reshape(-1, *[1] * len(self.shape))
        waves = (self._transformed(slope) * (amplitude * self._kernels())).sum(1)
        waves = waves + self.quadratic[self.orbit].reshape(self.shape) * spectrum
        return self._transformed(waves).reshape(x.shape)


def _waves(side):
    """Hartley's matrix (side, side), symmetric and its own inverse."""
    angle = 2 * math.pi / side * torch.arange(side, dtype=torch.float64)
    angle = angle * torch.arange(side).unsqueeze(1)
    return (angle.cos() + angle.sin()) / math.sqrt(side)


def lattice_symmetries(side, lattice_dim=2):
    """Translations, reflections and exchanges of axes of a periodic lattice, all products.

    Parameters
    ----------
    side, lattice_dim : int

    Returns
    -------
    group : torch.Tensor, shape=(order, side ** lattice_dim)
        Index permutations of flattened fields; on a square with side > 2 there are
        8 * side ** 2.
    """
    check_counts(side=side, lattice_dim=lattice_dim)
    sites = _sites(side, lattice_dim)
    strides = side ** torch.arange(lattice_dim - 1, -1, -1)
    images = []
    for axes in itertools.permutations(range(lattice_dim)):
        for signs in itertools.product((1, -1), repeat=lattice_dim):
            moved = sites[:, axes] * torch.tensor(signs)
            images.append((moved + sites.unsqueeze(1)) % side @ strides)
    return torch.unique(torch.cat(images), dim=0)  # two sites are their own mirror image


def _sites(side, lattice_dim):
    """Coordinates (n_sites, lattice_dim)."""
    return torch.cartesian_prod(*[torch.arange(side)] * lattice_dim).reshape(-1, lattice_dim)


def lattice_orbits(side, lattice_dim):
    """Orbit of every site, or wave, under the point group, (n_sites,); their number."""
    offsets = _sites(side, lattice_dim)
    folded = torch.minimum(offsets, side - offsets).sort(-1).values
    orbits, orbit = torch.unique(folded, dim=0, return_inverse=True)
    return orbit, len(orbits)
