"""Laws tried by Monte Carlo, each from a case and a number of points to standard errors."""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.diagnostics import importance_sample
from geoflow_plugin.distributions.base import score
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.testing.figures import standard_errors


def _stokes(case, n):
    """Mean of the Stein operator of the law, in standard errors."""
    x = case.law.sample(n, generator=case.generator)
    tangent_vec, value = value_and_divergence(case.space, case.field, x)
    value = value + (score(case.law._log_prob, x) * tangent_vec).flatten(1).sum(1)
    return standard_errors(value.double(), 0.0)


def _volume(case, n):
    """Integral of a wrapped normal, by means of which it knows nothing."""
    if geometry.is_compact(case.space):
        # of the width that makes the weights most even: heavy tails say nothing, and wider
        # laws go round the space more often than is summed
        length = math.exp(geometry.log_volume(case.space) / geometry.dim(case.space))
        widths = [length / 2**k for k in range(2, 7)]
        pilots = [_weights(case, width, n // 4 + 1) for width in widths]
        even = [float(w.mean() ** 2 / w.square().mean().clamp_min(1e-300)) for w in pilots]
        return standard_errors(_weights(case, widths[even.index(max(even))], n), 1.0)
    try:
        z, _ = geometry.chart(case.space, case.law.sample(n, generator=case.generator))
    except UnsupportedError:
        weight, _ = importance_sample(case.law, n, case.generator)
        return standard_errors(weight, 1.0)
    else:
        # a wide normal law of the coordinates, and the volume that the chart says
        mean, wide = z.mean(0), 1.5 * z.std(0)
        normal = torch.randn(z.shape, generator=case.generator, device=z.device, dtype=z.dtype)
        x, log_det = geometry.chart_inverse(case.space, mean + wide * normal)
        log_proposal = -0.5 * (normal.square() + math.log(2 * math.pi)) - wide.log()
        log_weight = case.law.log_prob(x) + log_det - log_proposal.sum(1)
    return standard_errors(log_weight.double().exp(), 1.0)


def _weights(case, width, n):
    """Of a wrapped normal over the uniform law, at fresh points."""
    normal = WrappedNormal(case.space, case.points[0], width).to(case.points.device)
    x = case.law.sample(n, generator=case.generator)
    return (normal.log_prob(x) - case.law.log_prob(x)).double().exp()


LAWS = {"Stokes' theorem": _stokes, "the volume": _volume}
