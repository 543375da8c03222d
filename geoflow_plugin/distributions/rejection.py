"""Exact samples of an unnormalised density by rejection."""

import math

import torch

from geoflow_plugin.distributions.base import sample_from

__all__ = ["conditional_rejection_sample", "rejection_sample"]

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
        _check_peak(peak)
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


def conditional_rejection_sample(group, draw, log_ratio, log_envelope, generator=None):
    """One point for each row of contexts, by rejection under an envelope for each context.

    All rows are tried at once, several times each, until every one has a point. A ratio
    above the envelope of its context raises it, and rows of that context which have their
    point lose it with the probability that they would not have been given it.

    Parameters
    ----------
    group : torch.Tensor of int, shape=(n,)
        Which of the distinct contexts a row has.
    draw : callable
        Rows, shape=(m,), to a proposal for each.
    log_ratio : callable
        Proposals and their rows to the log of the density over the proposal's, shape=(m,).
    log_envelope : torch.Tensor, shape=(n_contexts,)
        First guesses of the largest log ratios.
    generator : torch.Generator, optional

    Returns
    -------
    x : torch.Tensor, shape=(n, *space.shape)
    n_proposals : int
    """
    n, n_proposals, x = len(group), 0, None
    done = torch.zeros(n, dtype=torch.bool, device=group.device)
    while not bool(done.all()):
        pending = (~done).nonzero().squeeze(1)[:_BATCH]
        wanted = 1.2 * log_envelope[group[pending]].double().exp() + 1
        tries = wanted.clamp(1, max(1, _BATCH // len(pending))).long()
        row = pending.repeat_interleave(tries)
        y = draw(row)
        value = log_ratio(y, row)
        n_proposals += len(y)
        x = y.new_empty(n, *y.shape[1:]) if x is None else x
        at = group[row]
        peak = log_envelope.new_full(log_envelope.shape, -math.inf)
        peak = peak.scatter_reduce(0, at, value.to(peak), "amax")
        _check_peak(float(peak[at].max()))
        higher = torch.where(peak > log_envelope, peak + math.log(1.2), log_envelope)
        done &= _bernoulli((log_envelope - higher)[group], generator)
        log_envelope = higher
        kept = _bernoulli(value - log_envelope[at].to(value), generator).nonzero().squeeze(1)
        # of the proposals kept for a row, the first; those who had a point just lost it wait
        first = torch.full((n,), len(row), device=row.device)
        first = first.scatter_reduce(0, row[kept], kept, "amin")
        found = first < len(row)
        x[found] = y[first[found]]
        done |= found
    return x, n_proposals


def _check_peak(peak):
    if not peak < math.inf:
        raise FloatingPointError(
            f"sample: the density over its proposal came out as exp({peak}); the "
            "model is not usable."
        )


def _bernoulli(log_probability, generator):
    uniform = torch.rand(
        log_probability.shape,
        generator=generator,
        device=log_probability.device,
        dtype=log_probability.dtype,
    )
    return uniform.log() < log_probability
