"""The laws of a space."""

import torch

from geoflow_plugin.distributions.checks import check_seed
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.testing import chance, laws, motion
from geoflow_plugin.testing.case import Case
from geoflow_plugin.testing.figures import raise_broken


def check_space(space, *, n=64, n_samples=4000, seed=0, dtype=torch.float64, device="cpu"):
    """Try the laws of geometry on a space, registered by whomever.

    Tangent spaces, metric, volume element, gradient, divergence, Laplacian, exponential,
    logarithm, distance and chart on random points, Stokes' theorem by Monte Carlo (in
    the Stein form over a wrapped normal where the space is not compact), and the volume:
    a wrapped normal has to integrate to one over the uniform measure.

    Parameters
    ----------
    space : geomstats Manifold
    n, n_samples : int
        Number of points for exact laws, and for Monte Carlo.
    seed : int
    dtype, device : optional

    Returns
    -------
    figures : dict
        Worst error by law, in standard errors for the laws of Monte Carlo; None where
        a law asks for what is not registered.

    Raises
    ------
    AssertionError
        Naming every law that fails, with its figure.
    """
    check_counts(n=n, n_samples=n_samples)
    check_seed(seed)
    case = Case(space, n, seed, dtype, device)
    figures, broken = {}, []
    for law in laws.LAWS + motion.LAWS:
        name = law.__name__[1:].replace("_", " ")
        try:
            figures[name] = law(case)
        except UnsupportedError:
            figures[name] = None
            continue
        if not figures[name] <= case.finite_atol:
            broken.append(f"{name}: error {figures[name]:.3g}")
    for name, standard_errors_of in chance.LAWS.items():
        try:
            figures[name] = standard_errors_of(case, n_samples)
        except UnsupportedError:
            figures[name] = None
            continue
        if not figures[name] <= 4:
            broken.append(f"{name}: {figures[name]:.1f} standard errors")
    raise_broken(broken, type(space).__qualname__)
    return figures
