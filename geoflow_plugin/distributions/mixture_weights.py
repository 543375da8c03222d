"""Weights of a mixture: drawn with, and chosen by likelihood."""

import math

import torch

__all__ = ["choose", "likeliest_weights"]


def choose(weights, n, generator):
    """Indices drawn with these weights; unlike torch.multinomial of any length."""
    total = weights.double().cumsum(0)
    uniform = torch.rand(n, generator=generator, device=weights.device, dtype=torch.float64)
    index = torch.searchsorted(total, uniform * total[-1], right=True)
    return index.clamp_max(len(weights) - 1)


def likeliest_weights(log_density, n_iterations):
    """Logs of the weights of largest likelihood, by EM from equal ones (concave).

    Parameters
    ----------
    log_density : torch.Tensor, shape=(n, k)
        Of each component at each point.
    n_iterations : int

    Returns
    -------
    log_weights : torch.Tensor, shape=(k,)
    """
    n, k = log_density.shape
    log_weights = torch.full_like(log_density[0], -math.log(k))
    for _ in range(n_iterations):
        joint = log_density + log_weights
        posterior = joint - torch.logsumexp(joint, dim=1, keepdim=True)
        log_weights = torch.logsumexp(posterior, dim=0) - math.log(n)
    return log_weights
