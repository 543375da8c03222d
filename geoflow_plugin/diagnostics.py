"""Checks of what a distribution claims, by means that do not trust it."""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.at_context import AtContext
from geoflow_plugin.distributions.base import require_distribution
from geoflow_plugin.distributions.kernel_density import KernelDensity
from geoflow_plugin.distributions.mixture import Mixture
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
from geoflow_plugin.geometry.checks import check_counts

__all__ = ["check_invertibility", "check_normalization", "check_sampling"]


@torch.no_grad()
def check_normalization(distribution, n=100_000, generator=None):
    """Integral of exp(log_prob) over the space, by importance sampling.

    Points come from a mixture whose density is known in closed form: half of it uniform
    (on a space that is not compact, a wide wrapped normal), half kernels on samples of
    the distribution, so that peaks are found, where the space has kernels. The estimate is
    unbiased whatever the distribution says of itself; on a generic level set, whose volume
    is an estimate as well, to within ``level_set_measure.log_volume_error``.

    Parameters
    ----------
    distribution : Distribution
    n : int
        Number of points.
    generator : torch.Generator, optional

    Returns
    -------
    integral, standard_error : float

    Raises
    ------
    TypeError
        For a density on a submanifold, which has no integral over the space around it.
    """
    require_distribution(distribution)
    check_counts(2, n=n)
    weight, _ = importance_sample(distribution, n, generator)
    return mean_and_error(weight)


@torch.no_grad()
def check_sampling(distribution, n=100_000, generator=None):
    """Mean log density of samples, less that of the density by importance sampling.

    Zero if samples follow the density, normalised or not: both are minus the entropy.

    Parameters
    ----------
    distribution : Distribution
    n : int
        Number of samples, and of points of the proposal of ``check_normalization``.
    generator : torch.Generator, optional

    Returns
    -------
    difference, standard_error : float
        In nats.
    """
    require_distribution(distribution)
    check_counts(2, n=n)
    weight, log_prob = importance_sample(distribution, n, generator)
    parts = [min(10_000, n - start) for start in range(0, n, 10_000)]
    own = [distribution(part, generator=generator)[1] for part in parts]
    return sampling_gap(torch.cat(own), weight, log_prob)


def sampling_gap(own, weight, log_prob):
    """``check_sampling`` from log densities of samples and an ``importance_sample``."""
    mean, error = mean_and_error(own)
    # where the density is zero it adds nothing
    share, log_prob = weight / weight.sum(), log_prob.double()
    expected = torch.where(weight > 0, share * log_prob, 0.0).sum()
    off = torch.where(weight > 0, share * (log_prob - expected), 0.0)
    return mean - float(expected), math.hypot(error, float(off.square().sum().sqrt()))


def mean_and_error(values):
    """Mean of independent values, and its standard error, floats."""
    values = values.double()
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


@torch.no_grad()
def importance_sample(distribution, n, generator=None):
    """What a density says at points of the proposal of ``check_normalization``.

    Returns
    -------
    weight : torch.Tensor, shape=(n,)
        Density over the proposal's, in double precision.
    log_prob : torch.Tensor, shape=(n,)
    """
    space = distribution.space
    latent = getattr(_at_any_context(distribution), "latent_space", None)
    if latent is not None and geometry.dim(latent) < geometry.dim(space):
        raise TypeError(
            f"distribution: a {type(distribution).__name__} has its density on a learned "
            f"submanifold of dimension {geometry.dim(latent)}, and none in the space around "
            "it to integrate; docs/injective.md says how to integrate over the manifold."
        )
    # a kernel on each of these: enough to find the peaks, few enough for n times as many
    sample = distribution.sample(min(2000, max(200, n // 10)), generator=generator)
    components = [_wide(space, sample)]
    if KernelDensity.supports(space):
        components.append(KernelDensity(space).fit(sample))
    proposal = Mixture(space, components)
    columns = []
    for start in range(0, n, 10_000):
        x = proposal.sample(min(10_000, n - start), generator=generator)
        log_prob = distribution.log_prob(x)
        weight = (log_prob - proposal.log_prob(x)).double().exp()
        columns.append((weight, log_prob))
    return tuple(torch.cat(column) for column in zip(*columns, strict=True))


def _at_any_context(distribution):
    """What a law at one context is a law of."""
    return distribution.distribution if isinstance(distribution, AtContext) else distribution


def _wide(space, sample):
    if geometry.is_compact(space):
        return Uniform(space, dtype=sample.dtype).to(sample.device)
    mean = geometry.projection(space, sample.mean(0, keepdim=True))[0]
    # in the lengths of the normal law itself, which may be those of a model
    squared, _ = geometry.kernel_separation(space, sample, mean[None])
    scale = 2 * float(squared.mean().sqrt()) / math.sqrt(geometry.dim(space))
    return WrappedNormal(space, mean, scale).to(sample.device)


@torch.no_grad()
def check_invertibility(layer, z):
    """Largest errors of a layer's round trip.

    Parameters
    ----------
    layer : normflows.flows.Flow
    z : torch.Tensor
        A batch of inputs of ``layer.forward``.

    Returns
    -------
    point_error, log_det_error : float
        Largest distance (in the array) of ``inverse(forward(z))`` from z, and largest
        sum of the two log-determinants.
    """
    if not (hasattr(layer, "forward") and hasattr(layer, "inverse")):
        kind = type(layer).__name__
        raise TypeError(f"layer: expected one with forward and inverse, got {kind}.")
    if not isinstance(z, torch.Tensor) or not z.is_floating_point() or not z.numel():
        raise ValueError(f"z: expected a floating-point tensor that is not empty, got {z!r}.")
    x, forward_log_det = layer.forward(z)
    back, inverse_log_det = layer.inverse(x)
    log_det = torch.as_tensor(forward_log_det) + torch.as_tensor(inverse_log_det)
    return float((back - z).abs().max()), float(log_det.abs().max())
