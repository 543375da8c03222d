"""Ratios in one run; the numbers in brackets of pytest-benchmark's table.

pytest tests/benchmarks --benchmark-enable --benchmark-only

Without --benchmark-enable each is run once and only its answer is checked.
"""

import math

import pytest
import torch
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence

SPACES = {"S2": Hypersphere(2), "SO3": SpecialOrthogonal(3)}
N_POINTS, WIDTH = 1024, 256


@pytest.fixture(params=SPACES)
def problem(request):
    space = SPACES[request.param]
    size = math.prod(space.shape)
    torch.manual_seed(0)
    field = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(size, WIDTH), torch.nn.SiLU(),
        torch.nn.Linear(WIDTH, WIDTH), torch.nn.SiLU(),
        torch.nn.Linear(WIDTH, WIDTH), torch.nn.SiLU(),
        torch.nn.Linear(WIDTH, size),
        torch.nn.Unflatten(1, tuple(space.shape)),
    ).float()  # fmt: skip
    x = geometry.random_uniform(
        space, N_POINTS, torch.Generator().manual_seed(0), dtype=torch.float32
    )
    return request.param, space, field, x


def ours(space, field, x):
    return value_and_divergence(space, field, x)[1]


def loop(space, field, x):
    """Projected field, one autograd.grad for each ambient coordinate."""
    x = x.detach().requires_grad_()
    y = geometry.projection(space, x)
    vector = geometry.to_tangent(space, field(y), y)
    flat = vector.flatten(1)
    total = 0
    for k in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, k].sum(), x, create_graph=True)
        total = total + row.flatten(1)[:, k]
    return total


def floor(space, field, x):
    """The matrix products alone, of 1 + dim streams."""
    h = x.flatten(1).repeat(1 + space.dim, 1)
    for layer in field:
        if isinstance(layer, torch.nn.Linear):
            h = torch.nn.functional.linear(h, layer.weight)
    return h[:, 0]


def with_backward(function, space, field, x):
    def run():
        field.zero_grad(set_to_none=True)
        function(space, field, x).square().sum().backward()

    return run


@pytest.mark.parametrize("function", [ours, loop, floor], ids=lambda f: f.__name__)
def test_divergence_and_its_backward_pass(benchmark, problem, function):
    name, space, field, x = problem
    benchmark.group = f"divergence and backward on {name}"
    if function is loop and name == "SO3":
        # projection by SVD has no derivative at a rotation: its loop does without
        def plain(space, field, x):
            x = x.detach().requires_grad_()
            flat = geometry.to_tangent(space, field(x), x).flatten(1)
            rows = [
                torch.autograd.grad(flat[:, k].sum(), x, create_graph=True)[0]
                for k in range(flat.shape[1])
            ]
            return sum(row.flatten(1)[:, k] for k, row in enumerate(rows))

        function = plain
    benchmark(with_backward(function, space, field, x))
    if name == "S2" and function is loop:
        torch.testing.assert_close(
            loop(space, field, x), ours(space, field, x), atol=1e-4, rtol=1e-4
        )
    assert all(p.grad is not None for p in field.parameters() if p.ndim == 2)


@pytest.fixture(scope="module")
def fitted():
    space = SPACES["S2"]
    generator = torch.Generator().manual_seed(0)
    X = gf.WrappedNormal(space, scale=0.4, dtype=torch.float32).sample(
        1000, generator=generator
    )
    torch.manual_seed(0)
    return gf.MoserFlow(space).float().fit(X, max_steps=20, progress=False), X


@pytest.mark.parametrize("what", ["log_prob", "divergence"])
def test_log_prob_of_1000_points_beside_one_divergence(benchmark, fitted, what):
    flow, X = fitted
    benchmark.group = "log_prob beside one divergence, 1000 points"
    with torch.no_grad():
        if what == "log_prob":
            value = benchmark(lambda: flow.log_prob(X))
        else:
            value = benchmark(lambda: gf.divergence(flow.space, flow.field, X))
    assert bool(value.isfinite().all())


@pytest.mark.parametrize("sampler", ["rejection", "ode"])
def test_1000_samples(benchmark, fitted, sampler):
    flow, _ = fitted
    benchmark.group = "1000 samples"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if sampler == "rejection":
            x, n_proposals = benchmark(lambda: flow.sample_with_count(1000, generator))
            benchmark.extra_info["field_evaluations"] = n_proposals
        else:
            transport = flow.transport()
            z = flow.base.sample(1000, generator=generator)
            x, _ = benchmark.pedantic(lambda: transport.forward(z), rounds=1)
            benchmark.extra_info["field_evaluations"] = 1000 * transport.n_evaluations
    assert bool(geometry.belongs(flow.space, x).all())
