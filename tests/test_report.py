"""A report says what it should of models whose faults are known."""

import sys

import numpy as np
import pytest
import torch
from conftest import rng_untouched
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere

import geoflow_plugin as gf
from geoflow_plugin.diagnostics import check_sampling
from geoflow_plugin.report import report

SPHERE = Hypersphere(2)
FEW = {"n_samples": 300, "n": 2000}


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


class Faulty(gf.WrappedNormal):
    """A normal law that claims another density than it has."""

    def __init__(self, space=SPHERE, factor=1.0, drawn=0.5, **options):
        super().__init__(space, scale=0.5, **options)
        self.factor, self.drawn = factor, drawn

    def _log_prob(self, x):
        return super()._log_prob(x) + np.log(self.factor)

    def _draw(self, n, generator):
        law = gf.WrappedNormal(self.space, self.mean, self.drawn)
        return law._draw(n, generator)


def normal(**options):
    return Faulty(dtype=torch.float64, **options)


def data(n, seed, scale=0.5):
    return gf.WrappedNormal(SPHERE, scale=scale, dtype=torch.float64).sample(n, seeded(seed))


def subjects(found):
    return {objection.split(":")[0] for objection in found.objections}


# What it finds --------------------------------------------------------------------------


def test_nothing_speaks_against_the_law_of_the_data():
    found = report(normal(), data(400, 1), data(400, 2), **FEW)
    assert found.objections == () and "no objection" in str(found)
    assert found.baselines.keys() == {"uniform", "wrapped_normal", "kernel_density"}
    gain = found.baselines["uniform"].gain
    assert gain.value == pytest.approx(found.log_likelihood.value + np.log(4 * np.pi))
    assert found.baselines["kernel_density"].gain.value > 0
    assert abs(found.integral.value - 1) < 4 * found.integral.standard_error
    for text in ("± ", "gain", "calibration", "seed 0", "float64", "torch 2", "0 of 400"):
        assert text in str(found)


FAULTS = {
    "integral of the density": lambda: report(normal(factor=2.0), data(300, 1), **FEW),
    "samples follow the density": lambda: report(normal(drawn=0.3), data(300, 1), **FEW),
    "maximum mean discrepancy": lambda: report(normal(), data(300, 1, 0.9), **FEW),
    "classifier": lambda: report(normal(), data(300, 1, 0.9), **FEW),
    "calibration": lambda: report(normal(), data(300, 1, 0.3), **FEW),
    "beaten by uniform": lambda: report(normal(), data(300, 1, 0.9), **FEW),
    "mean log density": lambda: report(normal(factor=0.0), data(300, 1), **FEW),
    "duplicates": lambda: report(normal(), data(300, 1), data(310, 1)[10:], **FEW),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_known_faults_are_named(fault):
    found = FAULTS[fault]()
    assert fault in subjects(found)
    assert f"! {fault}" in str(found)


def test_an_unnormalised_density_has_no_other_fault():
    assert subjects(report(normal(factor=2.0), data(300, 1), **FEW)) == {
        "integral of the density"
    }


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_samples_less_density_is_that_of_normal_laws(factor):
    # E log p under scale t, less that under s: d / 2 (1 - t^2 / s^2), whatever the factor
    law = Faulty(Euclidean(3), factor, drawn=0.25, dtype=torch.float64)
    value, error = check_sampling(law, 4000, seeded())
    assert 0 < error < 0.1
    assert abs(value - 1.5 * (1 - 0.25)) < 4 * error


def test_repeats_are_counted_point_by_point():
    train, test = data(50, 1), data(40, 2)
    test[:3], test[5] = train[7], train[8]
    assert report(normal(), test, train, **FEW).n_duplicates == 4


# What it is asked of ----------------------------------------------------------------------


def test_a_learned_submanifold_has_a_reconstruction_error_instead_of_an_integral():
    t = torch.linspace(0, 6, 60, dtype=torch.float64)
    X = torch.stack([t.cos(), t.sin(), 0.1 * t], dim=1)
    flow = gf.InjectiveFlow(3, dim=1).double().fit(X, max_steps=1, progress=False)
    found = report(flow, X[::4], X, n_samples=40)
    with torch.no_grad():
        expected = float(flow.reconstruction_error(X[::4]).mean())
    assert found.reconstruction_error.value == pytest.approx(expected)
    assert found.integral is None and found.baselines == {} and found.n_duplicates == 15
    assert "submanifold" in str(found)


class Turned(gf.Distribution):
    """Normal law on S^2 about a context."""

    conditional = True

    def __init__(self, scale=0.3):
        super().__init__(SPHERE, torch.float64)
        self.law = gf.WrappedNormal(SPHERE, scale=scale, dtype=torch.float64)

    def _log_prob(self, x, context=None):
        return gf.geometry.wrapped_normal_log_prob(SPHERE, x, context, self.law.scale)

    def _draw(self, n, generator, context=None):
        scale = self.law.scale
        return gf.geometry.random_wrapped_normal(SPHERE, context, scale, generator), None


def test_a_conditional_density_is_judged_given_its_contexts():
    context = data(200, 1, 0.9)
    law = Turned()
    x = law.sample(200, generator=seeded(2), context=context)
    found = report(law, x, context=context, **FEW)
    assert found.objections == ()
    assert found.integral is not None
    shuffled = report(law, x, context=context.flip(0), **FEW)
    assert "calibration" in subjects(shuffled)
    assert shuffled.log_likelihood.value < found.log_likelihood.value - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_seed_decides_and_the_dtype_is_that_of_the_distribution(dtype, device):
    law = Faulty(dtype=dtype).to(device)
    X = data(60, 1).numpy()
    found = rng_untouched(lambda: report(law, X, **FEW))
    assert str(found) == str(report(law, X, **FEW))
    assert str(found) != str(report(law, X, seed=1, **FEW))
    assert found.setting["dtype"] == str(dtype)[6:]
    assert found.setting["device"] == str(law.device)


def test_an_estimator_may_be_given():
    X = np.random.default_rng(0).normal(size=(80, 2))
    density = gf.FlowDensity(distribution="kernel_density").fit(X[:40])
    assert report(density, X[40:], X[:40], **FEW).n_duplicates == 0


def test_what_cannot_be_asked_is_left_out_and_said(monkeypatch):
    def unknown(*arguments):
        raise TypeError("nobody knows")

    monkeypatch.setattr(gf.geometry, "dist", unknown)
    module = sys.modules["geoflow_plugin.report"]  # gf.report is the function
    monkeypatch.setattr(module, "importance_sample", unknown)
    found = report(normal(), data(60, 1), **FEW)
    assert found.integral is None and found.sampling_gap is None and found.objections == ()
    assert found.baselines.keys() == {"uniform"}
    assert "no integral: nobody knows" in str(found) and "X_train" in str(found)


WRONG = {
    "distribution: expected": lambda: report(SPHERE, data(20, 1)),
    "X_test: expected points": lambda: report(normal(), 2 * data(20, 1)),
    "X_test: expected eight": lambda: report(normal(), data(7, 1)),
    "X_train: expected": lambda: report(normal(), data(20, 1), "train"),
    "n_samples: ": lambda: report(normal(), data(20, 1), n_samples=1.5),
    "n: expected": lambda: report(normal(), data(20, 1), n=True),
    "context: ": lambda: report(normal(), data(20, 1), context=data(20, 1)),
    "seed: expected": lambda: report(normal(), data(20, 1), seed="one"),
}


@pytest.mark.parametrize("message", WRONG)
def test_refuses_by_name(message):
    with pytest.raises((TypeError, ValueError), match=message):
        WRONG[message]()
