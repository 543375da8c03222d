"""Laws of the Moser flow: normalised, sampled as scored, transported as it says."""

import copy
import math
import pickle

import normflows as nf
import numpy as np
import pytest
import torch
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from hypothesis import given, settings
from hypothesis import strategies as st

import geoflow_plugin as gf
from geoflow_plugin import geometry

CIRCLE, SPHERE = Hypersphere(1), Hypersphere(2)
TORUS = NFoldManifold(Hypersphere(1), 2)
SPACES = {
    "S1": CIRCLE,
    "S2": SPHERE,
    "T2": TORUS,
    "S3": Hypersphere(3),
    "SO3": SpecialOrthogonal(3),
    "R2": Euclidean(2),
    "S2xSO2": ProductManifold([Hypersphere(2), SpecialOrthogonal(2)]),
}
GRIDS = ["S1", "S2", "T2"]


class RandomField(torch.nn.Module):
    """Smooth and strong enough to drive the ratio negative when ``size`` is."""

    def __init__(self, shape, size, seed=0, dtype=torch.float64):
        super().__init__()
        n = math.prod(shape)
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(2, n, n, generator=generator, dtype=dtype)
        self.inner = torch.nn.Parameter(1.5 * draw[0] / n**0.5)
        self.outer = torch.nn.Parameter(size * draw[1] / n**0.5)

    def forward(self, x):
        return ((x.flatten(1) @ self.inner).sin() @ self.outer).reshape(x.shape)


def quadrature(space, n=120, dtype=torch.float64, device="cpu"):
    """Points and weights of a rule that knows nothing of the package."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    turn = 2 * math.pi * (np.arange(2 * n) + 0.5) / (2 * n)
    if space is CIRCLE:
        turn = 2 * math.pi * (np.arange(20 * n) + 0.5) / (20 * n)
        points = np.stack([np.cos(turn), np.sin(turn)], -1)
        weight = np.full(len(turn), 2 * math.pi / len(turn))
    elif space is SPHERE:
        z, t = (a.ravel() for a in np.meshgrid(nodes, turn, indexing="ij"))
        r = np.sqrt(1 - z**2)
        points = np.stack([r * np.cos(t), r * np.sin(t), z], -1)
        weight = np.repeat(weights, len(turn)) * math.pi / n
    else:
        circle = np.stack([np.cos(turn), np.sin(turn)], -1)
        points = np.stack(
            [np.repeat(circle, len(turn), 0), np.tile(circle, (len(turn), 1))], 1
        )
        weight = np.full(len(points), (math.pi / n) ** 2)
    to = {"dtype": dtype, "device": device}
    return torch.as_tensor(points).to(**to), torch.as_tensor(weight).to(**to)


@torch.no_grad()
def log_prob_of(distribution, points):
    return torch.cat([distribution.log_prob(p) for p in points.split(8192)])


def integral(distribution, n=120):
    points, weight = quadrature(distribution.space, n, distribution.dtype, distribution.device)
    return float((weight.double() * log_prob_of(distribution, points).double().exp()).sum())


def data(space, n=400, seed=0, dtype=torch.float64, device="cpu"):
    """Two clusters of unlike width."""
    generator = torch.Generator(device).manual_seed(seed)
    wide = gf.WrappedNormal(space, scale=0.6, dtype=dtype).to(device)
    other = wide.sample(3, generator=generator)[2]
    tight = gf.WrappedNormal(space, other, scale=0.2).to(device)
    return torch.cat(
        [
            wide.sample(n // 2, generator=generator),
            tight.sample(n - n // 2, generator=generator),
        ]
    )


def small_flow(space, dtype=torch.float64, base=None, n_sources=64):
    generator = torch.Generator().manual_seed(0)
    background = gf.networks.FourierField(
        space.shape, 16, 32, generator=generator, dtype=dtype
    )
    field = gf.networks.SourceField(
        space, n_sources, background, generator=generator, dtype=dtype
    )
    return gf.MoserFlow(space, base=base, field=field)


# Normalisation -----------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(size=st.floats(0.01, 2.0), seed=st.integers(0, 100))
def test_integral_is_one_for_any_field(name, size, seed):
    space = SPACES[name]
    flow = gf.MoserFlow(space, field=RandomField(space.shape, size, seed))
    assert abs(integral(flow, 60) - 1) < 1e-3


@pytest.mark.parametrize("name", GRIDS)
def test_signed_model_integrates_to_one_and_negative_mass_is_its_negative_part(name):
    space = SPACES[name]
    flow = gf.MoserFlow(space, field=RandomField(space.shape, 1.0))
    points, weight = quadrature(space, 60)
    ratio = flow.ratio(points).detach()
    mean = weight / weight.sum()
    assert abs(float((mean * ratio).sum()) - 1) < 1e-10  # Stokes
    assert float(ratio.min()) < 0
    exact = float((mean * (-ratio).clamp_min(0)).sum())
    assert flow.negative_mass() == pytest.approx(exact, abs=2e-3)
    kept = float((mean * flow._positive_part(ratio)).sum())
    normalizer, error = flow.normalizer()
    assert normalizer == pytest.approx(kept, abs=max(5e-4, 5 * error))


@pytest.mark.parametrize("name", SPACES)
def test_normalised_before_during_and_after_training(name, device):
    space = SPACES[name]
    X = data(space, dtype=torch.float32, device=device)
    flow = small_flow(space, torch.float32).to(device)
    generator = torch.Generator(device).manual_seed(1)

    def check():
        if name in GRIDS:
            assert abs(integral(flow) - 1) < 1e-3
        value, error = gf.check_normalization(flow, 2_000, generator)
        assert abs(value - 1) < 4 * error + 2e-4

    optimizer = torch.optim.Adam(flow.field.parameters(), 1e-2)
    for step in range(20):  # a user's own loop, judged in the middle of it
        optimizer.zero_grad()
        flow.loss(X).backward()
        optimizer.step()
        if step in (0, 19):
            check()
    flow.fit(X, max_steps=20, progress=False)
    check()
    assert bool(geometry.belongs(space, flow.sample(50)).all())


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_entropy_by_quadrature_is_that_of_samples(name, size, device):
    space = SPACES[name]
    field = RandomField(space.shape, size).to(device)
    flow = gf.MoserFlow(space, field=field)
    points, weight = quadrature(space, 80, device=device)
    log_prob = log_prob_of(flow, points)
    entropy = -float((weight * log_prob.exp() * log_prob).sum())
    generator = torch.Generator(device).manual_seed(3)
    with torch.no_grad():
        x, own = flow.forward(4000, generator=generator)
        torch.testing.assert_close(own, flow.log_prob(x))
    error = float(own.std()) / math.sqrt(len(own))
    assert abs(-float(own.mean()) - entropy) < 4 * error


@pytest.mark.parametrize("name", GRIDS)
def test_fitted_model_samples_what_it_scores(name):
    space = SPACES[name]
    flow = small_flow(space).fit(data(space), max_steps=40, progress=False)
    points, weight = quadrature(space)
    log_prob = log_prob_of(flow, points)
    entropy = -float((weight * log_prob.exp() * log_prob).sum())
    with torch.no_grad():
        x, own = flow.forward(4000, generator=torch.Generator().manual_seed(0))
    assert abs(-float(own.mean()) - entropy) < 4 * float(own.std()) / 4000**0.5
    mean = (
        weight.reshape(-1, *[1] * (x.ndim - 1))
        * points
        * log_prob.exp().reshape(-1, *[1] * (x.ndim - 1))
    ).sum(0)
    error = x.std(0) / 4000**0.5
    assert bool(((x.mean(0) - mean).abs() < 4.5 * error + 1e-6).all())


def test_sampling_stays_cheap_when_sources_leave_the_space():
    field = gf.networks.SourceField(SPHERE, n_sources=32, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    field.initialize(data(SPHERE), generator)
    with torch.no_grad():
        field.centers.mul_(1.02)  # narrow bells now look wider than their own width
        field.scaled_log_widths.fill_(math.log(1e-3) / field._gain)
    flow = gf.MoserFlow(SPHERE, field=field)
    _, n_proposals = flow.sample_with_count(1000, generator)
    assert n_proposals < 10 * 1000


def test_raising_the_envelope_keeps_the_law():
    flow = gf.MoserFlow(SPHERE, field=RandomField((3,), 1.0))
    exact = flow.sample(6000, generator=torch.Generator().manual_seed(0))
    flow._log_envelope(flow._proposal())
    flow._normalizer.cache["log_envelope"] = -1.0  # far too low: has to be raised on the way
    raised = flow.sample(6000, generator=torch.Generator().manual_seed(1))
    error = (exact.var(0) / 6000 + raised.var(0) / 6000).sqrt()
    assert bool(((exact.mean(0) - raised.mean(0)).abs() < 4 * error).all())


def test_changed_weights_are_never_scored_with_the_old_normaliser():
    flow = gf.MoserFlow(SPHERE, field=RandomField((3,), 0.5))
    assert abs(integral(flow, 60) - 1) < 1e-3
    for change in (
        lambda p: p.data.mul_(3.0),  # leaves no trace in the version counter
        lambda p: setattr(p, "data", p.data.flip(0)),
    ):
        change(flow.field.outer)
        assert abs(integral(flow, 60) - 1) < 1e-3


def test_gradient_of_log_prob_includes_the_normaliser():
    flow = gf.MoserFlow(SPHERE, field=RandomField((3,), 1.5), normalizer_tolerance=1e-4)
    points, weight = quadrature(SPHERE, 60)
    # d/dtheta of the integral of exp(log_prob) vanishes if and only if Z's is right
    total = (weight * flow.log_prob(points).exp()).sum()
    with_z = torch.autograd.grad(total, flow.field.outer)[0]
    free = (weight / weight.sum() * flow._positive_part(flow.ratio(points))).sum()
    without = torch.autograd.grad(free, flow.field.outer)[0] / free.detach()
    assert float(without.abs().max()) > 0.02
    assert float(with_z.abs().max()) < 0.05 * float(without.abs().max())


# Bases -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_on_a_kernel_density_zero_field_is_the_kernel_density(name):
    space = SPACES[name]
    X = data(space)
    # wide enough for the quadrature to see
    base = gf.KernelDensity(space, bandwidth=[0.4, 0.2, 0.1]).fit(X)
    flow = gf.MoserFlow(space, base=base)
    torch.testing.assert_close(flow.log_prob(X), base.log_prob(X))
    assert flow.normalizer() == (1.0, 0.0)
    flow = small_flow(space, base=base).fit(X, max_steps=30, progress=False)
    assert abs(integral(flow) - 1) < 1e-3
    history = flow.history_["validation"]
    assert min(history) <= history[0]  # the base itself is the first candidate


def test_stein_identity_on_a_strong_field_over_a_kernel_density():
    base = gf.KernelDensity(SPHERE, bandwidth=0.3).fit(data(SPHERE, 100))
    flow = gf.MoserFlow(SPHERE, base=base, field=RandomField((3,), 0.5))
    points, weight = quadrature(SPHERE, 100)
    with torch.no_grad():
        density = base.log_prob(points).exp()
        total = float((weight * density * flow.ratio(points)).sum())
    assert abs(total - 1) < 1e-9
    assert abs(integral(flow, 100) - 1) < 1e-3


def test_normflows_distributions_serve_as_base():
    plane = Euclidean(2)
    gaussian = nf.distributions.DiagGaussian(2).double()
    with torch.no_grad():
        gaussian.loc += 0.3
        gaussian.log_scale -= 0.2
    flow = gf.MoserFlow(plane, base=gaussian, field=RandomField((2,), 0.4))
    grid = torch.linspace(-8, 8, 400, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    cell = float(grid[1] - grid[0]) ** 2
    assert abs(float(log_prob_of(flow, points).exp().sum()) * cell - 1) < 2e-3
    state = torch.random.get_rng_state()
    flow.normalizer()
    assert torch.equal(state, torch.random.get_rng_state())
    before = [p.clone() for p in gaussian.parameters()]
    flow.fit(gaussian.sample(200).detach(), max_steps=10, progress=False)
    for p, q in zip(before, gaussian.parameters(), strict=True):
        assert torch.equal(p, q)  # fit leaves the base alone


# Transport ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["S1", "S2", "T2", "SO3", "R2"])
def test_transport_of_a_positive_model_is_the_model(name):
    space = SPACES[name]
    flow = gf.MoserFlow(space, field=RandomField(space.shape, 0.08))
    transport = flow.transport(rtol=1e-8, atol=1e-8)
    assert isinstance(transport, nf.flows.Flow)
    z = flow.base.sample(50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x, log_det = transport.forward(z)
        assert transport.n_evaluations > 0
        torch.testing.assert_close(
            flow.base.log_prob(z) - log_det, flow.log_prob(x), atol=2e-5, rtol=0
        )
    assert bool(geometry.belongs(space, x, atol=1e-10).all())
    assert max(gf.check_invertibility(transport, z)) < 1e-5


@pytest.mark.parametrize("size", [0.08, 0.6])
def test_transport_log_det_is_that_of_its_jacobian_even_under_the_floor(size):
    flow = gf.MoserFlow(SPHERE, field=RandomField((3,), size), floor=0.1)
    transport = flow.transport(rtol=1e-9, atol=1e-9)
    z = flow.base.sample(12, generator=torch.Generator().manual_seed(5))
    x, log_det = transport.forward(z)
    step = 1e-5
    columns = []
    for e in geometry.tangent_basis(SPHERE, z).movedim(1, 0):
        ends = [transport.forward(geometry.exp(SPHERE, s * step * e, z))[0] for s in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * step))
    jacobian = torch.stack(columns, dim=1)
    gram = jacobian @ jacobian.mT
    expected = 0.5 * torch.linalg.slogdet(gram).logabsdet
    torch.testing.assert_close(log_det, expected, atol=2e-4, rtol=1e-4)


def test_torus_flow_serves_as_base_of_circular_splines():
    flow = small_flow(TORUS, torch.float32)
    flow.fit(data(TORUS, dtype=torch.float32), max_steps=10, progress=False)
    splines = nf.flows.CircularCoupledRationalQuadraticSpline(
        2, 1, 16, [0, 1], tail_bound=math.pi
    )
    model = nf.NormalizingFlow(flow, [nf.flows.Reverse(gf.layers.Chart(TORUS)), splines])
    n = 200
    angle = (torch.arange(n) + 0.5) / n * 2 * math.pi - math.pi
    grid = torch.cartesian_prod(angle, angle)
    with torch.no_grad():
        # a spline at its start is not the identity once it is shaken
        for p in splines.parameters():
            p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        total = float(model.log_prob(grid).double().exp().sum()) * (2 * math.pi / n) ** 2
        assert abs(total - 1) < 5e-3
        x, log_q = model.sample(100)
        torch.testing.assert_close(model.log_prob(x), log_q, atol=1e-3, rtol=1e-3)
    loss = model.forward_kld(grid[:256])
    loss.backward()
    for parameters in (splines.parameters(), [flow.field.centers]):
        assert any(p.grad is not None and bool(p.grad.any()) for p in parameters)


@pytest.mark.parametrize("name", ["S1", "T2", "R2"])
def test_chart_is_invertible_with_the_metrics_volume(name):
    space = SPACES[name]
    chart = gf.layers.Chart(space)
    z = 6 * torch.rand(50, space.dim, dtype=torch.float64) - 3
    assert max(gf.check_invertibility(chart, z)) < 1e-12
    x, log_det = chart.forward(z)
    assert bool(geometry.belongs(space, x).all())
    jacobian = torch.stack(
        [
            torch.func.jvp(lambda c: chart.forward(c)[0], (z,), (e.expand_as(z),))[1].flatten(
                1
            )
            for e in torch.eye(space.dim, dtype=z.dtype)
        ],
        1,
    )
    expected = 0.5 * torch.linalg.slogdet(jacobian @ jacobian.mT).logabsdet
    torch.testing.assert_close(log_det, expected)


# Learning ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_fit_learns_and_keeps_the_best_validation_weights(name, device):
    space = SPACES[name]
    X = data(space, dtype=torch.float32, device=device)
    held_out = X[::10]  # of both clusters
    flow = small_flow(space, torch.float32).to(device)
    start = -float(flow.log_prob(held_out).mean().detach())
    assert flow.fit(X, max_steps=80, validation=held_out, progress=False) is flow
    with torch.no_grad():
        end = -float(flow.log_prob(held_out).mean())
    history = flow.history_
    assert end < start - 0.1
    assert end == pytest.approx(min(history["validation"]), abs=2e-2)
    assert len(history["step"]) == len(history["loss"]) == len(history["validation"])
    assert flow.device.type == torch.device(device).type


def test_fit_is_reproducible_and_leaves_the_global_stream_alone():
    X = data(SPHERE, 120)
    flows = [small_flow(SPHERE) for _ in range(2)]
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    for flow in flows:
        flow.fit(X, max_steps=8, seed=3, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    for p, q in zip(*(f.parameters() for f in flows), strict=True):
        assert torch.equal(p, q)
    draws = [f.sample(20, generator=torch.Generator().manual_seed(1)) for f in flows]
    assert torch.equal(*draws)
    assert torch.equal(state, torch.random.get_rng_state())
    other = small_flow(SPHERE).fit(X, max_steps=8, seed=4, progress=False)
    assert not torch.equal(other.field.centers, flows[0].field.centers)


def test_interrupted_and_broken_fits_keep_good_weights():
    X = data(SPHERE, 120)

    class Breaking(RandomField):
        calls = 0

        def forward(self, x):
            Breaking.calls += 1
            if Breaking.calls == self.limit and self.error is not None:
                raise self.error
            broken = self.error is None and self.limit <= Breaking.calls < self.mended
            return super().forward(x) * (math.nan if broken else 1.0)

    for error, mended, expected in (
        (KeyboardInterrupt(), 0, pytest.warns(UserWarning, match="interrupted")),
        (None, math.inf, pytest.raises(FloatingPointError, match="best weights")),
        (None, 41, pytest.warns(UserWarning, match="a quarter of the learning rate")),
    ):
        field = Breaking((3,), 0.1)
        field.limit, field.mended, field.error, Breaking.calls = 40, mended, error, 0
        flow = gf.MoserFlow(SPHERE, field=field)
        with expected:
            flow.fit(X, max_steps=200, progress=False)
        field.mended, field.error = 0, None
        assert bool(flow.log_prob(X).isfinite().all())
        assert abs(integral(flow, 60) - 1) < 1e-3


def test_leave_one_out_ratio_is_that_of_a_field_without_the_source():
    space, X = SPHERE, data(SPHERE, 30)
    field = gf.networks.SourceField(space, 30, dtype=torch.float64)
    anchors = field.initialize(X, torch.Generator().manual_seed(0))
    flow = gf.MoserFlow(space, field=field)
    with torch.no_grad():
        own = field.own_ratio(X[anchors])
        full = flow.ratio(X[anchors])
        for k in range(5):
            without = copy.deepcopy(field)
            without.scaled_logits.data[k] = -1e3  # carries nothing
            without.scaled_charge.data *= 1 - field.shares[k]
            expected = gf.MoserFlow(space, field=without).ratio(X[anchors])[k]
            assert float(full[k] - own[k]) == pytest.approx(float(expected), abs=1e-9)


def test_sources_on_the_sphere_are_a_positive_mixture_up_to_charge_two():
    field = gf.networks.SourceField(SPHERE, 50, dtype=torch.float64)
    field.scaled_log_widths.data.fill_(math.log(0.1) / field._gain)
    points, _ = quadrature(SPHERE, 60)
    for charge, sign in ((1.999, 1), (2.3, -1)):
        field.scaled_charge.data.fill_(charge / field._gain)
        flow = gf.MoserFlow(SPHERE, field=field)
        assert math.copysign(1, float(flow.ratio(points).min())) == sign


# Citizenship -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["S2", "T2", "SO3"])
def test_dtype_is_kept_and_precisions_agree(name, dtype):
    space = SPACES[name]
    reference = small_flow(space).fit(data(space, 100), max_steps=5, progress=False)
    flow = copy.deepcopy(reference).to(dtype)
    x, log_prob = flow(20)
    assert x.dtype == log_prob.dtype == dtype
    with torch.no_grad():
        torch.testing.assert_close(
            flow.log_prob(x).double(),
            reference.log_prob(geometry.projection(space, x.double())),
            atol=5e-3,
            rtol=5e-3,
        )


def test_is_a_module_and_a_normflows_distribution_that_copies_and_pickles():
    flow = small_flow(SPHERE).fit(data(SPHERE, 60), max_steps=3, progress=False)
    assert isinstance(flow, torch.nn.Module)
    assert isinstance(flow, nf.distributions.BaseDistribution)
    x = flow.sample(10)
    expected = flow.log_prob(x)
    twins = [copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))]
    fresh = small_flow(SPHERE)
    fresh.load_state_dict(flow.state_dict())
    for twin in [*twins, fresh]:
        torch.testing.assert_close(twin.log_prob(x), expected)
    assert twins[0].space is not flow.space


def test_every_parameter_of_the_default_field_gets_a_gradient():
    flow = gf.MoserFlow(SPHERE)
    X = data(SPHERE, 100, dtype=flow.dtype)
    flow.fit(X, max_steps=2, progress=False)
    flow.loss(X).backward()
    dead = [
        n for n, p in flow.field.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]
    assert not dead


def test_numpy_points_are_scored_and_fitted_as_they_are():
    X = data(SPHERE, 60).numpy()
    flow = small_flow(SPHERE, torch.float32).fit(X, max_steps=3, progress=False)
    assert flow.log_prob(X).dtype == torch.float32
