"""The laws of a distribution."""

import copy
import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.diagnostics import importance_sample
from geoflow_plugin.distributions.base import require_distribution
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.testing.figures import (
    raise_broken,
    size,
    standard_error,
    standard_errors,
    worst,
)


def check_distribution(distribution, *, n=2000, generator=None):
    """Try the laws of a distribution: normalised, sampled as scored, reproducible.

    Parameters
    ----------
    distribution : Distribution
        Fitted, if it has to be.
    n : int
        Number of samples.
    generator : torch.Generator, optional

    Returns
    -------
    figures : dict
        By law; in standard errors for normalisation, and for the entropy of samples
        against that of the density by importance sampling.

    Raises
    ------
    AssertionError
        Naming every law that fails, with its figure.
    """
    require_distribution(distribution)
    check_counts(2, n=n)
    if generator is None:
        generator = torch.Generator(distribution.device).manual_seed(0)
    elif not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {generator!r}.")
    space = distribution.space
    state = generator.get_state()
    with torch.no_grad():
        x, log_prob = distribution(n, generator=generator)
        own = distribution.log_prob(x)
        again = distribution.sample(n, generator=generator.set_state(state))
        twin = copy.deepcopy(distribution).log_prob(x)
    atol = 1e-5 if distribution.dtype == torch.float64 else 1e-2
    figures = {
        "samples belong": worst(geometry.constraint_residual(space, x) / size(x)),
        "forward scores what it draws": worst((log_prob - own) / (1 + own.abs())),
        "a copy scores the same": worst((twin - own) / (1 + own.abs())),
        "the generator decides": 0.0 if torch.equal(again, x) else math.inf,
        "dtype is kept": 0.0 if x.dtype == own.dtype == distribution.dtype else math.inf,
        "densities are finite": 0.0 if bool(own.isfinite().all()) else math.inf,
    }
    broken = [f"{law}: {value:.3g}" for law, value in figures.items() if not value <= atol]
    weight, log_density = importance_sample(distribution, 10 * n, generator)
    # where the density is zero it adds nothing to the entropy
    surprise = torch.where(weight > 0, -weight * log_density.double(), 0.0)
    errors = [standard_error(surprise), standard_error(own.double())]
    gap = abs(float(surprise.mean()) + float(own.mean())) / max(math.hypot(*errors), 1e-6)
    chances = {
        "the integral is one": standard_errors(weight, 1.0),
        "samples follow the density (entropy)": gap,
    }
    broken += [f"{law}: {v:.1f} standard errors" for law, v in chances.items() if not v <= 4]
    figures |= chances
    raise_broken(broken, type(distribution).__qualname__)
    return figures
