"""FlowDensity is a scikit-learn estimator, and says what its distribution says."""

import pickle
import random

import joblib
import numpy as np
import pytest
import torch
from conftest import make_space, points, rng_untouched, run_under
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from geomstats.learning.preprocessing import ToTangentSpace
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import check_estimator

import geoflow_plugin as gf


def directions(n=60, seed=0, dtype=np.float64):
    """Points of S2 about one pole."""
    X = np.random.default_rng(seed).normal([2.0, 0.0, 0.0], size=(n, 3))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(dtype)


def rotations(n=40):
    return points(make_space("SO3"), n).numpy()


def small_field():
    return gf.networks.FourierField((3,), n_features=8, hidden=8, dtype=torch.float64)


FAMILIES = {
    "moser": lambda: {"distribution_params": {"field": small_field()}},
    "monge_ampere": lambda: {"distribution_params": {"n_steps": 1}},
    "kernel_density": dict,
    "wrapped_normal": dict,
    "uniform": dict,
}


def estimator(name, **options):
    return gf.FlowDensity(
        Hypersphere(2), name, max_steps=3, **{"random_state": 0} | FAMILIES[name]() | options
    )


# scikit-learn's own checks ------------------------------------------------------------

OFF_THE_SPHERE = {
    name: "its points are not on the sphere"
    for name in [
        "check_dict_unchanged",
        "check_dont_overwrite_parameters",
        "check_dtype_object",
        "check_estimators_dtypes",
        "check_estimators_fit_returns_self",
        "check_estimators_nan_inf",
        "check_estimators_overwrite_params",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit2d_1feature",
        "check_fit2d_predict1d",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_fit_score_takes_y",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in",
        "check_n_features_in_after_fitting",
        "check_pipeline_consistency",
        "check_positive_only_tag_during_fit",
        "check_readonly_memmap_input",
    ]
}


@pytest.mark.parametrize(
    "name, params", [("kernel_density", {}), ("monge_ampere", {"n_steps": 2})]
)
def test_passes_every_check_of_scikit_learn_in_euclidean_space(name, params):
    density = gf.FlowDensity(distribution=name, distribution_params=params, max_steps=2)
    report = check_estimator(density, on_skip=None)
    assert {r["status"] for r in report} <= {"passed", "skipped"} and len(report) > 40


def test_fails_only_the_checks_whose_points_are_not_on_the_sphere():
    density = gf.FlowDensity(Hypersphere(2), "kernel_density")
    report = check_estimator(density, expected_failed_checks=OFF_THE_SPHERE, on_skip=None)
    failed = {r["check_name"] for r in report if r["status"] == "xfail"}
    assert failed == set(OFF_THE_SPHERE)


# It says what the distribution says -----------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_and_samples_are_those_of_the_distribution(name, dtype, device):
    X = directions(dtype=dtype)
    density = estimator(name, device=str(device)).fit(X)
    x = torch.as_tensor(X, device=device)
    scores = density.score_samples(X)
    with torch.no_grad():
        expected = density.distribution_.log_prob(x).cpu().numpy()
    assert scores.dtype == dtype and np.array_equal(scores, expected)
    assert density.score(X) == pytest.approx(expected.mean(dtype=float))
    assert density.distribution_.dtype == x.dtype and density.distribution_.device == x.device
    drawn = density.sample(4, random_state=5)
    assert drawn.shape == (4, 3) and drawn.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    assert np.array_equal(drawn, density.sample(4, random_state=5))
    assert not np.array_equal(drawn, density.sample(4, random_state=6))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_seed_decides_the_model_and_no_parameter_or_stream_is_touched(name):
    X, density = directions(), estimator(name)
    before = pickle.dumps(density)
    states = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = rng_untouched(lambda: clone(density).fit(X)).score_samples(X)
    again = rng_untouched(lambda: density.fit(X)).score_samples(X)
    assert np.array_equal(first, again)
    parameters = type(density)(**density.get_params(deep=False))
    assert pickle.dumps(parameters) == before, "fit changed a parameter"
    assert np.array_equal(states[0], np.random.get_state()[1])  # noqa: NPY002
    assert random.getstate() == states[1]
    copied = pickle.loads(pickle.dumps(density))
    assert np.array_equal(copied.score_samples(X), again)
    if density.history_:
        assert density.history_["step"][-1] == 3
        other = clone(density).set_params(random_state=1).fit(X)
        assert not np.array_equal(other.score_samples(X), again)


def test_without_a_random_state_the_seed_is_of_the_global_stream_of_numpy():
    X, density = directions(), estimator("moser", random_state=None)
    np.random.seed(7)  # noqa: NPY002 - as everywhere in scikit-learn
    scores = density.fit(X).score_samples(X)
    np.random.seed(7)  # noqa: NPY002
    assert np.array_equal(density.fit(X).score_samples(X), scores)
    assert not np.array_equal(density.fit(X).score_samples(X), scores)


def test_an_object_is_a_template_that_fit_copies_and_goes_on_from():
    space, X = Hypersphere(2), directions()
    template = gf.MoserFlow(space, field=small_field())
    weights = {k: v.clone() for k, v in template.state_dict().items()}
    density = gf.FlowDensity(distribution=template, max_steps=5, random_state=3).fit(X)
    assert all(torch.equal(v, weights[k]) for k, v in template.state_dict().items())
    assert density.distribution_.space is space
    seed = int(check_random_state(3).randint(2**31 - 1))
    template.fit(X, max_steps=5, seed=seed, progress=False)
    with torch.no_grad():
        expected = template.log_prob(torch.as_tensor(X)).numpy()
    assert np.array_equal(density.score_samples(X), expected)


def test_a_class_takes_parameters_and_a_data_frame_of_columns():
    pandas = pytest.importorskip("pandas")
    t = np.linspace(0, 6, 80)
    X = pandas.DataFrame({"a": np.cos(t), "b": np.sin(t), "c": 0.1 * t})
    density = gf.FlowDensity(
        distribution=gf.InjectiveFlow, distribution_params={"dim": 1}, max_steps=3
    ).fit(X)
    assert density.distribution_.latent_space.dim == 1
    assert density.feature_names_in_.tolist() == ["a", "b", "c"]
    assert density.score_samples(X).shape == (80,) and density.sample(2).shape == (2, 3)


def test_single_precision_serves_points_in_double():
    X = directions()
    density = estimator("kernel_density", dtype="float32").fit(X)
    assert density.distribution_.dtype == torch.float32
    assert density.score_samples(X).dtype == np.float64
    drawn = density.sample(50, random_state=0)
    assert drawn.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-14)
    double = estimator("kernel_density").fit(X)
    assert density.score(X) == pytest.approx(double.score(X), abs=1e-3)


# Matrices, and the tools of scikit-learn ------------------------------------------------


def test_matrices_come_as_matrices_or_as_rows():
    X = rotations()
    density = gf.FlowDensity(SpecialOrthogonal(3), "kernel_density").fit(X)
    rows = X.reshape(len(X), 9)
    assert density.n_features_in_ == 9
    assert np.array_equal(density.score_samples(rows), density.score_samples(X))
    assert density.sample(2, random_state=0).shape == (2, 3, 3)
    flat = clone(density).fit(rows)
    assert np.array_equal(flat.score_samples(X), density.score_samples(X))
    drawn = flat.sample(2, random_state=0)
    assert np.array_equal(drawn, density.sample(2, random_state=0).reshape(2, 9))


def test_searches_scores_and_pipelines():
    X, space = rotations(), SpecialOrthogonal(3)
    density = gf.FlowDensity(space, "kernel_density", random_state=0)
    grid = {"distribution_params": [{"bandwidth": h} for h in (0.01, 0.7)]}
    search = GridSearchCV(density, grid, cv=2).fit(X)
    assert search.best_params_["distribution_params"] == {"bandwidth": 0.7}
    tangent = make_pipeline(ToTangentSpace(space), clone(density).set_params(space=None))
    assert tangent.fit(X).score_samples(X).shape == (len(X),)


def test_jobs_beside_each_other_change_nothing():
    X, density = directions(), estimator("monge_ampere")
    alone = cross_val_score(density, X, cv=2)
    with joblib.parallel_config("threading"):  # processes are what pickling is for
        jobs = rng_untouched(lambda: cross_val_score(density, X, cv=2, n_jobs=2))
    assert np.array_equal(jobs, alone)


def test_a_held_out_set_may_be_given():
    X, held_out = rotations(), rotations(20)
    density = gf.FlowDensity(
        SpecialOrthogonal(3),
        "monge_ampere",
        distribution_params={"n_steps": 1},
        max_steps=1,
        validation=held_out.reshape(20, 9),
        random_state=0,
    ).fit(X)
    # with one step the history ends with the score of the weights that are kept
    assert min(density.history_["validation"]) == pytest.approx(-density.score(held_out))


def test_serves_under_the_pytorch_backend_of_geomstats():
    code = """
import json, numpy, torch
import geoflow_plugin as gf
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from geomstats.learning.preprocessing import ToTangentSpace
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
space = SpecialOrthogonal(3)
density = gf.FlowDensity(space, "kernel_density", random_state=0)
points = space.random_point(30)  # a tensor
X = density.fit(points).sample(30, random_state=0)
tangent = make_pipeline(ToTangentSpace(space), gf.FlowDensity(distribution="wrapped_normal"))
finite = numpy.isfinite(tangent.fit(points).score(points))
found = [X.dtype.name, density.score_samples(points).dtype.name]
print(json.dumps([*found, len(cross_val_score(density, X, cv=3)), bool(finite)]))
"""
    found = run_under("pytorch", "-W", "ignore", "-c", code)
    assert found == ["float64", "float64", 3, True]


# Refusals -----------------------------------------------------------------------------

SPHERE = Hypersphere(2)
WRONG = {
    "an unknown name": ({"distribution": "gauss"}, "distribution: 'gauss'"),
    "no distribution": ({"distribution": dict}, "distribution: expected"),
    "no dict": ({"distribution_params": [1]}, "distribution_params: expected a dict"),
    "a template's space": ({"distribution": gf.Uniform(Hypersphere(3))}, "space: expected"),
    "a template's options": (
        {"distribution": gf.Uniform(SPHERE), "distribution_params": {"dtype": None}},
        "distribution_params: expected none",
    ),
    "no steps": ({"max_steps": 0}, "max_steps: expected"),
    "a share": ({"validation": 2.0}, "validation: expected a share"),
    "off the sphere": ({"validation": np.ones((4, 3))}, "validation: expected points"),
    "half precision": ({"dtype": "float16"}, "dtype: expected float32 or float64"),
    "no dtype": ({"dtype": "single-ish"}, "dtype: expected"),
    "no device": ({"device": "abacus"}, "device: 'abacus'"),
    "no seed": ({"random_state": "x"}, "seed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses_parameters_by_name(case):
    wrong, message = WRONG[case]
    density = gf.FlowDensity(SPHERE, **{"max_steps": 1} | wrong)
    with pytest.raises((TypeError, ValueError), match=message):
        density.fit(directions(20))
    with pytest.raises(NotFittedError):
        density.score_samples(directions())


@pytest.mark.parametrize(
    "X",
    [
        2 * directions(),
        directions()[:, :2],
        directions()[:1],
        directions()[0],
        np.full((9, 3), np.nan),
    ],
    ids=["off the sphere", "too few entries", "one point", "no batch", "nan"],
)
def test_refuses_points_in_fit_and_after(X):
    density = estimator("kernel_density")
    with pytest.raises(ValueError, match="X|NaN|array"):
        density.fit(X)
    density.fit(directions())
    if len(X) != 1:
        with pytest.raises(ValueError, match="X|NaN|array"):
            density.score_samples(X)
    with pytest.raises(NotFittedError):
        clone(density).sample()
