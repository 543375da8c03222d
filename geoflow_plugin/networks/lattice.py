"""Potentials of fields on a periodic lattice, with all of its symmetries; those as a group."""

import itertools
import math

import torch
from torch import nn

from geoflow_plugin.networks.potentials import ACTIVATIONS

__all__ = ["LatticePotential", "lattice_orbits", "lattice_symmetries"]

_MOST_SITES = 16**2  # of a dense layer; beyond, Fourier transforms are many times cheaper


class LatticePotential(nn.Module):
    r"""One hidden layer of convolutions on a periodic lattice, exactly symmetric.

    .. math::
        \varphi(x) = \sum_k a_k \sum_{\text{sites } r} s\big((w_k * x)_r + b_k\big)

    The sum over sites is invariant under translations. Each kernel is invariant under the
    point group of the lattice (reflections and exchanges of axes; D4 in the plane), and so
    then is the potential, for nothing: a free kernel would need a feature map for each of
    its eight images. With s = ln cosh, which is even and taken without bias, the potential
    is invariant under x -> -x as well.

    Gradient and Laplacian,

    .. math::
        \nabla\varphi = \sum_k a_k w_k * s'(w_k * x + b_k), \qquad
        \Delta\varphi = \sum_k a_k \|w_k\|^2 \sum_r s''\big((w_k * x)_r + b_k\big),

    take 2 * width + 2 Fourier transforms.

    Parameters
    ----------
    side : int
        Sites in each direction.
    lattice_dim : int
        Number of directions.
    width : int
        Number of feature maps. Each is worth side ** lattice_dim hidden units that share
        their weights: two of them on 16 x 16 sites cost what 512 hidden units cost.
    radius : int, optional
        Kernels vanish further than this in any direction. Default: they reach everywhere.
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

    def __init__(
        self,
        side,
        lattice_dim=2,
        width=8,
        radius=None,
        activation="log_cosh",
        generator=None,
        dtype=None,
    ):
        super().__init__()
        _check_sizes(side=side, lattice_dim=lattice_dim, width=width)
        if radius is not None:
            _check_sizes(radius=radius)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {sorted(ACTIVATIONS)}, got {activation!r}."
            )
        self.shape = (side,) * lattice_dim
        self.width, self.activation = width, activation
        orbit, n_orbits = lattice_orbits(
            side, lattice_dim, math.inf if radius is None else radius
        )
        self.register_buffer("orbit", orbit, persistent=False)
        kernel = torch.randn(width, n_orbits, generator=generator, dtype=dtype)
        n_sites = int((orbit < n_orbits).sum())
        self.kernel = nn.Parameter(kernel / n_sites**0.5)  # of norm about 1
        amplitude = torch.randn(width, generator=generator, dtype=dtype)
        self.amplitude = nn.Parameter(0.1 / (width * len(orbit)) ** 0.5 * amplitude)
        bias = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.bias = None if activation == "log_cosh" else bias

    def forward(self, x):
        """Scalars (n,) at fields (n, n_sites) or (n, side, side, ...)."""
        value = ACTIVATIONS[self.activation][0]
        return value(self._hidden(x)).flatten(2).sum(-1) @ self.amplitude

    def gradient(self, x):
        """Gradient, of the shape of the fields."""
        slope = ACTIVATIONS[self.activation][1]
        return self._spread(slope(self._hidden(x)), x)

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
        slope = slope_of(self._hidden(x))
        curvature = curvature_of(slope).flatten(2)
        if basis is None:
            squares = self._kernels().flatten(1).square().sum(-1)
            trace = curvature.sum(-1) @ (self.amplitude * squares)
        else:
            along = self._convolved(basis.flatten(0, 1)).flatten(2)
            squares = along.square().unflatten(0, basis.shape[:2]).sum(0)
            trace = (curvature * squares).sum(-1) @ self.amplitude
        return self._spread(slope, x), trace

    @property
    def as_hidden_layer(self):
        """Function to the same potential as one dense hidden layer, whose rows are shifts.

        It takes nothing and returns

        - weight : torch.Tensor, shape=(width * n_sites, n_sites)
        - bias, amplitude : torch.Tensor, shape=(width * n_sites,)
        - activation : str

        There is none (``hasattr`` says False) beyond 256 sites, where Fourier transforms
        are many times cheaper than a dense matrix.
        """
        if math.prod(self.shape) > _MOST_SITES:
            raise AttributeError("as_hidden_layer: the lattice is too large")
        return self._hidden_layer

    def _hidden_layer(self):
        weight = self._kernels()
        for axis, side in enumerate(self.shape, start=1):
            # w[r] to w[r + s]; the kernels being even, these are all shifts
            weight = torch.cat([weight, weight.narrow(axis, 0, side - 1)], axis)
            weight = weight.unfold(axis, side, 1)
        n_sites = math.prod(self.shape)
        weight = weight.reshape(-1, n_sites)
        amplitude = self.amplitude.repeat_interleave(n_sites)
        bias = torch.zeros_like(self.amplitude) if self.bias is None else self.bias
        return weight, bias.repeat_interleave(n_sites), amplitude, self.activation

    def _kernels(self):
        """The kernels as images, (width, side, side, ...)."""
        values = nn.functional.pad(self.kernel, (0, 1))  # zero, where they do not reach
        return values[:, self.orbit].unflatten(1, self.shape)

    def _spectra(self):
        """Fourier transforms of the kernels: real, for these are even."""
        return self._transformed(self._kernels()).real

    def _transformed(self, fields):
        return torch.fft.rfftn(fields, dim=self._axes)

    def _transformed_back(self, spectra):
        return torch.fft.irfftn(spectra, s=self.shape, dim=self._axes)

    @property
    def _axes(self):
        return tuple(range(-len(self.shape), 0))

    def _convolved(self, x):
        """All w_k * x, (n, width, side, side, ...)."""
        if math.prod(x.shape[1:]) != math.prod(self.shape):
            raise ValueError(
                f"x: expected fields on {self.shape} sites, got shape {tuple(x.shape)}."
            )
        spectra = self._transformed(x.reshape(-1, 1, *self.shape))
        return self._transformed_back(spectra * self._spectra())

    def _hidden(self, x):
        hidden = self._convolved(x)
        if self.bias is None:
            return hidden
        return hidden + self.bias.reshape(-1, *[1] * len(self.shape))

    def _spread(self, slope, x):
        """The sum of all a_k w_k * s'_k, of the shape of x."""
        amplitude = self.amplitude.reshape(-1, *[1] * len(self.shape))
        spectra = self._transformed(slope) * (amplitude * self._spectra())
        return self._transformed_back(spectra.sum(1)).reshape(x.shape)


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
    _check_sizes(side=side, lattice_dim=lattice_dim)
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


def lattice_orbits(side, lattice_dim, radius=math.inf):
    """Orbit of every offset under the point group, or past the last one; their number."""
    offsets = _sites(side, lattice_dim)
    folded = torch.minimum(offsets, side - offsets).sort(-1).values
    orbits, orbit = torch.unique(folded, dim=0, return_inverse=True)
    reached = orbits[:, -1] <= radius
    n_orbits = int(reached.sum())
    number = torch.where(reached, reached.cumsum(0) - 1, n_orbits)
    return number[orbit], n_orbits


def _check_sizes(**sizes):
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer >= 1, got {value!r}.")
