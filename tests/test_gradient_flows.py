"""Gradient flows on real data's spaces: closed forms at work, placed units, stacked flows."""

import math
import re

import pytest
import torch
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from test_examples import DATA, check_picture, run

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.networks import OneHiddenLayerPotential

SPACES = {
    "S2": lambda: Hypersphere(2),
    "SO3": lambda: SpecialOrthogonal(3),
    "T3": lambda: NFoldManifold(Hypersphere(1), 3),
}
spaces = pytest.mark.parametrize("space", [make() for make in SPACES.values()], ids=SPACES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cluster(space, n, scale=0.3, dtype=torch.float64):
    law = gf.WrappedNormal(space, scale=scale, dtype=dtype)
    return geometry.projection(space, law.sample(n, generator=generator(1)))


def placed(space, points, width=16, sharpness=4.0, size=3.0):
    """A potential with units on points, strong enough to move them."""
    entries = math.prod(space.shape)
    potential = OneHiddenLayerPotential(
        entries, width, generator=generator(), dtype=points.dtype
    )
    potential.initialize(points, sharpness, generator())
    potential.amplitude.data.mul_(size)
    return potential


@pytest.mark.parametrize("dim", [6, 24, 25, 40])  # entries are multiplied out up to 24
def test_traces_are_those_of_the_hessian(dim):
    potential = OneHiddenLayerPotential(dim, 5, generator=generator(), dtype=torch.float64)
    x = torch.randn(3, dim, dtype=torch.float64, generator=generator(1))
    basis = torch.randn(4, 3, dim, dtype=torch.float64, generator=generator(2))
    hessian = torch.stack(
        [torch.autograd.functional.hessian(lambda p: potential(p[None])[0], p) for p in x]
    )
    expected = torch.einsum("dni,nij,dnj->n", basis, hessian, basis)
    gradient, trace = potential.gradient_and_trace(x, basis)
    torch.testing.assert_close(trace, expected)
    torch.testing.assert_close(gradient, potential.gradient(x))


@spaces
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_are_placed_on_points(space, dtype):
    x = cluster(space, 50, dtype=dtype)
    potential = placed(space, x, sharpness=5.0)
    hidden = potential._hidden(x)
    # each strip has one of the points in its middle, and is about 1 / 5 to 4 / 5 wide
    assert float(hidden.abs().amin(0).max()) < (1e-5 if dtype == torch.float32 else 1e-12)
    length = potential.weight.norm(dim=1)
    assert 1.24 < float(length.min()) and float(length.max()) < 5.01
    assert potential.weight.dtype == dtype


def test_placing_draws_from_its_generator_alone():
    x = cluster(Hypersphere(2), 50)
    before = torch.get_rng_state()
    one, two = (placed(Hypersphere(2), x).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("sharpness", [0, -1.0, float("nan"), float("inf")])
def test_bad_sharpness_is_refused(sharpness):
    potential = OneHiddenLayerPotential(3, 4)
    with pytest.raises(ValueError, match="sharpness: expected a positive number"):
        potential.initialize(torch.eye(3), sharpness)


def test_points_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected points of 3 entries"):
        OneHiddenLayerPotential(3, 4).initialize(torch.eye(2))


@spaces
def test_a_kernel_density_is_carried_by_a_gradient_flow(space):
    # densities of the law and of its samples agree, and their integral is one
    data = cluster(space, 40)
    kernels = gf.KernelDensity(space, [0.4]).fit(data)
    flow = gf.MongeAmpereFlow(
        space, base=kernels, potential=placed(space, data), n_steps=6, step_size=1 / 6
    )
    with torch.no_grad():
        x = flow.sample(30, generator=generator())
        z, log_det = flow.layer.inverse(x)
        torch.testing.assert_close(flow.log_prob(x), kernels.log_prob(z) + log_det)
        moved = float((z - x).flatten(1).norm(dim=1).mean())
        flow.layer.solver = "adaptive"
        exact = flow.log_prob(x)
        flow.layer.solver = "runge_kutta"
        torch.testing.assert_close(flow.log_prob(x), exact, atol=2e-3, rtol=0)
    assert moved > 0.02
    integral, error = gf.check_normalization(flow, 4000, generator())
    assert abs(integral - 1) < 4 * error and error < 0.1


def test_kernels_on_latent_points_are_the_kernel_density_at_first():
    # the recipe of examples/gradient_flow.py begins at the kernel density itself
    space = Hypersphere(2)
    data = cluster(space, 60)
    potential = placed(space, data, size=0.0)
    flow = gf.MongeAmpereFlow(space, base=gf.Uniform(space), potential=potential)
    with torch.no_grad():
        flow.base = gf.KernelDensity(space).fit(flow.layer.inverse(data)[0])
        expected = gf.KernelDensity(space).fit(data).log_prob(data)
        torch.testing.assert_close(flow.log_prob(data), expected)


def test_stacked_flows_all_learn_from_data():
    space = Hypersphere(2)
    data = cluster(space, 200, dtype=torch.float32)
    inner = gf.MongeAmpereFlow(
        space, potential=placed(space, data), n_steps=3, step_size=1 / 3
    )
    flow = gf.MongeAmpereFlow(
        space, base=inner, potential=placed(space, data), n_steps=3, step_size=1 / 3
    )
    before = [p.detach().clone() for p in flow.parameters()]
    assert len(before) == 6
    uniform = -math.log(4 * math.pi)
    flow.fit(data, max_steps=40, batch_size=200, learning_rate=3e-3, progress=False)
    assert all(not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))
    with torch.no_grad():
        assert float(flow.log_prob(data).mean()) > uniform + 0.1


@pytest.mark.skipif(not (DATA / "earth").is_dir(), reason="no Earth data; set GEOFLOW_DATA")
def test_the_example(tmp_path):
    options = ["--name", "volcano", "--rounds", "1", "--steps", "3", "--width", "16"]
    result = run(tmp_path, "gradient_flow.py", *options, data=DATA)
    assert result.returncode == 0, result.stderr
    scores = dict(re.findall(r"(\w+): validation NLL.*test NLL (-?\d+\.\d+)", result.stdout))
    assert float(scores["uniform"]) == pytest.approx(2.531, abs=1e-3)
    # three steps from the kernel density, up to the share of the uniform law
    assert float(scores["flow"]) == pytest.approx(float(scores["KernelDensity"]), abs=0.1)
    integral, error = re.search(r"density: (\d\.\d+) ± (\d\.\d+)", result.stdout).groups()
    assert abs(float(integral) - 1) < 1e-2 + 3 * float(error)
    check_picture(tmp_path / "gradient_flow.png")
