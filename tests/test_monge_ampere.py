"""Monge-Ampère flows: change of variables, inverses, symmetry, and both ways to train."""

import math

import normflows as nf
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from torch import nn
from torch.func import jvp

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.integrators import reversible, runge_kutta
from geoflow_plugin.networks import (
    FourierPotential,
    InputConvexPotential,
    OneHiddenLayerPotential,
    TimeDependentPotential,
)

ROWS = ["S2", "T2", "SO3", "SO3 vectors", "KleinBottle", "R3", "SPDMatrices(2) affine"]
rows = pytest.mark.parametrize("name", ROWS)


def some_potential(space, size=0.3, dtype=torch.float64, device="cpu", seed=0, **kwargs):
    """A smooth potential that moves points by a fraction of a unit."""
    generator = torch.Generator().manual_seed(seed)
    shape = geometry.embed(space, geometry.origin(space)[None]).shape[1:]
    potential = FourierPotential(
        shape, 6, 12, max_frequency=1.5, generator=generator, dtype=torch.float64, **kwargs
    )
    with torch.no_grad():
        potential.out.weight.normal_(0, size, generator=generator)
    return potential.to(device, dtype)


def some_points(space, n, dtype=torch.float64, device="cpu", seed=1):
    law = gf.Uniform if geometry.is_compact(space) else gf.WrappedNormal
    scale = {} if law is gf.Uniform else {"scale": 0.5}
    generator = torch.Generator().manual_seed(seed)
    x = law(space, dtype=torch.float64, **scale).sample(n, generator=generator)
    return geometry.projection(space, x.to(device, dtype))


def brute_force_log_det(space, layer, x):
    """Log determinant between orthonormal bases of the metric, column by column."""
    basis = geometry.tangent_basis(space, x)

    def image(p):
        return layer.solve(p, 0.0, layer.end)[0]

    y = image(x)
    columns = [
        jvp(image, (x,), (basis[:, i].contiguous(),))[1] for i in range(geometry.dim(space))
    ]
    jacobian = (
        torch.stack(columns, 1).flatten(2) @ geometry.tangent_basis(space, y).flatten(2).mT
    )
    volumes = [geometry.log_volume_element(space, p) for p in (x, y)]
    return torch.linalg.slogdet(jacobian)[1] - volumes[0] + volumes[1]


# The map --------------------------------------------------------------------------------


@rows
def test_log_det_is_that_of_the_jacobian_to_fourth_order(name, device):
    space = CATALOGUE[name]()
    x, potential = some_points(space, 2, device=device), some_potential(space, device=device)
    errors = []
    for n_steps in (2, 4):
        layer = gf.layers.MongeAmpere(space, potential, n_steps=n_steps, step_size=1 / n_steps)
        with torch.no_grad():
            error = layer.solve(x, 0.0, 1.0)[1] - brute_force_log_det(space, layer, x)
        errors.append(float(error.abs().max()))
    assert errors[1] < 1e-3
    assert errors[1] < max(errors[0] / 8, 1e-12)  # of 16 for order four


@rows
def test_inverse_undoes_forward(name, device):
    space = CATALOGUE[name]()
    x, potential = some_points(space, 3, device=device), some_potential(space, device=device)
    for solver, n_steps, atol in [("runge_kutta", 20, 1e-6), ("reversible", 4, 1e-12)]:
        layer = gf.layers.MongeAmpere(space, potential, n_steps=n_steps, solver=solver)
        with torch.no_grad():
            y, log_det = layer(x)
            back, inverse_log_det = layer.inverse(y)
        assert float(geometry.dist(space, x, y).max()) > 0.003  # it moves
        error = (back - x).flatten(1).norm(dim=1)
        if geometry.embed(space, x) is not x:  # arrays may differ across a seam
            error = geometry.dist(space, back, x)
        assert float(error.max()) < atol * 10 ** (solver == "reversible")
        assert float((log_det + inverse_log_det).abs().max()) < 10 * atol


@pytest.mark.parametrize("name", ["S2", "R3", "SO3 vectors"])
def test_the_adaptive_solver_agrees(name):
    space = CATALOGUE[name]()
    x, potential = some_points(space, 4), some_potential(space)
    fixed = gf.layers.MongeAmpere(space, potential)
    adaptive = gf.layers.MongeAmpere(space, potential, solver="adaptive")
    with torch.no_grad():
        (y, log_det), (other, other_log_det) = fixed(x), adaptive(x)
    assert float(geometry.dist(space, y, other).max()) < 1e-4
    torch.testing.assert_close(log_det, other_log_det, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["S2", "R3"])
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_reversible_derivatives_are_those_of_the_stored_path(name, way):
    space = CATALOGUE[name]()
    weight = torch.linspace(-1, 1, 3, dtype=torch.float64)
    gradients = []
    for solver in ("runge_kutta", "reversible"):
        x, potential = some_points(space, 5).requires_grad_(), some_potential(space)
        layer = gf.layers.MongeAmpere(
            space, potential, n_steps=30, step_size=1 / 30, solver=solver
        )
        y, log_det = getattr(layer, way)(x)
        ((y * weight).sin().sum() + log_det.square().sum()).backward()
        slope = geometry.to_tangent(space, x.grad, x.detach())
        gradients.append([slope, *(p.grad for p in potential.parameters())])
    for ours, expected in zip(*gradients, strict=True):
        # inverses of the same steps, to the order of the solver
        atol = 1e-10 if way == "forward" else 1e-4
        torch.testing.assert_close(ours, expected, atol=atol, rtol=10 * atol)


def test_reversible_keeps_nothing_on_the_way():
    space, sizes = Hypersphere(2), {}
    # closed forms, for torch counts no saved tensors under its functional transforms
    potential = OneHiddenLayerPotential(3, width=8, dtype=torch.float64)
    velocity = ClosedForms(space, potential)
    for solver in (runge_kutta, reversible):
        for n_steps in (4, 16):
            kept = []

            def pack(tensor, kept=kept):
                kept.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                solver(space, velocity, some_points(space, 8), 0.0, 1.0, n_steps)
            sizes[solver, n_steps] = sum(kept)
    assert sizes[runge_kutta, 16] > 3 * sizes[runge_kutta, 4]  # the measure sees growth
    assert sizes[reversible, 16] == sizes[reversible, 4]


class ClosedForms(nn.Module):
    """Tangential gradient on the sphere, and something like its divergence."""

    def __init__(self, space, potential):
        super().__init__()
        self.space, self.potential = space, potential

    def tensors(self):
        return list(self.potential.parameters())

    def forward(self, t, x):
        slope, trace = self.potential.gradient_and_trace(x)
        return geometry.to_tangent(self.space, slope, x), trace


def test_a_step_too_long_is_said_to_be():
    space = Euclidean(2)
    layer = gf.layers.MongeAmpere(
        space, some_potential(space, 30.0), n_steps=1, step_size=2.0, solver="reversible"
    )
    with pytest.raises(RuntimeError, match="shorter steps"):
        layer.inverse(some_points(space, 4))


def test_time_dependent_potentials():
    space = Hypersphere(2)
    parts = [some_potential(space, seed=seed) for seed in range(3)]
    potential = TimeDependentPotential(parts, end=1.0)
    x = some_points(space, 4)
    layer = gf.layers.MongeAmpere(space, potential, n_steps=8, step_size=1 / 8)
    with torch.no_grad():
        expected = brute_force_log_det(space, layer, x)
        y, log_det = layer(x)
        torch.testing.assert_close(log_det, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(layer.inverse(y)[0], x, atol=1e-6, rtol=0)
    same = TimeDependentPotential([parts[0], parts[0]])
    layer = gf.layers.MongeAmpere(space, same)
    static = gf.layers.MongeAmpere(space, parts[0])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), static(x))


def test_a_convex_potential_has_a_monotone_gradient():
    generator = torch.Generator().manual_seed(0)
    potential = InputConvexPotential((3,), generator=generator, dtype=torch.float64)
    space = Euclidean(3)
    x, y = (3 * some_points(space, 200, seed=seed) for seed in (2, 3))
    slope = gf.gradient(space, potential, y) - gf.gradient(space, potential, x)
    assert float(((y - x) * slope).sum(1).min()) > 0
    assert float(gf.laplacian(space, potential, x).min()) > 0


@pytest.mark.parametrize("name", ["S2", "R3", "SO3"])
def test_closed_forms_and_automatic_derivatives_agree(name):
    space = CATALOGUE[name]()
    x = some_points(space, 7)
    generator = torch.Generator().manual_seed(0)
    potential = OneHiddenLayerPotential(
        math.prod(space.shape), width=9, generator=generator, dtype=torch.float64
    )
    ours = gf.calculus.gradient_and_laplacian(space, potential, x)
    torch.testing.assert_close(ours[0], gf.gradient(space, potential, x))
    torch.testing.assert_close(ours[1], gf.laplacian(space, potential, x))


@pytest.mark.parametrize("solver", [runge_kutta, reversible])
def test_the_fast_path_is_the_slow_one(solver):
    space = Euclidean(3)
    generator = torch.Generator().manual_seed(0)
    potential = OneHiddenLayerPotential(3, width=8, generator=generator, dtype=torch.float64)
    name = solver.__name__
    x = some_points(space, 5)
    fast = gf.layers.MongeAmpere(space, potential)
    slow = gf.layers.MongeAmpere(space, _Wrapped(potential), solver=name)
    torch.testing.assert_close(fast(x), slow(x), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(fast.inverse(x), slow.inverse(x), atol=1e-6, rtol=1e-6)


class _Wrapped(nn.Module):
    """A potential of which nothing but values is known."""

    def __init__(self, potential):
        super().__init__()
        self.potential = potential

    def forward(self, x):
        return self.potential(x)


# The distribution -----------------------------------------------------------------------


def sphere_grid(n):
    """Points of S^2 and weights that integrate: Gauss-Legendre by equal angles."""
    height, weight = np.polynomial.legendre.leggauss(n)
    angle = 2 * np.pi * np.arange(2 * n) / (2 * n)
    z, phi = (torch.as_tensor(t).flatten() for t in np.meshgrid(height, angle, indexing="ij"))
    radius = (1 - z.square()).sqrt()
    x = torch.stack([radius * phi.cos(), radius * phi.sin(), z], dim=-1)
    return x, torch.as_tensor(np.repeat(weight, 2 * n) * np.pi / n)


def torus_grid(n):
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    a, b = (t.flatten() for t in torch.meshgrid(angle, angle, indexing="ij"))
    x = torch.stack([torch.stack([t.cos(), t.sin()], -1) for t in (a, b)], 1)
    return x, torch.full((n * n,), (2 * torch.pi / n) ** 2, dtype=torch.float64)


def rotation_grid(n):
    """Euler angles ZYZ; the Haar measure of total 8 pi^2 is sin(b) da db dc."""
    height, weight = np.polynomial.legendre.leggauss(n)
    angle = 2 * torch.pi * torch.arange(2 * n, dtype=torch.float64) / (2 * n)
    z, w = torch.as_tensor(height), torch.as_tensor(weight)
    a, b, c = (t.flatten() for t in torch.meshgrid(angle, z.arccos(), angle, indexing="ij"))
    x = _about(a, 2) @ _about(b, 1) @ _about(c, 2)
    w = w.reshape(1, -1, 1).expand(2 * n, n, 2 * n).flatten() * (torch.pi / n) ** 2
    return x, w


def _about(angle, axis):
    i, j = [k for k in range(3) if k != axis]
    rotation = torch.eye(3, dtype=angle.dtype).repeat(len(angle), 1, 1)
    rotation[:, i, i] = rotation[:, j, j] = angle.cos()
    rotation[:, i, j], rotation[:, j, i] = -angle.sin(), angle.sin()
    return rotation


@pytest.mark.parametrize(
    ("name", "grid"),
    [("S2", sphere_grid(24)), ("T2", torus_grid(40)), ("SO3", rotation_grid(10))],
    ids=["S2", "T2", "SO3"],
)
def test_densities_integrate_to_one(name, grid):
    space = CATALOGUE[name]()
    x, weight = grid
    flow = gf.MongeAmpereFlow(space, potential=some_potential(space))
    with torch.no_grad():
        log_prob = flow.log_prob(x)
    assert float(log_prob.std()) > 0.03
    assert abs(float((weight * log_prob.exp()).sum()) - 1) < 1e-4


def test_samples_follow_the_density(device):
    space = Hypersphere(2)
    flow = gf.MongeAmpereFlow(space, potential=some_potential(space, device=device))
    gf.testing.check_distribution(flow, n=2000)


def test_densities_turn_with_the_sphere():
    """An isometry of the space carries the flow of a potential to that of its image."""
    space = Hypersphere(2)
    turn = geometry.random_uniform(CATALOGUE["SO3"](), 1, dtype=torch.float64)[0]
    potential = some_potential(space)
    turned = _Turned(potential, turn)
    x = some_points(space, 9)
    with torch.no_grad():
        ours = gf.MongeAmpereFlow(space, potential=turned).log_prob(x @ turn.mT)
        expected = gf.MongeAmpereFlow(space, potential=potential).log_prob(x)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


class _Turned(nn.Module):
    def __init__(self, potential, turn):
        super().__init__()
        self.potential, self.turn = potential, turn

    def forward(self, x):
        return self.potential(x @ self.turn)


def test_symmetry_of_the_density():
    space = Hypersphere(2)
    third = _about(torch.tensor([2 * torch.pi / 3], dtype=torch.float64), 2)[0]
    group = [torch.eye(3, dtype=torch.float64), third, third @ third]
    potential = some_potential(space)
    flow = gf.MongeAmpereFlow(space, potential=potential, symmetry=group)
    x = some_points(space, 8)
    with torch.no_grad():
        value, turned = flow.log_prob(x), flow.log_prob(x @ third.mT)
        plain = gf.MongeAmpereFlow(space, potential=potential).log_prob
        assert float((plain(x) - plain(x @ third.mT)).abs().max()) > 1e-2
        y, image = flow.layer(x)[0], flow.layer(x @ third.mT)[0]
    torch.testing.assert_close(value, turned, atol=1e-12, rtol=0)
    torch.testing.assert_close(y @ third.mT, image, atol=1e-12, rtol=0)


def test_float32_and_float64_agree():
    space = Hypersphere(2)
    flow = gf.MongeAmpereFlow(space, potential=some_potential(space))
    x = some_points(space, 8)
    with torch.no_grad():
        expected = flow.log_prob(x)
        ours = flow.float().log_prob(geometry.projection(space, x.float()))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, atol=1e-4, rtol=0)


def test_fit_learns_and_is_reproducible(device):
    space = Hypersphere(2)
    truth = gf.WrappedNormal(space, scale=0.5, dtype=torch.float64)
    X = truth.sample(300, generator=torch.Generator().manual_seed(0)).float()
    flows = []
    for _ in range(2):
        torch.manual_seed(0)
        potential = some_potential(space, 0.0, torch.float32)
        flow = gf.MongeAmpereFlow(space, potential=potential, n_steps=4, step_size=0.25)
        flow = flow.to(device)
        flows.append(flow.fit(X, max_steps=16, learning_rate=1e-2, progress=False))
    history = flows[0].history_
    assert min(history["validation"]) < history["validation"][0] - 0.1
    assert history["validation"] == flows[1].history_["validation"]
    integral, error = gf.check_normalization(flows[0], n=2000)
    assert abs(integral - 1) < 4 * error + 1e-3


def test_the_default_base_takes_its_place_on_the_data():
    space = Euclidean(2)
    X = 5 + 0.1 * some_points(space, 200)
    flow = gf.MongeAmpereFlow(space, potential=some_potential(space, 0.01))
    flow.fit(X, max_steps=2, progress=False)
    assert float((flow.base.mean - 5).abs().max()) < 0.1
    with torch.no_grad():
        assert float(flow.log_prob(X).mean()) > 0


# Unnormalised targets ---------------------------------------------------------------------


def test_reverse_kl_of_a_known_target():
    space = Euclidean(2)
    scale = torch.tensor([1.5, 0.7], dtype=torch.float64)
    log_partition = math.log(2 * math.pi) + float(scale.log().sum())

    def target(x):
        return -0.5 * (x / scale).square().sum(1)

    generator = torch.Generator().manual_seed(0)
    potential = OneHiddenLayerPotential(2, width=32, generator=generator, dtype=torch.float64)
    flow = gf.MongeAmpereFlow(space, potential=potential, n_steps=5, step_size=0.2)
    before = gf.free_energy(flow, target, 4000, torch.Generator().manual_seed(1))
    flow.fit_target(target, max_steps=300, learning_rate=2e-2, progress=False)
    after = flow.free_energy_
    assert after.value > -log_partition - 4 * after.standard_error  # a bound
    assert after.value < -log_partition + 0.02 < before.value
    assert abs(after.log_partition - log_partition) < 4 * after.log_partition_error + 1e-4
    assert after.effective_sample_size > max(0.95, before.effective_sample_size)


def test_a_moser_flow_has_no_pathwise_samples():
    flow = gf.MoserFlow(Hypersphere(2))
    with pytest.raises(TypeError, match="MongeAmpereFlow"):
        flow.fit_target(lambda x: x[:, 0], max_steps=1, progress=False)


# Context ----------------------------------------------------------------------------------


def conditional_flow(space):
    potential = some_potential(space, context_dim=2)
    return gf.MongeAmpereFlow(space, potential=potential, n_steps=4, step_size=0.2)


def test_conditional_densities_integrate_to_one_for_every_context():
    space = Hypersphere(2)
    flow = conditional_flow(space)
    x, weight = sphere_grid(20)
    values = []
    for context in ([0.0, 1.0], [2.0, -1.0]):
        given = torch.tensor([context], dtype=torch.float64).expand(len(x), 2)
        with torch.no_grad():
            values.append(flow.log_prob(x, context=given))
        assert abs(float((weight * values[-1].exp()).sum()) - 1) < 1e-4
    assert float((values[0] - values[1]).abs().max()) > 1e-2


def test_contexts_are_fitted():
    space = Hypersphere(2)
    X = some_points(space, 200)
    context = (X @ X.new_tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])).contiguous()
    given = conditional_flow(space).fit(
        X, context=context, max_steps=20, learning_rate=2e-2, progress=False
    )
    plain = gf.MongeAmpereFlow(
        space, potential=some_potential(space), n_steps=8, step_size=0.1
    )
    plain.fit(X, max_steps=20, learning_rate=2e-2, progress=False)
    gain = min(plain.history_["validation"]) - min(given.history_["validation"])
    assert gain > 0.1
    x = given.sample(5, context=context[:5])
    assert x.shape == (5, 3)


@pytest.mark.parametrize(
    ("context", "error", "match"),
    [
        (torch.zeros(3, 2), ValueError, "row for each point"),
        (torch.zeros(4), ValueError, "shape"),
        (torch.full((4, 2), math.nan), ValueError, "finite"),
        ("abc", TypeError, "context"),
    ],
)
def test_bad_contexts_are_refused(context, error, match):
    space = Hypersphere(2)
    with pytest.raises(error, match=match):
        conditional_flow(space).log_prob(some_points(space, 4), context=context)


def test_others_take_no_context():
    space = Hypersphere(2)
    with pytest.raises(TypeError, match="takes none"):
        gf.Uniform(space, dtype=torch.float64).log_prob(
            some_points(space, 4), context=torch.zeros(4, 1)
        )


# In company -------------------------------------------------------------------------------


def test_between_other_layers_of_normflows():
    space = Euclidean(2)
    torch.manual_seed(0)
    mapping = nf.nets.MLP([1, 8, 2], init_zeros=False)
    steps = {"n_steps": 5, "step_size": 0.1}
    layers = [
        gf.layers.MongeAmpere(space, some_potential(space), solver="reversible", **steps),
        nf.flows.AffineCouplingBlock(mapping.double()),
        gf.layers.MongeAmpere(space, some_potential(space, seed=2), **steps),
    ]
    base = nf.distributions.DiagGaussian(2, trainable=False).double()
    model = nf.NormalizingFlow(base, layers)
    x = some_points(space, 3)
    z, log_det = x, 0
    for layer in reversed(layers):
        z, change = layer.inverse(z)
        log_det = log_det + change
    torch.testing.assert_close(model.log_prob(x), base.log_prob(z) + log_det)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda p: model.inverse(p[None])[0], p) for p in x]
    )
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det, atol=1e-5, rtol=0)


def test_as_the_base_of_a_normflows_model():
    space = Euclidean(2)
    flow = gf.MongeAmpereFlow(space, potential=some_potential(space))
    model = nf.NormalizingFlow(flow, [nf.flows.AffineConstFlow((2,)).double()])
    x, log_prob = model.sample(5)
    torch.testing.assert_close(model.log_prob(x), log_prob, atol=1e-5, rtol=0)


def test_in_a_conditional_model_of_normflows():
    space = Euclidean(2)
    flow = conditional_flow(space)
    layer = gf.layers.MongeAmpere(space, some_potential(space, context_dim=2, seed=3))
    model = nf.ConditionalNormalizingFlow(flow, [layer])
    x, context = some_points(space, 6), some_points(space, 6, seed=4)
    z, log_det = layer.inverse(x, context=context)
    expected = flow.log_prob(z, context=context) + log_det
    torch.testing.assert_close(model.log_prob(x, context=context), expected)
    drawn, _ = model.sample(6, context=context)
    assert drawn.shape == (6, 2)


def test_equip():
    space = Hypersphere(2)
    assert "monge_ampere" in gf.available_distributions(space)
    space.equip_with_distribution("monge_ampere", n_steps=4, step_size=0.25)
    assert isinstance(space.distribution, gf.MongeAmpereFlow)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"potential": lambda x: x[:, 0]}, TypeError, "potential"),
        ({"n_steps": 0}, ValueError, "n_steps"),
        ({"n_steps": 2.0}, ValueError, "n_steps"),
        ({"step_size": -1.0}, ValueError, "step_size"),
        ({"step_size": math.inf}, ValueError, "step_size"),
        ({"solver": "euler"}, ValueError, "solver"),
        ({"base": "uniform"}, TypeError, "base"),
        ({"symmetry": []}, (TypeError, ValueError), "group|symmetry"),
    ],
)
def test_bad_arguments_are_refused(kwargs, error, match):
    with pytest.raises(error, match=match):
        gf.MongeAmpereFlow(Hypersphere(2), **kwargs)
