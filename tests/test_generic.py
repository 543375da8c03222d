"""Information manifolds, and spaces that only their user's geomstats code describes."""

import functools
import math
import pathlib

import generic_spaces
import geomstats.backend as gs
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE
from conftest import run_under
from geomstats.geometry.base import LevelSet
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.grassmannian import Grassmannian
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.invariant_metric import InvariantMetric
from geomstats.geometry.matrices import Matrices
from geomstats.geometry.pre_shape import PreShapeSpace
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from geomstats.geometry.stratified.graph_space import GraphSpace
from geomstats.geometry.symmetric_matrices import SymmetricMatrices
from geomstats.information_geometry.gamma import GammaDistributions
from scipy import special

import geoflow_plugin as gf
from geoflow_plugin import geometry

FAMILIES = [
    "ExponentialDistributions",
    "PoissonDistributions",
    "GeometricDistributions",
    "BinomialDistributions(5)",
    "BetaDistributions",
    "GammaDistributions",
    "DirichletDistributions(3)",
    "CategoricalDistributions(2)",
    "MultinomialDistributions(2, 5)",
]
families = pytest.mark.parametrize("name", FAMILIES)
INTERVALS = ("Geometric", "Binomial")


def parameters(name, n=20, seed=0):
    """A family, and parameters well inside of it."""
    space = CATALOGUE[name]()
    random = np.random.default_rng(seed)
    if name.startswith(("Categorical", "Multinomial")):
        x = random.dirichlet(2 * np.ones(3), size=n)
    elif name.startswith(INTERVALS):
        x = random.uniform(0.1, 0.9, size=(n, 1))
    else:
        x = random.uniform(0.3, 3, size=(n, *space.shape))
    return space, torch.tensor(x)


# Information manifolds --------------------------------------------------------------------


@families
def test_the_metric_is_that_of_geomstats(name):
    space, x = parameters(name)
    basis = geometry.tangent_basis(space, x)
    pairs = [(i, j) for i in range(space.dim) for j in range(space.dim)]
    expected = np.stack(
        [
            space.metric.inner_product(*basis[:, pair].numpy().swapaxes(0, 1), x.numpy())
            for pair in pairs
        ],
        axis=-1,
    ).reshape(len(x), space.dim, space.dim)
    # torch's trigamma has nine digits
    torch.testing.assert_close(
        geometry.gram(space, x), torch.tensor(expected), rtol=1e-8, atol=1e-8
    )
    log_volume = 0.5 * np.linalg.slogdet(expected)[1]
    element = geometry.log_volume_element(space, x)
    torch.testing.assert_close(element, torch.tensor(log_volume), rtol=1e-7, atol=1e-7)
    space.metric = 3.0 * space.metric
    larger = geometry.log_volume_element(space, x)
    torch.testing.assert_close(larger, element + 0.5 * space.dim * math.log(3))
    torch.testing.assert_close(
        geometry.inner_product(space, basis[:, 0], basis[:, 0], x),
        3 * torch.tensor(expected[:, 0, 0]),
        rtol=1e-7,
        atol=1e-8,
    )


@families
def test_the_flat_geometry_and_coordinates_of_families(name):
    space, x = parameters(name)
    vector = torch.randn_like(x)
    expected = torch.as_tensor(np.asarray(space.to_tangent(vector.numpy(), x.numpy())))
    torch.testing.assert_close(geometry.to_tangent(space, vector, x), expected)
    assert not geometry.constraint_residual(space, x).gt(1e-12).any()
    torch.testing.assert_close(geometry.projection(space, x), x)
    edge = x.clone()
    edge[:, 0] = 0  # the boundary is no part of the family
    for off in (edge, -x, x + 1 if name.startswith(INTERVALS) else -x):
        assert not geometry.belongs(space, off).any()
        assert geometry.belongs(space, geometry.projection(space, off)).all()
    found = geometry.model(space)
    torch.testing.assert_close(found.from_model(found.to_model(x)), x)
    assert not geometry.is_compact(space)


@pytest.mark.parametrize("name", FAMILIES[:6])
def test_laws_on_families_are_normalised_by_quadrature(name):
    space, x = parameters(name)
    law = gf.WrappedNormal(space, x[0], scale=0.4)
    line = torch.linspace(-7, 7, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * space.dim).reshape(-1, space.dim)
    unit = name.startswith(INTERVALS)
    points = grid.sigmoid() if unit else grid.exp()
    slope = points * (1 - points) if unit else points
    element = geometry.log_volume_element(space, points) + slope.log().sum(-1)
    total = (law.log_prob(points) + element).exp().sum() * float(
        line[1] - line[0]
    ) ** space.dim
    assert float(total) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["DirichletDistributions(3)", "CategoricalDistributions(2)"])
def test_laws_on_families_are_normalised(name):
    space, x = parameters(name)
    for law in (
        gf.WrappedNormal(space, x[0], scale=0.4),
        gf.KernelDensity(space, bandwidth=0.3).fit(x),
    ):
        generator = torch.Generator().manual_seed(1)
        integral, error = gf.check_normalization(law, 4000, generator)
        assert abs(integral - 1) < 4 * error < 0.1


@families
def test_laws_on_families_are_smooth_and_need_no_double_precision(name):
    space, x = parameters(name)
    law = gf.WrappedNormal(space, x[0], scale=0.4)
    gradient = torch.func.grad(lambda y: law._log_prob(y).sum())(x)
    assert gradient.isfinite().all()
    single = gf.WrappedNormal(space, x[0].float(), scale=0.4).log_prob(x.float())
    torch.testing.assert_close(single.double(), law.log_prob(x), rtol=1e-4, atol=1e-4)


def test_the_gamma_metric_keeps_its_digits():
    # trigamma(k) - 1 / k is 1 / (2 k^2) at large shapes, lost in single precision
    shape = torch.tensor([0.1, 5.0, 15.9, 16.1, 1e3, 1e5])
    x = torch.stack([shape, torch.ones(6)], dim=-1)
    across = torch.tensor([1.0, 0.0]).expand(6, 2)
    value = geometry.inner_product(GammaDistributions(), across, across, x)
    k = shape.double().numpy()
    expected = special.polygamma(1, k) - 1 / k
    expected[4:] = 1 / (2 * k[4:] ** 2) + 1 / (6 * k[4:] ** 3)
    np.testing.assert_allclose(value.numpy(), expected, rtol=2e-5)


def test_diagonal_normal_laws_have_the_distance_of_fisher_and_rao():
    # geomstats' inner product there takes variances for standard deviations
    space = CATALOGUE["DiagonalNormalDistributions(2)"]()
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(size=(20, 2)), random.uniform(0.2, 3, (20, 2))], axis=1)
    t = torch.tensor(x)
    ours = geometry.dist(space, t[:10], t[10:])
    torch.testing.assert_close(ours, torch.tensor(space.metric.dist(x[:10], x[10:])))
    # twice the divergence of Kullback and Leibler is the squared length of a short step
    step = 1e-4 * torch.randn(20, 4, dtype=torch.float64)
    (_, variance), (shift, growth) = t.chunk(2, -1), step.chunk(2, -1)
    ratio = growth / variance
    double = ratio - ratio.log1p() + shift.square() / variance
    square = geometry.inner_product(space, step, step, t)
    torch.testing.assert_close(double.sum(-1), square, rtol=2e-3, atol=0)
    found = geometry.gram(space, t)
    element = geometry.log_volume_element(space, t)
    torch.testing.assert_close(element, 0.5 * found.logdet())
    law = gf.WrappedNormal(space, t[0], scale=0.4)
    integral, error = gf.check_normalization(law, 4000, torch.Generator().manual_seed(1))
    assert abs(integral - 1) < 4 * error


# Under geomstats' pytorch backend -----------------------------------------------------------


@functools.cache
def figures():
    """What generic_spaces.py measures, in a process of its own."""
    script = pathlib.Path(__file__).with_name("generic_spaces.py")
    return run_under("pytorch", str(script))


def test_a_level_set_by_its_submersion_alone():
    found = figures()["torus"]
    for name in ("to_tangent", "basis", "basis is tangent", "identity", "derivative"):
        assert found[name] < 1e-12, name
    assert found["nearest"] < 1e-12
    assert found["off"] > 1e-3
    assert found["batch"] == [5, 10, 2, 3]
    assert found["float32"] == "torch.float32"
    assert {"moser", "uniform"} <= set(found["names"])


def test_the_volume_of_a_level_set_within_its_stated_error():
    found, exact = figures()["torus"], math.log(4 * math.pi**2 * 0.4)
    assert found["error"] < 2e-3
    assert abs(found["log volume"] - exact) < 4 * found["error"]
    assert found["square"] == pytest.approx(2 * found["log volume"])
    # codimension two, and a metric that doubles lengths
    found = figures()["circle"]
    assert abs(found["log volume"] - math.log(4 * math.pi)) < 4 * found["error"]


def test_the_uniform_law_of_a_level_set():
    found = figures()["torus"]
    assert found["uniform residual"] < 1e-12
    assert found["repeats"] == 0
    mean, error = found["cosine"]
    assert abs(mean - 0.2) < 4 * math.hypot(error, found["error"])
    # nodes of low discrepancy do better than their number of random points
    assert abs(found["quasi cosine"] - 0.2) < error
    mean, error = found["stokes"]
    assert abs(mean) < 4 * error


def test_a_moser_flow_on_a_level_set():
    found = figures()["torus"]
    normalizer, error = found["normalizer"]
    assert abs(normalizer - 1) < 0.1
    assert abs(found["integral"] - 1) < 4 * math.hypot(error, found["error"])
    assert found["gain"] > 0.5  # nats over uniform
    mean, error = found["sample"]
    assert abs(mean - found["sample cosine"]) < 4 * error


def test_level_sets_that_cannot_be_measured_say_so():
    found = figures()["refusals"]
    assert "rank" in found["Degenerate"] and "log_volume" in found["Degenerate"]
    assert "unbounded" in found["Paraboloid"] and "is_compact" in found["Paraboloid"]
    assert found["oblique"] < 1e-12  # geomstats' oblique to_tangent, made orthogonal


def test_spaces_with_coordinates():
    found = figures()["coordinates"]
    for name in ("volume", "laplacian", "inside", "gram", "harmonic"):
        assert found[name] < 1e-12, name
    assert found["outside"] > 1e-3
    assert not found["compact"]
    integral, error = found["normal"]
    assert abs(integral - 1) < 4 * error


class Sphere(LevelSet):
    """A level set under whatever backend the tests run with."""

    def __init__(self):
        super().__init__(dim=2, equip=False)

    def _define_embedding_space(self):
        return Euclidean(3)

    def submersion(self, point):
        return gs.sum(point**2, axis=-1) - 1

    def tangent_submersion(self, vector, point):
        return 2 * gs.sum(vector * point, axis=-1)

    def to_tangent(self, vector, base_point):
        return vector - gs.sum(vector * base_point, axis=-1)[..., None] * base_point

    def random_point(self, n_samples=1, bound=1.0):
        point = gs.random.normal(size=(n_samples, 3))
        return point / gs.linalg.norm(point, axis=-1)[..., None]


@pytest.mark.skipif(gs.__name__.endswith("pytorch"), reason="there it works")
def test_without_autodiff_the_error_says_what_to_set():
    x = torch.eye(3)
    for call in (
        lambda: gf.Uniform(Sphere()),
        lambda: gf.MoserFlow(Sphere()),
        lambda: gf.divergence(Sphere(), lambda x: x, x),
        lambda: geometry.projection(Sphere(), x),
    ):
        with pytest.raises(TypeError, match="space: Sphere .*GEOMSTATS_BACKEND=pytorch"):
            call()
    assert gf.available_distributions(Sphere()) == []


# Metrics that nobody registered, on spaces that are known -----------------------------------


def _invariant():
    space = SpecialOrthogonal(3, equip=False)
    matrix = gs.array(np.diag([1.0, 2.0, 3.0]))
    return space.equip_with_metric(InvariantMetric, metric_mat_at_identity=matrix)


UNKNOWN = {
    "R2": lambda: Euclidean(2, equip=False),
    "S2": lambda: Hypersphere(2, equip=False),
    "SO3": lambda: SpecialOrthogonal(3, equip=False),
    "SO2 vectors": lambda: SpecialOrthogonal(2, point_type="vector", equip=False),
    "SO3 vectors": lambda: SpecialOrthogonal(3, point_type="vector", equip=False),
    "Grassmannian": lambda: Grassmannian(3, 1, equip=False),
    "pre-shapes": lambda: PreShapeSpace(4, 2, equip=False),
    "matrices": lambda: Matrices(2, 2, equip=False),
    "symmetric": lambda: SymmetricMatrices(2, equip=False),
}


@pytest.mark.parametrize("name", [*UNKNOWN, "left-invariant SO3"])
def test_an_unknown_metric_is_never_taken_for_a_known_one(name):
    if name in UNKNOWN:
        space = UNKNOWN[name]()
        space.equip_with_metric(generic_spaces.Uneven)
    else:
        space = _invariant()
    metric = type(space.metric).__name__
    base = geometry.origin(space)[None]
    tangent = geometry.tangent_basis(space, base)[:, 0]
    for call in (
        lambda: geometry.exp(space, tangent, base),
        lambda: geometry.log(space, base, base),
        lambda: geometry.dist(space, base, base),
        lambda: geometry.log_volume(space),
    ):
        with pytest.raises(TypeError, match=rf"with (metric )?{metric}"):
            call()
    makers = (gf.Uniform, gf.WrappedNormal, gf.KernelDensity, gf.MoserFlow)
    calls = [lambda cls=cls: cls(space) for cls in makers]
    calls.append(lambda: geometry.inner_product(space, tangent, tangent, base))
    calls.append(lambda: gf.divergence(space, torch.sin, base))
    for call in calls:
        advice = rf"with {metric} is known by its geomstats .*GEOMSTATS_BACKEND=pytorch"
        with pytest.raises(TypeError, match=advice):
            call()
    assert gf.available_distributions(space) == []


def test_graphs_up_to_renumbering_are_refused():
    graphs = GraphSpace(3)
    graphs.equip_with_group_action("permutations")
    graphs.equip_with_quotient()
    assert gf.available_distributions(graphs.quotient) == []
    with pytest.raises(TypeError, match="GraphSpaceQuotientMetric .* stratified"):
        gf.WrappedNormal(graphs.quotient)
    assert "wrapped_normal" in gf.available_distributions(graphs)


def test_unknown_metrics_are_honoured_where_torch_can_differentiate_them():
    found = figures()["metrics"]
    everywhere = ["kernel_density", "monge_ampere", "moser", "wrapped_normal"]
    for name, laws in {"R2": everywhere, "matrices": everywhere, "SO3": []}.items():
        assert found["names"][name] == laws
    assert found["names"]["S2"] == ["monge_ampere", "moser", "uniform"]
    assert found["names"]["SO2 vectors"] == found["names"]["SO3 vectors"] == []
    for name, error in found["gram"].items():
        assert error < 1e-12, name
    assert found["refused"] == ["exp", "log", "dist"]
    # (2 + 1) times the flat metric, on the unit sphere
    assert found["area"] == pytest.approx(math.log(12 * math.pi), abs=0.01)
    for integral, error in found["integrals"]:
        assert abs(integral - 1) < 4 * error


def test_coordinates_that_fill_the_plane_take_one_line():
    found = figures()["models"]
    assert found["names"] == []
    assert len(found["errors"]) == 3
    for message in found["errors"]:
        assert message.startswith("space: Bowl") and "geometry.model.register(Bowl)" in message
    assert found["filled"] == ["kernel_density", "monge_ampere", "moser", "wrapped_normal"]
    assert found["density"] < 1e-12
    integral, error = found["flow"]
    assert abs(integral - 1) < 4 * error
