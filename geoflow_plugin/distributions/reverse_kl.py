"""Flows and unnormalised targets: the variational free energy, and how good it is.

For a target exp(f) of unknown integral Z, the loss E_q[log q - f] is -log Z plus the
divergence from the flow to the target: the variational free energy, a bound of -log Z.
"""

import math
from typing import NamedTuple

import torch

from geoflow_plugin.distributions.base import require_distribution
from geoflow_plugin.geometry.checks import check_counts

__all__ = ["FreeEnergy", "free_energy", "target_log_prob"]

_CHUNK = 2048


class FreeEnergy(NamedTuple):
    """What samples of a flow say of an unnormalised target; nats.

    Attributes
    ----------
    value, standard_error : float
        Variational free energy, an upper bound of -log Z, and its standard error.
    log_partition, log_partition_error : float
        Importance-weighted estimate of log Z and its standard error (delta method);
        trust neither where few samples are effective.
    effective_sample_size : float
        (sum w)^2 / sum w^2 of the weights w = exp(f) / q, as a share of the samples.
    """

    value: float
    standard_error: float
    log_partition: float
    log_partition_error: float
    effective_sample_size: float


def target_log_prob(target):
    """The unnormalised log density of a normflows Target, or of a plain function."""
    function = getattr(target, "log_prob", target)
    if not callable(function):
        raise TypeError(
            "target: expected a normflows Target or a function of points to log densities, "
            f"got {type(target).__name__}."
        )

    def log_prob(x):
        value = function(x)
        if not isinstance(value, torch.Tensor) or value.shape != x.shape[:1]:
            shape = getattr(value, "shape", type(value).__name__)
            raise ValueError(
                f"target: expected log densities of shape ({len(x)},), got {shape}."
            )
        return value

    return log_prob


@torch.no_grad()
def free_energy(distribution, target, n=10_000, generator=None):
    """Variational free energy of a distribution for a target, with log Z by importance.

    Parameters
    ----------
    distribution : Distribution
    target : normflows.distributions.Target or callable
        Unnormalised log density: points (n, *space.shape) to (n,).
    n : int
        Number of samples; two at least.
    generator : torch.Generator, optional

    Returns
    -------
    free_energy : FreeEnergy
    """
    require_distribution(distribution)
    check_counts(2, n=n)
    log_target, log_weights = target_log_prob(target), []
    for start in range(0, n, _CHUNK):
        x, log_prob = distribution(min(_CHUNK, n - start), generator=generator)
        log_weights.append((log_target(x) - log_prob).double())
    log_weight = torch.cat(log_weights)
    peak = log_weight.max()
    weight = (log_weight - peak).exp()
    mean = weight.mean()
    return FreeEnergy(
        value=-float(log_weight.mean()),
        standard_error=float(log_weight.std()) / math.sqrt(n),
        log_partition=float(peak + mean.log()),
        log_partition_error=float(weight.std() / mean) / math.sqrt(n),
        effective_sample_size=float(weight.sum().square() / weight.square().sum()) / n,
    )
