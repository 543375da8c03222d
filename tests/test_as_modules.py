"""Every distribution is a torch module that threads, copies and casts do not disturb."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import rng_untouched
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere

import geoflow_plugin as gf

SPHERE = Hypersphere(2)


def moser():
    field = gf.networks.SourceField(SPHERE, n_sources=8)
    return gf.MoserFlow(SPHERE, field=field)


def upon_kernels():
    law = gf.KernelDensity(SPHERE, [0.5]).fit(gf.Uniform(SPHERE).sample(20))
    return gf.MoserFlow(SPHERE, base=law, field=gf.networks.FourierField((3,)))


def monge_ampere():
    potential = gf.networks.OneHiddenLayerPotential(3, 8)
    return gf.MongeAmpereFlow(SPHERE, potential=potential, n_steps=4)


def injective():
    return gf.InjectiveFlow(5, Hypersphere(1), high_layers=gf.layers.smooth_couplings(5, 2, 8))


MAKE = {
    "moser": moser,
    "moser upon kernels": upon_kernels,
    "monge_ampere": monge_ampere,
    "injective": injective,
    "mixture": lambda: gf.Mixture(SPHERE, [gf.Uniform(SPHERE), gf.WrappedNormal(SPHERE)]),
    "wrapped normal": lambda: gf.WrappedNormal(SPHERE, scale=0.4),
    "low rank normal": lambda: gf.LowRankNormal(Euclidean(4), 2),
}


@pytest.fixture(params=MAKE)
def flow(request):
    """A distribution with weights that are not those it starts with."""
    torch.manual_seed(0)
    flow = MAKE[request.param]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.1 * noise
    return flow


def draw(flow, seed, n=32):
    return flow.sample(n, generator=torch.Generator(flow.device).manual_seed(seed)).detach()


def twin(flow):
    """One of the same make, with other weights and nothing remembered."""
    other = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    return other


def test_threads_do_not_disturb_each_other(flow, device):
    flow = flow.to(device)
    others = [copy.deepcopy(flow) for _ in range(8)]  # which have nothing in common
    expected = []
    for seed, other in enumerate(others):
        x = draw(other, seed)
        expected.append((x, other.log_prob(x).detach()))

    def task(seed):
        x = draw(flow, seed)
        return x, flow.log_prob(x).detach()

    with ThreadPoolExecutor(4) as pool:  # the first ones fill whatever is cached
        found = list(pool.map(task, range(8)))
    for pair, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(pair, alone, rtol=0, atol=0)


def test_answers_in_inference_mode_are_the_same(flow):
    x = draw(copy.deepcopy(flow), 0)
    expected = copy.deepcopy(flow).log_prob(x).detach()
    with torch.inference_mode():
        found, log_prob = flow.log_prob(x), flow(8)[1]
    torch.testing.assert_close(found.clone(), expected)
    assert bool(log_prob.isfinite().all())
    # and what it remembers does not spoil what comes after
    if list(flow.parameters()):
        (flow.loss(x) - flow.log_prob(x).mean()).backward()


def test_a_compiled_density_is_the_density(flow):
    x = draw(flow, 0)
    expected = flow.log_prob(x).detach()
    compiled = torch.compile(flow.log_prob, backend="eager")
    torch.testing.assert_close(compiled(x).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_say_the_same(flow, how):
    x = draw(flow, 0)
    expected = flow.log_prob(x).detach()
    if how == "state_dict":
        copied = twin(flow)
        if list(flow.parameters()):
            assert not torch.equal(copied.log_prob(x).detach(), expected)
        copied.load_state_dict(flow.state_dict())
    else:
        copied = copy.deepcopy(flow) if how == "deepcopy" else pickle.loads(pickle.dumps(flow))
    assert torch.equal(copied.log_prob(x).detach(), expected)
    assert torch.equal(draw(copied, 3), draw(flow, 3))
    ours = {p.data_ptr() for p in [*flow.parameters(), *flow.buffers()]}
    assert not ours & {p.data_ptr() for p in [*copied.parameters(), *copied.buffers()]}


def test_to_moves_everything(flow, device):
    x = draw(flow, 0)
    expected = flow.log_prob(x).detach()
    moved = flow.to(device, torch.float64)
    for tensor in [*moved.parameters(), *moved.buffers()]:
        assert tensor.device.type == device.type
        assert tensor.dtype == torch.float64 or not tensor.is_floating_point()
    y = gf.geometry.projection(flow.space, x.to(device, torch.float64))
    found = moved.log_prob(y).detach()
    assert found.dtype == torch.float64 and found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected.double(), rtol=1e-3, atol=1e-3)
    assert draw(moved, 1).dtype == torch.float64
    with pytest.raises((TypeError, ValueError), match="x: expected"):
        moved.log_prob(x)


def test_a_generator_decides_and_the_global_stream_is_left_alone(flow):
    first = rng_untouched(lambda: draw(flow, 5))
    assert torch.equal(first, draw(flow, 5)) and not torch.equal(first, draw(flow, 6))
    rng_untouched(lambda: flow.log_prob(first))
