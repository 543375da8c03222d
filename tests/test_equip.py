"""The plug-in: the one attribute that geomstats gains, and who may use it."""

import copy
import pickle
import textwrap

import pytest
import torch
from conftest import make_space, points, run_under, spaces
from geomstats.geometry.hpd_matrices import HPDMatrices
from geomstats.geometry.hypersphere import Hypersphere, HypersphereMetric
from geomstats.geometry.manifold import Manifold
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.spd_matrices import SPDBuresWassersteinMetric, SPDMatrices
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

import geoflow_plugin as gf
from geoflow_plugin import equip


@pytest.fixture
def registered():
    """Leave the plug-in registered, whatever a test does to it."""
    yield
    gf.register()


@spaces("S2", "SO3", "T2", "S2xSO3", "R3")
def test_equip_by_name_class_or_instance(space):
    assert space.equip_with_distribution("wrapped_normal", scale=0.3) is space
    assert isinstance(space.distribution, gf.WrappedNormal)
    assert space.distribution.space is space
    assert float(space.distribution.scale) == pytest.approx(0.3)
    assert space.equip_with_distribution(gf.KernelDensity, bandwidth=0.2) is space
    assert isinstance(space.distribution, gf.KernelDensity)
    mine = gf.WrappedNormal(space, scale=0.7)
    assert space.equip_with_distribution(mine) is space
    assert space.distribution is mine
    # the function does what the method does
    assert gf.equip_with_distribution(space, "wrapped_normal") is space
    assert isinstance(space.distribution, gf.WrappedNormal)


def test_the_default_is_a_moser_flow():
    space = make_space("S2").equip_with_distribution()
    assert isinstance(space.distribution, gf.MoserFlow)


def test_the_equipped_distribution_is_that_of_the_class():
    space = make_space("S2")
    x = points(space, 30)
    space.equip_with_distribution("kernel_density", bandwidth=0.3)
    assert space.distribution.fit(x) is space.distribution
    expected = gf.KernelDensity(make_space("S2"), bandwidth=0.3).fit(x).log_prob(x)
    assert torch.equal(space.distribution.log_prob(x), expected)


@spaces("S2", "SO3", "T2", "S2xSO3", "R3")
@pytest.mark.parametrize("kind", ["wrapped_normal", "uniform"])
def test_a_distribution_does_not_go_stale(space, kind):
    if kind == "uniform" and space.name == "R3":
        kind = "wrapped_normal"
    space.equip_with_distribution(kind)
    stale = space.distribution
    x = stale.sample(3)
    before = stale.log_prob(x)
    space.equip_with_metric(type(space.metric))
    for call in (lambda: stale.log_prob(x), lambda: stale.sample(2), lambda: stale(2)):
        with pytest.raises(ValueError, match="space: .*metric changed"):
            call()
    # made anew, it answers, and the metric that came back gives the same
    space.equip_with_distribution(kind)
    torch.testing.assert_close(space.distribution.log_prob(x), before)


def test_a_distribution_on_a_product_watches_the_metrics_of_the_factors():
    spd = SPDMatrices(2)
    inner = ProductManifold([Hypersphere(1), spd])
    products = [ProductManifold([inner, Hypersphere(2)]), NFoldManifold(spd, 2)]
    for space in products:
        x = gf.WrappedNormal(space).sample(4)
        laws = [gf.WrappedNormal(space), gf.KernelDensity(space, [0.3]).fit(x)]
        before = [law.log_prob(x) for law in laws]
        kept = spd.metric
        spd.equip_with_metric(SPDBuresWassersteinMetric)
        for law in laws:
            with pytest.raises(ValueError, match="space: .*metric changed"):
                law.log_prob(x)
            with pytest.raises(ValueError, match="space: .*metric changed"):
                law.sample(2)
        spd.metric = kept
        for law, value in zip(laws, before, strict=True):
            torch.testing.assert_close(law.log_prob(x), value)


def test_equip_with_metric_as_geomstats_does_it():
    space = Hypersphere(2, equip=False)
    space.equip_with_distribution("uniform")
    space.equip_with_metric(HypersphereMetric)
    with pytest.raises(ValueError, match="space"):
        space.distribution.sample(2)


@spaces("S2", "SO3", "T2", "S2xSO3", "R3", "T2 scales 1, 2", "S2 doubled")
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", ["wrapped_normal", "kernel_density"])
def test_copies_of_an_equipped_space(space, kind, how):
    if how == "pickle" and space.name == "S2 doubled":
        with pytest.raises(pickle.PicklingError, match="cometric_matrix"):
            pickle.dumps(space)
        pytest.skip("geomstats itself cannot pickle a metric scaled by a number")
    duplicate = copy.deepcopy if how == "deepcopy" else _pickled
    x = points(space, 12)
    if kind == "wrapped_normal":
        space.equip_with_distribution(kind, mean=x[0], scale=0.5)
    else:
        space.equip_with_distribution(kind, bandwidth=[0.3, 0.6])
        space.distribution.fit(x)
    expected = space.distribution.log_prob(x[1:])
    twin = duplicate(space)
    assert twin is not space and twin.distribution is not space.distribution
    assert twin.distribution.space is twin
    assert torch.equal(twin.distribution.log_prob(x[1:]), expected)
    drawn = twin.distribution.sample(4, generator=torch.Generator().manual_seed(0))
    again = space.distribution.sample(4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    # each watches its own metric
    twin.metric = 2.0 * twin.metric
    with pytest.raises(ValueError, match="metric"):
        twin.distribution.log_prob(x)
    assert torch.equal(space.distribution.log_prob(x[1:]), expected)


def _pickled(space):
    return pickle.loads(pickle.dumps(space))


def test_copies_of_a_moser_flow():
    space = make_space("S2")
    x = points(space, 40, torch.float32)
    space.equip_with_distribution("moser")
    space.distribution.fit(x, max_steps=3, progress=False)
    expected = space.distribution.log_prob(x)
    for twin in (copy.deepcopy(space), _pickled(space)):
        assert twin.distribution.space is twin
        torch.testing.assert_close(twin.distribution.log_prob(x), expected)


def test_available_distributions():
    every = {"kernel_density", "monge_ampere", "moser", "uniform", "wrapped_normal"}
    for name in ("S1", "S2", "S4", "T2", "SO2", "SO3", "SO4", "S2xSO3"):
        space = make_space(name)
        names = gf.available_distributions(space)
        assert names == sorted(names) and every <= set(names)
        for known in every:  # what is on offer can be made
            space.equip_with_distribution(known)
            assert isinstance(space.distribution, gf.Distribution)
    names = gf.available_distributions(make_space("R3"))
    assert "uniform" not in names and every - {"uniform"} <= set(names)
    names = gf.available_distributions(SPDMatrices(2))
    assert "uniform" not in names and every - {"uniform"} <= set(names)
    names = gf.available_distributions(SpecialOrthogonal(3, point_type="vector"))
    assert every <= set(names)  # coordinates with a seam
    assert gf.available_distributions(HPDMatrices(2)) == []
    assert gf.available_distributions(Hypersphere(2, intrinsic=True)) == []


def test_a_stranger_registers_a_distribution(monkeypatch):
    monkeypatch.setattr(equip, "_DISTRIBUTIONS", dict(equip._DISTRIBUTIONS))

    @gf.register_distribution("north_pole_cap")
    class Cap(gf.Distribution):
        """Uniform on a hemisphere of spheres only."""

        @classmethod
        def supports(cls, space):
            return isinstance(space, Hypersphere) and super().supports(space)

        def _log_prob(self, x):
            half = gf.geometry.log_volume(self.space) - torch.tensor(2.0).log()
            return torch.where(x[:, 0] >= 0, -half, -torch.inf)

        def _draw(self, n, generator):
            x = gf.Uniform(self.space, self.dtype).sample(n, generator=generator)
            return torch.cat([x[:, :1].abs(), x[:, 1:]], dim=1), None

    assert Cap.__name__ == "Cap"  # the decorator returns the class
    assert "north_pole_cap" in gf.available_distributions(make_space("S4"))
    assert "north_pole_cap" not in gf.available_distributions(make_space("SO3"))
    space = make_space("S2").equip_with_distribution("north_pole_cap")
    x, log_prob = space.distribution(7)
    assert (x[:, 0] >= 0).all()
    torch.testing.assert_close(log_prob, space.distribution.log_prob(x))
    # the same class twice is no conflict, another class of the name is
    assert gf.register_distribution("north_pole_cap")(Cap) is Cap
    with pytest.raises(ValueError, match="name: 'north_pole_cap'"):
        gf.register_distribution("north_pole_cap")(gf.Uniform)


def test_a_stranger_without_our_base_class(monkeypatch):
    monkeypatch.setattr(equip, "_DISTRIBUTIONS", dict(equip._DISTRIBUTIONS))

    @gf.register_distribution("point mass")
    class PointMass:
        def __init__(self, space):
            self.space = space

        def log_prob(self, x):
            return torch.zeros(len(x))

        def sample(self, num_samples=1):
            return gf.geometry.origin(self.space).expand(num_samples, 3)

    space = make_space("S2").equip_with_distribution("point mass")
    assert isinstance(space.distribution, PointMass)
    assert space.distribution.sample(2).shape == (2, 3)
    assert "point mass" in gf.available_distributions(space)


def test_unregister_and_register(registered):
    space = make_space("S2").equip_with_distribution("uniform")
    gf.unregister()
    assert not hasattr(Manifold, "equip_with_distribution")
    assert not hasattr(space, "equip_with_distribution")
    gf.unregister()  # once more changes nothing
    assert not hasattr(Manifold, "equip_with_distribution")
    # what was equipped stays so, and the function still works
    assert space.distribution.sample(3).shape == (3, 3)
    assert gf.equip_with_distribution(space, "wrapped_normal") is space
    for _ in range(2):
        gf.register()
        assert Manifold.equip_with_distribution is gf.equip_with_distribution
    assert isinstance(space.equip_with_distribution("uniform").distribution, gf.Uniform)


_SCRIPT = """
    import json
    import torch
    import torch.distributions
    import geomstats.geometry.hypersphere
    import geomstats.geometry.manifold
    import normflows
    from geomstats.geometry.manifold import Manifold

    def seen():
        return {
            "default dtype": str(torch.get_default_dtype()),
            "stream": torch.get_rng_state().sum().item(),
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "grad": torch.is_grad_enabled(),
            "Manifold": {k: str(id(v)) for k, v in vars(Manifold).items()},
            "Hypersphere": sorted(vars(geomstats.geometry.hypersphere.Hypersphere)),
            "Module": {k: str(id(v)) for k, v in vars(torch.nn.Module).items()},
            "Tensor": sorted(vars(torch.Tensor)),
            "BaseDistribution": sorted(
                vars(normflows.distributions.BaseDistribution)
            ),
        }

    before = seen()
    import geoflow_plugin
    after = seen()
    added = sorted(set(after["Manifold"]) - set(before["Manifold"]))
    for name in added:
        after["Manifold"].pop(name)
    geoflow_plugin.unregister()
    gone = not hasattr(Manifold, "equip_with_distribution")
    print(json.dumps([before, after, added, gone]))
"""


@pytest.mark.parametrize("backend", ["numpy", "pytorch"])
def test_importing_changes_one_attribute_and_nothing_else(backend):
    found = run_under(backend, "-c", textwrap.dedent(_SCRIPT))
    before, after, added, gone = found
    assert added == ["equip_with_distribution"]
    assert gone
    for key, value in before.items():
        assert after[key] == value, key
