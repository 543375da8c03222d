"""Exact samples of an unnormalised density by rejection."""

import math

import torch

from geoflow_plugin.distributions.base import sample_from

__all__ = ["rejection_sample"]

_BATCH = 2**17  # proposals drawn at a time, at most


def rejection_sample(n, proposal, log_ratio, log_envelope, generator=None):
    """Draw n points of the density proposal * exp(log_ratio), up to its integral.

    A proposal is accepted with probability exp(log_ratio - log_envelope). A ratio above
    the envelope raises it, and what was accepted before is thinned to the new one, as if
    it had been there from the start.

    Parameters
    ----------
    n : int
        At least one.
    proposal : distribution
        Ours or of normflows.
    log_ratio : callable
        Points to the log of the density over the proposal's, shape=(m,).
    log_envelope : float
        A first guess of the largest log ratio.
    generator : torch.Generator, optional

    Returns
    -------
    x : torch.Tensor, shape=(n, *space.shape)
    n_proposals : int
    """
    accepted: list[torch.Tensor] = []
    ratios: list[torch.Tensor] = []
    n_proposals = count = 0
    while count < n:
        wanted = 1.2 * (n - count) * math.exp(log_envelope) + 64
        x = sample_from(proposal, int(min(wanted, _BATCH)), generator)
        value = log_ratio(x)
        n_proposals += len(x)
        peak = float(value.max())
        if not peak < math.inf:
            raise FloatingPointError(
                f"sample: the density over its proposal came out as exp({peak}); the "
                "model is not usable."
            )
        if peak > log_envelope:
            higher = peak + math.log(1.2)
            kept = [
                _bernoulli(torch.full_like(v, log_envelope - higher), generator)
                for v in ratios
            ]
            accepted = [a[k] for a, k in zip(accepted, kept, strict=True)]
            ratios = [v[k] for v, k in zip(ratios, kept, strict=True)]
            log_envelope = higher
        keep = _bernoulli(value - log_envelope, generator)
        accepted.append(x[keep])
        ratios.append(value[keep])
        count = sum(map(len, accepted))
    return torch.cat(accepted)[:n], n_proposals


def _bernoulli(log_probability, generator):
    uniform = torch.rand(
        log_probability.shape,
        generator=generator,
        device=log_probability.device,
        dtype=log_probability.dtype,
    )
    return uniform.log() < log_probability
