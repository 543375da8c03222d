"""Calibration: whether regions of highest density hold the share of points they say."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import ks_1samp, ks_2samp, uniform

from geoflow_plugin.distributions.base import require_distribution
from geoflow_plugin.distributions.checks import as_context, as_points
from geoflow_plugin.geometry.checks import check_counts

__all__ = ["Calibration", "calibration", "log_prob_in_parts"]

_CHUNK = 4096  # points scored at a time


class Calibration(NamedTuple):
    """Outcome of ``calibration``.

    Attributes
    ----------
    level : numpy.ndarray, shape=(k,)
        Mass of regions of highest density, by the model.
    coverage : numpy.ndarray, shape=(k,)
        Share of the points in them; its standard error is the root of
        level (1 - level) / n, if the model is right.
    statistic : float
        Of Kolmogorov and Smirnov: largest distance of coverage from level.
    p_value : float
    """

    level: np.ndarray
    coverage: np.ndarray
    statistic: float
    p_value: float


@torch.no_grad()
def calibration(distribution, x, *, context=None, n_samples=5000, generator=None):
    r"""Test of a density by its levels: ranks of points among samples are uniform.

    The mass of the smallest region of highest density with x in it,

    .. math::
        u(x) = P(p(X) > p(x)), \quad X \sim p,

    is uniform on [0, 1] if x follows p as well. It is estimated by samples, ties being
    broken at random. Coverage above the level says that the model is too wide, below that it
    is too narrow. A constant factor of the density does not matter here, nor does where the
    points are on its level sets: see ``check_normalization`` and ``two_sample``.

    Parameters
    ----------
    distribution : Distribution
    x : torch.Tensor or array, shape=(n, *space.shape)
        Points that the distribution was not fitted to.
    context : torch.Tensor or array, shape=(n, k), optional
        What each point is conditioned on; every point is then ranked among samples of its
        own.
    n_samples : int
        In all; with a context, 20 for each point at least.
    generator : torch.Generator, optional

    Returns
    -------
    calibration : Calibration
        With levels 0.05, 0.1, ..., 0.95.

    Raises
    ------
    TypeError, ValueError
        For no distribution of ours, points off the space, or a number out of range.
    """
    require_distribution(distribution)
    check_counts(20, n_samples=n_samples)
    device, dtype = distribution.device, distribution.dtype
    x = as_points(distribution.space, x, "x").to(device, dtype)
    level = np.arange(1, 20) / 20
    if context is None:
        own = log_prob_in_parts(distribution, _draw(distribution, n_samples, generator))
        values = log_prob_in_parts(distribution, x)
        ranks = _ranks(torch.cat([values, own]), generator)
        inside, among = ranks[: len(x)], np.sort(ranks[len(x) :])
        found = ks_2samp(inside, among)
        mass = (np.searchsorted(among, inside) + 0.5) / (n_samples + 1)
    else:
        context = as_context(context, len(x), device, dtype)
        each = max(20, n_samples // len(x))
        many = context.repeat_interleave(each, 0)
        own = log_prob_in_parts(
            distribution, _draw(distribution, len(many), generator, many), many
        )
        rows = torch.cat(
            [log_prob_in_parts(distribution, x, context)[:, None], own.view(-1, each)], 1
        )
        rank = np.stack([_ranks(row, generator) for row in rows])[:, 0]
        # the place of x among each + 1 values, and where in it, are uniform
        mass = (rank + _uniform(len(x), generator)) / (each + 1)
        found = ks_1samp(mass, uniform.cdf)
    coverage = (mass[:, None] <= level).mean(0)
    return Calibration(level, coverage, float(found.statistic), float(found.pvalue))


def _draw(distribution, n, generator, context=None):
    if context is None:
        return distribution.sample(n, generator=generator)
    parts = context.split(_CHUNK)
    return torch.cat(
        [distribution.sample(len(c), generator=generator, context=c) for c in parts]
    )


def log_prob_in_parts(distribution, x, context=None):
    """Log density of many points, in double precision, some at a time."""
    parts = torch.arange(len(x), device=x.device).split(_CHUNK)
    given = (None if context is None else context[part] for part in parts)
    values = [distribution.log_prob(x[p], c) for p, c in zip(parts, given, strict=True)]
    return torch.cat(values).double()


def _ranks(log_prob, generator):
    """Places 0, 1, ... of log densities from the highest down, ties in random order."""
    log_prob = log_prob.cpu().numpy()
    order = np.lexsort([_uniform(len(log_prob), generator), -log_prob])
    ranks = np.empty(len(order), dtype=int)
    ranks[order] = np.arange(len(order))
    return ranks


def _uniform(n, generator):
    device = "cpu" if generator is None else generator.device
    draws = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
    return draws.cpu().numpy()
