"""Gradient flows one upon the other, trained on an unnormalised density."""

import math

import pytest
import torch
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere

import geoflow_plugin as gf
from geoflow_plugin.integrators import runge_kutta

SIDE = 4


def generator(device="cpu", seed=0):
    return torch.Generator(device).manual_seed(seed)


def lattice_flow(n_blocks=3, dtype=torch.float32, device="cpu", strength=1.0):
    space = Euclidean(SIDE**2)
    flow = gf.LatticeNormal(space, SIDE, dtype=dtype)
    for block in range(n_blocks):
        potential = gf.networks.LatticePotential(
            SIDE, width=2, generator=generator(seed=block), dtype=dtype
        )
        torch.nn.init.normal_(potential.amplitude, 0, strength, generator=generator())
        torch.nn.init.normal_(potential.quadratic, 0, 0.1, generator=generator())
        flow = gf.MongeAmpereFlow(space, flow, potential, n_steps=4, step_size=0.05)
    return flow.to(device)


def test_flows_upon_flows_say_of_their_samples_what_log_prob_says(device):
    flow = lattice_flow(dtype=torch.float64, device=device)
    x, log_prob = flow(16, generator=generator(device))
    torch.testing.assert_close(log_prob, flow.log_prob(x).detach(), rtol=0, atol=1e-6)
    assert x.requires_grad is False


def test_every_one_of_them_is_trained():
    flow = lattice_flow()
    before = {name: p.detach().clone() for name, p in flow.named_parameters()}
    assert len([name for name in before if name.endswith("amplitude")]) == 3
    target = gf.targets.IsingTarget(SIDE)
    flow.fit_target(target, max_steps=3, batch_size=32, learning_rate=1e-2, progress=False)
    for name, parameter in flow.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_log_density_of_flows_upon_flows_by_brute_force():
    flow = lattice_flow(dtype=torch.float64)
    base = flow
    layers = []
    while isinstance(base, gf.MongeAmpereFlow):
        layers.insert(0, base.layer)
        base = base.base

    def push(z):
        x = z[None]
        for layer in layers:
            x = layer.solve(x, 0.0, layer.end)[0]
        return x[0]

    z = base.sample(1, generator=generator())[0].detach()
    log_det = torch.linalg.slogdet(torch.func.jacrev(push)(z))[1]
    expected = base.log_prob(z[None])[0] - log_det
    torch.testing.assert_close(flow.log_prob(push(z)[None])[0], expected, rtol=0, atol=1e-4)


class Tent(torch.nn.Module):
    """A field whose growth is given; the points stay where they are."""

    def __init__(self, growth):
        super().__init__()
        self.growth = growth

    def forward(self, t, x):
        return torch.zeros_like(x), torch.full_like(x[:, 0], self.growth(t))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_doubt_is_the_difference_of_two_quadratures(n_steps):
    space, x = Euclidean(2), torch.zeros(1, 2, dtype=torch.float64)
    size = 1 / n_steps

    def doubt(growth):
        return float(runge_kutta(space, Tent(growth), x, 0.0, 1.0, n_steps)[2])

    assert doubt(lambda t: 3 * t - 1) == pytest.approx(0, abs=1e-25)  # both rules are exact
    # of t^2 Simpson's rule has h^3 / 12 more than the midpoint rule
    expected = n_steps * (size**3 / 12) ** 2
    assert doubt(lambda t: t * t) == pytest.approx(expected, rel=1e-12)


def test_doubt_sees_steps_that_are_too_long(device):
    space = Euclidean(SIDE**2)
    mild, wild = (lattice_flow(1, device=device, strength=s).layer for s in (0.1, 30.0))
    z = torch.randn(8, SIDE**2, generator=generator(device), device=device)
    doubts = [float(layer.draw(z)[2].detach().mean()) for layer in (mild, wild)]
    assert doubts[0] < 1e-6 < 1e-2 < doubts[1]
    fine = gf.layers.MongeAmpere(space, wild.potential, n_steps=64, step_size=0.2 / 64)
    assert float(fine.draw(z)[2].detach().mean()) < 1e-4 * doubts[1]


def test_doubt_grows_on_the_sphere_as_well():
    space = Hypersphere(2)
    potential = gf.networks.FourierPotential((3,), generator=generator(), dtype=torch.float64)
    for parameter in list(potential.parameters())[-2:]:
        torch.nn.init.normal_(parameter, 0, 1.0, generator=generator())
    z = gf.Uniform(space, dtype=torch.float64).sample(8, generator=generator())
    doubts = [
        gf.layers.MongeAmpere(space, potential, n_steps=n, step_size=1 / n).draw(z)[2].detach()
        for n in (2, 16)
    ]
    assert float(doubts[1].mean()) < 1e-2 * float(doubts[0].mean())


def test_ising_bound_is_above_the_exact_value_and_close():
    flow = lattice_flow(strength=0.01)
    for module in flow.modules():
        if isinstance(module, gf.layers.MongeAmpere):
            module.n_steps, module.step_size = 1, 1 / 3
    target = gf.targets.IsingTarget(SIDE)
    flow.fit_target(
        target, max_steps=300, batch_size=64, learning_rate=1e-2, seed=0, progress=False
    )
    found, exact = flow.free_energy_, -target.log_partition
    assert found.value > exact - 4 * found.standard_error
    assert found.value - exact < 0.01 * abs(exact)  # after three hundred steps
    assert found.effective_sample_size > 0.5
    gap = -found.log_partition - exact
    assert abs(gap) < 4 * found.log_partition_error + 0.02
    assert math.isfinite(flow.history_["loss"][-1])
