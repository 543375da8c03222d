"""Scalar fields on a periodic lattice, as unnormalised densities."""

import math

import numpy as np
import torch
from normflows.distributions import Target

from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.networks.lattice import lattice_symmetries

__all__ = ["LatticeTarget", "Phi4Target"]


class LatticeTarget(Target):
    r"""Translation invariant density of a field on a periodic lattice.

    .. math::
        \log\pi(x) = -\tfrac12 \sum_k P_k |\hat x_k|^2 - \sum_i V(x_i)

    with a unitary Fourier transform. A leaf writes ``_site_energy``, which is V.

    Parameters
    ----------
    precision : array, shape=(side, side, ...)
        The P, real and even.

    Attributes
    ----------
    n_dims : int
        Number of sites.
    log_partition : float or None
        Log of the integral of the density, where it is known.
    max_log_prob : float
        Largest value of ``log_prob``.
    """

    precision: torch.Tensor
    log_partition: float | None = None
    max_log_prob: float

    def __init__(self, precision):
        super().__init__()
        self.lattice = precision.shape
        self.n_dims = precision.size
        half = self.lattice[-1] // 2 + 1
        # of a real field, half of the spectrum counts twice
        counts = np.full(half, 2.0)
        counts[:: self.lattice[-1] // 2 if self.lattice[-1] % 2 == 0 else half] = 1
        precision = torch.from_numpy(precision[..., :half] * counts)
        self.register_buffer("precision", precision, persistent=False)

    def log_prob(self, z):
        """Log density of fields, up to the constant ``log_partition``.

        Parameters
        ----------
        z : torch.Tensor, shape=(n, n_dims) or (n, side, side, ...)

        Returns
        -------
        log_prob : torch.Tensor, shape=(n,)

        Raises
        ------
        TypeError, ValueError
            For anything but a batch of real fields on the lattice.
        """
        if not isinstance(z, torch.Tensor) or not z.is_floating_point():
            raise TypeError(f"z: expected a floating-point torch.Tensor, got {z!r}.")
        if z.ndim < 2 or math.prod(z.shape[1:]) != self.n_dims:
            raise ValueError(
                f"z: expected shape (n, {self.n_dims}) or (n, "
                f"{', '.join(map(str, self.lattice))}), got {tuple(z.shape)}."
            )
        axes = tuple(range(1, len(self.lattice) + 1))
        spectrum = torch.fft.rfftn(z.reshape(-1, *self.lattice), dim=axes, norm="ortho")
        power = spectrum.real.square() + spectrum.imag.square()
        quadratic = (power * self.precision.to(z)).flatten(1).sum(-1)
        return -quadratic / 2 - self._site_energy(z).flatten(1).sum(-1)

    def _site_energy(self, z):
        raise NotImplementedError

    def symmetries(self):
        """All its symmetries, as a group for ``SymmetricPotential``.

        Those of the lattice, times x -> -x: 16 side ** 2 in the plane. On more than a few
        sites take a ``LatticePotential`` instead, to which they cost nothing.

        Returns
        -------
        group : list of (permutation, signs)
        """
        ones = torch.ones(self.n_dims, dtype=torch.int64)
        group = lattice_symmetries(self.lattice[0], len(self.lattice))
        return [(permutation, sign * ones) for sign in (1, -1) for permutation in group]

    def sample(self, num_samples=1):
        """There is none: rejection from a box, as normflows has it, would never end."""
        raise NotImplementedError(
            f"sample: {type(self).__name__} can be evaluated and not sampled; train a flow "
            "on its log_prob, and sample that."
        )


class Phi4Target(LatticeTarget):
    r"""Real scalar field with quartic interaction, log pi(x) = -S(x).

    .. math::
        S(x) = \sum_r \Big[ \tfrac12 \sum_\mu (x_{r + \mu} - x_r)^2 + \tfrac12 m^2 x_r^2
        + \tfrac{\lambda}{4!} x_r^4 \Big]

    In the action without halves and factorial of Albergo, Kanwar and Shanahan (2019) the
    field is smaller by sqrt(2), the mass the same, and their coupling a sixth of this one.

    Parameters
    ----------
    side : int
        Sites in each direction.
    mass_squared : float
        :math:`m^2`, which has to be positive where there is no coupling.
    coupling : float
        :math:`\lambda \ge 0`.
    lattice_dim : int
        Number of directions.

    Attributes
    ----------
    n_dims : int
        Number of sites.
    log_partition : float or None
        Log of the integral of the density; known without coupling only.
    max_log_prob : float
        Largest value of ``log_prob``.

    Raises
    ------
    ValueError
        For sizes that are no positive integers, or an action without a finite integral.
    """

    def __init__(self, side, mass_squared, coupling, lattice_dim=2):
        check_counts(side=side, lattice_dim=lattice_dim)
        numbers = mass_squared, coupling
        finite = all(isinstance(k, (int, float)) and math.isfinite(k) for k in numbers)
        if not finite or coupling < 0:
            raise ValueError(
                "mass_squared, coupling: expected finite numbers, the coupling not negative, "
                f"got {mass_squared!r} and {coupling!r}."
            )
        if coupling == 0 and mass_squared <= 0:
            raise ValueError(
                "mass_squared: expected a positive one without coupling, got "
                f"{mass_squared!r}."
            )
        squares = 4 * np.sin(np.pi * np.arange(side) / side) ** 2
        momentum = sum(np.meshgrid(*[squares] * lattice_dim, indexing="ij"))
        super().__init__(mass_squared + momentum)
        self.mass_squared, self.coupling = float(mass_squared), float(coupling)
        self.max_log_prob = 0.0
        if mass_squared < 0:  # at constant fields of square -6 m^2 / coupling
            self.max_log_prob = 1.5 * self.n_dims * mass_squared**2 / coupling
        if coupling == 0:
            modes = np.log(2 * np.pi / (mass_squared + momentum))
            self.log_partition = float(modes.sum() / 2)

    def _site_energy(self, z):
        return self.coupling / 24 * z**4
