"""The normal law of few factors and noise."""

import numpy as np
import pytest
import torch
from geomstats.geometry.euclidean import Euclidean
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis

import geoflow_plugin as gf
from tests.conftest import rng_untouched


def law(dim=6, rank=2, dtype=torch.float64, seed=0):
    law = gf.LowRankNormal(Euclidean(dim), rank, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in law.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return law


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_is_that_of_the_full_covariance(device, dtype):
    normal = law(dtype=dtype).to(device)
    x = torch.randn(20, 6, dtype=dtype, device=device)
    factor, noise = normal.factor.detach(), normal.log_noise.detach().exp()
    covariance = (factor @ factor.T + noise.square().diag()).double().cpu()
    expected = multivariate_normal(normal.mean.detach().cpu().double(), covariance).logpdf(
        x.cpu().double()
    )
    found = normal.log_prob(x).detach()
    assert found.dtype == dtype and found.device.type == device.type
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(found.cpu(), expected, rtol=tolerance, atol=tolerance)


def test_samples_have_its_moments():
    normal = law()
    draws = torch.Generator().manual_seed(1)
    x = rng_untouched(lambda: normal.sample(200_000, generator=draws)).detach()
    covariance = normal.factor @ normal.factor.T + (2 * normal.log_noise).exp().diag()
    scale = covariance.diagonal().sqrt().detach()
    off = (x.mean(0) - normal.mean).abs() / scale * len(x) ** 0.5
    assert float(off.max()) < 4.5
    correlation = (x.T.cov() - covariance) / (scale[:, None] * scale)
    assert float(correlation.abs().max()) < 5 * (2 / len(x)) ** 0.5


def test_fit_is_at_least_as_likely_as_scikit_learns():
    x = law(10, 3).sample(2000, generator=torch.Generator().manual_seed(2)).detach()
    found = gf.LowRankNormal(Euclidean(10), 3, dtype=torch.float64).fit(x).log_prob(x)
    theirs = FactorAnalysis(3, svd_method="lapack", tol=1e-10, max_iter=5000).fit(x)
    assert float(found.mean()) > theirs.score(x) - 1e-2


def test_integral_is_one():
    integral, error = gf.check_normalization(
        law(3, 1), n=20_000, generator=torch.Generator().manual_seed(3)
    )
    assert abs(integral - 1) < 4 * error and error < 0.05


def test_what_it_refuses():
    with pytest.raises(ValueError, match="rank: expected an integer from 1 to 2"):
        gf.LowRankNormal(Euclidean(3), 3)
    with pytest.raises(ValueError, match="X: expected more than 3 points"):
        gf.LowRankNormal(Euclidean(3), 1).fit(np.eye(3))
    with pytest.raises(ValueError, match="entries that vary, got 1"):
        flat = np.random.default_rng(0).normal(size=(9, 3)) * [1.0, 1.0, 0.0]
        gf.LowRankNormal(Euclidean(3), 1).fit(flat)
