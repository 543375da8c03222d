"""Tests of samples and of densities have the level they say, and power besides."""

import itertools

import numpy as np
import pytest
import torch
from conftest import make_space, points, rng_untouched, rows, spaces
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hyperboloid import Hyperboloid
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.spd_matrices import SPDMatrices
from scipy.stats import kstest
from sklearn.neighbors import KNeighborsClassifier

import geoflow_plugin as gf
from geoflow_plugin import geometry, two_sample
from geoflow_plugin.calibration import calibration
from geoflow_plugin.two_sample import (
    classifier_test,
    embedding,
    landmark_distances,
    maximum_mean_discrepancy,
)

SPHERE = Hypersphere(2)
FEATURES = [landmark_distances, embedding]


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def normal(scale, space=SPHERE):
    return gf.WrappedNormal(space, scale=scale, dtype=torch.float64)


class Neighbours(KNeighborsClassifier):
    """A cheap classifier that sees distances alone."""

    def __init__(self):
        super().__init__(n_neighbors=7)


# Maximum mean discrepancy -----------------------------------------------------------------


def naive_discrepancy(vectors, first, bandwidth):
    """The definition of the unbiased statistic, term by term."""
    second = [i for i in range(len(vectors)) if i not in first]

    def kernel(i, j):
        return float((-(vectors[i] - vectors[j]).square().sum() / (2 * bandwidth**2)).exp())

    def within(group):
        return np.mean([kernel(i, j) for i, j in itertools.permutations(group, 2)])

    between = np.mean([kernel(i, j) for i in first for j in second])
    return within(first) + within(second) - 2 * between


@spaces("S2", "T2", "SO3", "R3", "S2xSO3")
@pytest.mark.parametrize("features", FEATURES)
def test_statistic_and_p_value_are_those_of_every_exchange(space, features, device):
    x, y = points(space, 4, device=device), points(space, 5, device=device)
    pool = torch.cat([x, y])
    vectors = rows(pool)
    if features is landmark_distances:
        pairs = itertools.product(pool, pool)
        distances = [float(geometry.dist(space, a[None], b[None])) for a, b in pairs]
        vectors = torch.tensor(distances, dtype=torch.float64).reshape(9, 9) / 3
    bandwidth = 0.7
    found = maximum_mean_discrepancy(
        space,
        x,
        y,
        features=features,
        bandwidth=bandwidth,
        n_permutations=2000,
        generator=seeded(1, device),
    )
    exact = naive_discrepancy(vectors, (0, 1, 2, 3), bandwidth)
    assert found.statistic == pytest.approx(exact, abs=1e-9 if device.type == "cpu" else 1e-6)
    exchanged = [
        naive_discrepancy(vectors, first, bandwidth)
        for first in itertools.combinations(range(9), 4)
    ]
    p_value = np.mean(np.array(exchanged) >= exact - 1e-9)
    assert abs(found.p_value - p_value) <= 4 * np.sqrt(p_value / 2000) + 1e-3


def test_blocks_of_the_kernel_change_nothing(monkeypatch):
    x, y = points(SPHERE, 40), points(SPHERE, 30)
    whole = maximum_mean_discrepancy(SPHERE, x, y, generator=seeded())
    monkeypatch.setattr(two_sample, "_ENTRIES", 200)
    parts = maximum_mean_discrepancy(SPHERE, x, y, generator=seeded())
    assert parts == pytest.approx(whole, rel=1e-9)


def boost(x):
    """A Lorentz boost of the hyperbolic plane."""
    c, s = np.cosh(0.8), np.sinh(0.8)
    return x @ torch.tensor([[c, s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).double()


def congruence(x):
    a = torch.tensor([[1.0, 0.5], [-0.3, 2.0]]).double()
    return a @ x @ a.T


def turn(x):
    c, s = np.cos(1.1), np.sin(1.1)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).double() @ x


ISOMETRIES = {
    "S2": (SPHERE, lambda x: turn(x.mT).mT),
    "SO3": (make_space("SO3"), turn),
    "hyperbolic plane": (Hyperboloid(2), boost),
    "positive definite": (SPDMatrices(2), congruence),
}


@pytest.mark.parametrize("name", ISOMETRIES)
def test_isometries_of_the_space_change_nothing(name):
    space, isometry = ISOMETRIES[name]
    x, y = points(space, 30), points(space, 40)
    tests = [maximum_mean_discrepancy, classifier_test]
    options = [{}, {"features": landmark_distances, "classifier": Neighbours()}]
    for test, given in zip(tests, options, strict=True):
        here = test(space, x, y, generator=seeded(), **given)
        there = test(space, isometry(x), isometry(y), generator=seeded(), **given)
        assert there == pytest.approx(here, rel=1e-6, abs=1e-9)


# Level and power ----------------------------------------------------------------------------


def p_values(test, n=60):
    return np.array([test(seeded(seed)).p_value for seed in range(n)])


@pytest.mark.parametrize("features", FEATURES)
def test_p_values_of_the_discrepancy_are_uniform_if_laws_agree(features):
    law = normal(0.6)

    def test(generator):
        x, y = law.sample(25, generator=generator), law.sample(35, generator=generator)
        return maximum_mean_discrepancy(
            SPHERE, x, y, features=features, n_permutations=99, generator=generator
        )

    assert kstest(p_values(test), "uniform").pvalue > 1e-3


def test_p_values_of_the_classifier_are_no_smaller_than_uniform_if_laws_agree():
    law = normal(0.6)

    def test(generator):
        x, y = law.sample(60, generator=generator), law.sample(90, generator=generator)
        return classifier_test(SPHERE, x, y, classifier=Neighbours(), generator=generator)

    found = p_values(test, 120)
    for level in (0.05, 0.2, 0.5):
        assert (found <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / 120)
    assert found.mean() < 0.7  # and not much larger


@pytest.mark.parametrize("law", [normal(0.6), gf.Uniform(SPHERE)], ids=["normal", "ties"])
def test_p_values_of_calibration_are_uniform_if_the_model_is_right(law):
    def test(generator):
        x = law.sample(100, generator=generator)
        return calibration(law, x, n_samples=300, generator=generator)

    assert kstest(p_values(test), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "space, scales", [(SPHERE, (0.4, 0.9)), (make_space("SO3"), (0.3, 0.6))]
)
def test_other_spreads_are_noticed(space, scales):
    x, y = (normal(s, space).sample(150, generator=seeded()) for s in scales)
    for features in FEATURES:
        options = {"features": features, "generator": seeded(1)}
        assert maximum_mean_discrepancy(space, x, y, **options).p_value < 0.01
        assert classifier_test(space, x, y, **options).p_value < 0.01
    narrow = calibration(normal(scales[0], space), y, generator=seeded())
    wide = calibration(normal(scales[1], space), x, generator=seeded())
    assert max(narrow.p_value, wide.p_value) < 1e-3
    assert (narrow.coverage < narrow.level).all() and (wide.coverage > wide.level).all()


def test_coverage_is_the_mass_of_balls():
    # on R^3 regions of highest density are balls, whose mass is a chi-squared law's
    space = Euclidean(3)
    x = normal(0.5, space).sample(4000, generator=seeded())
    found = calibration(normal(1.0, space), x, n_samples=20_000, generator=seeded(1))
    radius = np.sqrt(np.quantile(np.random.default_rng(0).chisquare(3, 200_000), found.level))
    expected = [(x.norm(dim=1).numpy() < r).mean() for r in radius]
    np.testing.assert_allclose(found.coverage, expected, atol=0.02)


class Shifted(gf.Distribution):
    """Normal law on R^2 about a context, claimed and drawn with these scales."""

    conditional = True

    def __init__(self, claimed=1.0, drawn=1.0):
        super().__init__(Euclidean(2), torch.float64)
        self.claimed, self.drawn = claimed, drawn

    def _log_prob(self, x, context=None):
        squared = ((x - context) / self.claimed).square().sum(1)
        return -0.5 * squared - np.log(2 * np.pi * self.claimed**2)

    def _draw(self, n, generator, context=None):
        noise = torch.randn(n, 2, generator=generator, dtype=self.dtype)
        return context + self.drawn * noise, None


def test_calibration_given_a_context_ranks_every_point_among_its_own():
    law = Shifted()

    def test(generator):
        context = 5 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
        x = law.sample(50, generator=generator, context=context)
        return calibration(law, x, context=context, generator=generator, n_samples=1000)

    assert kstest(p_values(test, 40), "uniform").pvalue > 1e-3
    context = torch.randn(100, 2, dtype=torch.float64)
    x = law.sample(100, generator=seeded(), context=context)
    unshifted = calibration(law, x, context=0 * context, generator=seeded())
    assert unshifted.p_value < 1e-3


# Habits -------------------------------------------------------------------------------------

TESTS = {
    "discrepancy": maximum_mean_discrepancy,
    "classifier": classifier_test,
    "calibration": lambda space, x, y, **options: calibration(normal(0.5), x, **options)[2:],
}


@pytest.mark.parametrize("name", TESTS)
def test_the_generator_decides_and_the_global_stream_is_left_alone(name):
    x, y = points(SPHERE, 100), points(SPHERE, 80)

    def run(seed):
        return rng_untouched(lambda: TESTS[name](SPHERE, x, y, generator=seeded(seed)))

    assert run(1) == run(1) != run(2)
    as_arrays = TESTS[name](SPHERE, x.numpy(), y.numpy(), generator=seeded(1))
    assert as_arrays == run(1)


X = points(SPHERE, 6)
WRONG = {
    "x: expected points": lambda: maximum_mean_discrepancy(SPHERE, 2 * X, X),
    "y: expected 2 points": lambda: maximum_mean_discrepancy(SPHERE, X, X[:1]),
    "y: expected shape": lambda: maximum_mean_discrepancy(SPHERE, X, X[:, :2]),
    "bandwidth: expected": lambda: maximum_mean_discrepancy(SPHERE, X, X, bandwidth=-1.0),
    "give a bandwidth": lambda: maximum_mean_discrepancy(SPHERE, X[[0] * 5], X[[0] * 5]),
    "n_permutations: ": lambda: maximum_mean_discrepancy(SPHERE, X, X, n_permutations=0),
    "n_landmarks: ": lambda: maximum_mean_discrepancy(SPHERE, X, X, n_landmarks=True),
    "features: expected finite": lambda: maximum_mean_discrepancy(
        SPHERE, X, X, features=lambda space, x, landmarks: x.log()
    ),
    "x: expected 4 points": lambda: classifier_test(SPHERE, X[:3], X),
    "classifier: expected": lambda: classifier_test(SPHERE, X, X, classifier="trees"),
    "distribution: expected": lambda: calibration(SPHERE, X),
    "x: expected a torch": lambda: calibration(normal(1.0), [1.0]),
    "n_samples: expected": lambda: calibration(normal(1.0), X, n_samples=2.5),
    "context: ": lambda: calibration(normal(1.0), X, context=X),
}


@pytest.mark.parametrize("message", WRONG)
def test_refuses_by_name(message):
    with pytest.raises((TypeError, ValueError), match=message):
        WRONG[message]()
