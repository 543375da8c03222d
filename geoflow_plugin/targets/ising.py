"""The Ising model on a square lattice: continuous, and its exact partition function."""

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from geoflow_plugin.geometry.checks import check_counts, check_positive
from geoflow_plugin.targets.lattice_field import LatticeTarget

__all__ = ["CRITICAL_TEMPERATURE", "IsingTarget", "exact_log_partition"]

CRITICAL_TEMPERATURE = 2 / math.log1p(math.sqrt(2))


class IsingTarget(LatticeTarget):
    r"""Continuous dual of the Ising model (Zhang, E and Wang 2018; Li and Wang 2018).

    Spins :math:`s_i = \pm 1` have :math:`p(s) \propto \exp(\frac12 s^T K s)`, with K the
    adjacency matrix of a periodic square lattice over the temperature. A shift of the
    diagonal, which adds a constant, makes :math:`K + \alpha I` positive definite; a Gaussian
    integral then decouples the spins, and summing over them leaves the density

    .. math::
        \log\pi(x) = -\tfrac12 x^T (K + \alpha I)^{-1} x + \sum_i \log\cosh x_i, \qquad
        \log\int\!\pi = \log Z + \tfrac12 \log\det 2\pi (K + \alpha I)
        + N (\tfrac{\alpha}{2} - \log 2)

    with Z the partition function of the spins, ``exact_log_partition``. Its integral, whose
    logarithm is ``log_partition``, is what the free energies of the papers refer to.

    Parameters
    ----------
    side : int
        Sites in each direction, two at least. Two sites are joined twice: once each way
        around the lattice.
    temperature : float
        In units of the coupling. Default: the critical one, 2 / log(1 + sqrt(2)).
    smallest_eigenvalue : float
        Of :math:`K + \alpha I`, which decides :math:`\alpha`. Default: that of Zhang et al.

    Attributes
    ----------
    n_dims : int
        Number of sites N.
    shift : float
        The :math:`\alpha`.
    log_partition : float
        Log of the integral of the density, exactly.
    max_log_prob : float
        Largest value of ``log_prob``.

    Raises
    ------
    ValueError
        For a side that is no integer >= 2, or numbers that are not positive.
    """

    def __init__(self, side, temperature=CRITICAL_TEMPERATURE, smallest_eigenvalue=0.1):
        check_counts(at_least=2, side=side)
        check_positive(temperature=temperature, smallest_eigenvalue=smallest_eigenvalue)
        waves = 2 * np.cos(2 * np.pi * np.arange(side) / side)
        spectrum = (waves[:, None] + waves) / temperature
        shift = smallest_eigenvalue - spectrum.min()
        spectrum = spectrum + shift
        super().__init__(1 / spectrum)
        self.temperature, self.shift = float(temperature), float(shift)
        half_log_det = np.log(2 * np.pi * spectrum).sum() / 2
        constant = half_log_det + self.n_dims * (shift / 2 - math.log(2))
        self.log_partition = exact_log_partition(side, temperature) + float(constant)
        self.max_log_prob = self.n_dims * _peak(spectrum.max())

    def _site_energy(self, z):
        return math.log(2) - z - torch.nn.functional.softplus(-2 * z)

    def spins(self, z, generator=None):
        """Draw the spins that belong to fields; those of exact fields are exact samples.

        Given the field they are independent, with p(s_i = 1) = sigmoid(2 z_i).

        Parameters
        ----------
        z : torch.Tensor
        generator : torch.Generator, optional

        Returns
        -------
        spins : torch.Tensor
            Ones and minus ones, of the shape and dtype of the fields.
        """
        return 2 * torch.bernoulli(torch.sigmoid(2 * z), generator=generator) - 1


def exact_log_partition(side, temperature=CRITICAL_TEMPERATURE):
    r"""Log partition function of the Ising model on a periodic square (Kaufman 1949).

    .. math::
        Z = \tfrac12 (2 \sinh 2K)^{N/2} \Big[ \prod_r 2\cosh\tfrac{n}{2}\gamma_{2r+1}
        + \prod_r 2\sinh\tfrac{n}{2}\gamma_{2r+1} + \prod_r 2\cosh\tfrac{n}{2}\gamma_{2r}
        + \prod_r 2\sinh\tfrac{n}{2}\gamma_{2r} \Big]

    with K = 1 / temperature, r from 0 to n - 1 for n the side, and
    :math:`\sinh^2(\gamma_k / 2) = \sinh^2(\gamma_0 / 2) + \sin^2(\pi k / 2n)`, where
    :math:`\gamma_0 = 2K + \log\tanh K` has a sign.

    Parameters
    ----------
    side : int
        Sites n in each direction, two at least; two sites are joined twice.
    temperature : float
        In units of the coupling: p(s) is proportional to exp(sum of s_i s_j / temperature
        over the 2 n^2 bonds).

    Returns
    -------
    log_partition : float

    Raises
    ------
    ValueError
        For a side that is no integer >= 2, or a temperature that is not positive.
    """
    check_counts(at_least=2, side=side)
    check_positive(temperature=temperature)
    coupling = 1 / float(temperature)
    small = math.exp(-2 * coupling)
    # gamma_0 / 2, with tanh K = (1 - e^{-2K}) / (1 + e^{-2K})
    first = coupling + math.log(-math.expm1(-2 * coupling)) / 2 - math.log1p(small) / 2
    halves = np.full(2 * side, abs(first))
    if abs(first) < 300:  # where the sine counts, and sinh does not overflow
        sines = np.sin(np.pi * np.arange(2 * side) / (2 * side))
        halves = np.arcsinh(np.hypot(math.sinh(first), sines))
    exponents = side * halves
    with np.errstate(divide="ignore"):  # at the critical point sinh is zero
        sinh = exponents + np.log(-np.expm1(-2 * exponents))
    cosh = exponents + np.log1p(np.exp(-2 * exponents))
    terms = np.array([e[start::2].sum() for start in (1, 0) for e in (cosh, sinh)])
    signs = np.array([1, 1, 1, math.copysign(1, first)])
    # scipy's logsumexp may be NaN where the largest term is the negative one
    total = terms.max() + np.log(signs @ np.exp(terms - terms.max()))
    log_sinh = 2 * coupling + math.log(-math.expm1(-4 * coupling))  # of 2 sinh 2K
    return float(total + side**2 / 2 * log_sinh - math.log(2))


def _peak(eigenvalue):
    """Largest value of log cosh x - x^2 / (2 eigenvalue).

    Constant fields are the best, for that eigenvalue of K + alpha is theirs and the largest.
    """
    energy = minimize_scalar(
        lambda x: x * x / (2 * eigenvalue) - np.logaddexp(x, -x) + math.log(2),
        bounds=(0, eigenvalue),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return max(0.0, -float(energy.fun))
