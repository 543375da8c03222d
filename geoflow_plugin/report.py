"""One call that says what is known of a fitted density, and what speaks against it."""

import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from geoflow_plugin import geometry
from geoflow_plugin.calibration import calibration, log_prob_in_parts
from geoflow_plugin.diagnostics import importance_sample, mean_and_error, sampling_gap
from geoflow_plugin.distributions.at_context import AtContext
from geoflow_plugin.distributions.base import require_distribution
from geoflow_plugin.distributions.checks import as_context, as_points, check_seed
from geoflow_plugin.distributions.kernel_density import KernelDensity
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
from geoflow_plugin.findings import Baseline, Estimate, Report
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.two_sample import (
    classifier_test,
    embedding,
    landmark_distances,
    maximum_mean_discrepancy,
)

__all__ = ["report"]

_PACKAGES = ("torch", "geomstats", "normflows", "numpy", "scipy")


@torch.no_grad()
def report(
    distribution, X_test, X_train=None, *, context=None, n_samples=1000, n=10_000, seed=0
):
    """What a statistician would ask of a fitted density, answered on held-out points.

    Parameters
    ----------
    distribution : Distribution or FlowDensity
        Fitted.
    X_test : torch.Tensor or array, shape=(n_test, *space.shape)
        Points that it was not fitted to, nor chosen by; eight at least.
    X_train : torch.Tensor or array, shape=(n_train, *space.shape), optional
        The points that it was fitted to: for the baselines that learn, and for repeats.
    context : torch.Tensor or array, shape=(n_test, k), optional
        What each test point is conditioned on. The integral is then that of the density
        given the first, and the two-sample tests compare the marginal law.
    n_samples : int
        Samples for the two-sample tests, and test points at most.
    n : int
        Points for the integral.
    seed : int

    Returns
    -------
    report : Report

    Raises
    ------
    TypeError, ValueError
        For anything but a distribution of ours, points of its space, and sizes in range.

    Examples
    --------
    >>> print(gf.report(flow, X_test, X_train))  # doctest: +SKIP
    """
    distribution = getattr(distribution, "distribution_", distribution)
    require_distribution(distribution)
    check_counts(20, n_samples=n_samples)
    check_counts(100, n=n)
    check_seed(seed)
    space, device, dtype = distribution.space, distribution.device, distribution.dtype
    x = as_points(space, X_test, "X_test").to(device, dtype)
    if len(x) < 8:
        raise ValueError(f"X_test: expected eight points at least, got {len(x)}.")
    train = None
    if X_train is not None:
        train = as_points(space, X_train, "X_train").to(device, dtype)
    if context is not None:
        context = as_context(context, len(x), device, dtype)
    draws = torch.Generator(device).manual_seed(int(seed))
    log_prob = log_prob_in_parts(distribution, x, context)
    is_density = not _on_submanifold(distribution)
    remarks = [] if is_density else ["a density on a learned submanifold: no baselines"]
    integral = gap = error = None
    if is_density:
        one = distribution if context is None else AtContext(distribution, context[:1])
        integral, gap = _integral_and_gap(one, n, draws, remarks)
    else:
        error = Estimate(*mean_and_error(distribution.reconstruction_error(x, context)))
    discrepancy, classifier = _two_sample_tests(distribution, x, context, n_samples, draws)
    options = {"context": context, "n_samples": 5 * n_samples, "generator": draws}
    return Report(
        title=(
            f"{type(distribution).__name__} on {type(space).__name__.lstrip('_')}, "
            f"dimension {geometry.dim(space)}"
        ),
        n_test=len(x),
        log_likelihood=Estimate(*mean_and_error(log_prob)),
        baselines=_baselines(space, x, train, log_prob, remarks) if is_density else {},
        integral=integral,
        sampling_gap=gap,
        reconstruction_error=error,
        discrepancy=discrepancy,
        classifier=classifier,
        calibration=calibration(distribution, x, **options),
        n_duplicates=None if train is None else _n_repeated(x, train),
        remarks=tuple(remarks),
        setting={"dtype": str(dtype)[6:], "device": str(device), "seed": seed}
        | {"geoflow_plugin": sys.modules["geoflow_plugin"].__version__}
        | {name: version(name) for name in _PACKAGES},
    )


def _on_submanifold(distribution):
    latent = getattr(distribution, "latent_space", None)
    return latent is not None and geometry.dim(latent) < geometry.dim(distribution.space)


def _integral_and_gap(distribution, n, generator, remarks):
    try:
        weight, log_prob = importance_sample(distribution, n, generator)
    except TypeError as error:  # a space with neither kernels nor a normal law
        remarks.append(f"no integral: {error}")
        return None, None
    own = log_prob_in_parts(distribution, distribution.sample(n // 4, generator=generator))
    return (
        Estimate(*mean_and_error(weight)),
        Estimate(*sampling_gap(own, weight, log_prob)),
    )


def _baselines(space, x, train, log_prob, remarks):
    found = {}
    if Uniform.supports(space):
        found["uniform"] = Uniform(space, x.dtype).to(x.device)
    learned: dict[str, Any] = {
        "wrapped_normal": WrappedNormal,
        "kernel_density": KernelDensity,
    }
    if train is None:
        remarks.append("X_train was not given: no baselines that learn, and no repeats")
    else:
        for name, cls in learned.items():
            if cls.supports(space):
                found[name] = cls(space, dtype=x.dtype).to(x.device).fit(train)
    rows = {}
    for name, baseline in found.items():
        value = log_prob_in_parts(baseline, x)
        pair = mean_and_error(value), mean_and_error(log_prob - value)
        rows[name] = Baseline(*(Estimate(*numbers) for numbers in pair))
    return rows


def _two_sample_tests(distribution, x, context, n_samples, generator):
    space = distribution.space
    order = torch.randperm(len(x), generator=generator, device=x.device)
    if context is None:
        x = x[order[:n_samples]]
        y = distribution.sample(n_samples, generator=generator)
    else:  # contexts of the one half and points of the other: independent samples
        half = len(x) // 2
        given = context[order[:half][:n_samples]]
        y = distribution.sample(len(given), generator=generator, context=given)
        x = x[order[half:][:n_samples]]
    features = landmark_distances
    try:
        geometry.dist(space, x[:1], x[:1])
    except TypeError:
        features = embedding
    discrepancy = maximum_mean_discrepancy(space, x, y, features=features, generator=generator)
    return discrepancy, classifier_test(space, x, y, generator=generator)


def _n_repeated(x, train):
    """Number of rows of x that are rows of train."""
    rows = [np.ascontiguousarray(a.flatten(1).cpu().numpy() + 0.0) for a in (x, train)]
    known = {row.tobytes() for row in rows[1]}
    return sum(row.tobytes() in known for row in rows[0])
