"""Injective flows: densities on submanifolds of R^D, the map, its training, its geometry."""

import copy
import json
import math

import normflows as nf
import pytest
import torch
from conftest import assert_mean, make_space, rng_untouched, run_under
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.klein_bottle import KleinBottle
from geomstats.geometry.matrices import Matrices
from geomstats.geometry.spd_matrices import SPDMatrices

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.distributions.free_form import FreeFormInjectiveFlow
from geoflow_plugin.distributions.injective import InjectiveFlow
from geoflow_plugin.layers.chain import Chain, smooth_couplings
from geoflow_plugin.layers.embedding import Embedding, LinearEmbedding, Reshape
from geoflow_plugin.outliers import OutlierStump, outlier_scores
from geoflow_plugin.volume_change import exact

LATENT = {
    "R1": lambda: Euclidean(1),
    "R2": lambda: Euclidean(2),
    "S1": lambda: Hypersphere(1),
    "S2": lambda: Hypersphere(2),
    "S2 doubled": lambda: make_space("S2 doubled"),
    "T2": lambda: make_space("T2"),
    "SPD2": lambda: SPDMatrices(2),
}


def roughen(module, scale=0.3, seed=0):
    """Move every weight away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.add_(scale * noise.to(p))
    return module


def layers(dim, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # for what permutes
        return roughen(Chain(smooth_couplings(dim, 2, 8)).double(), seed=seed)


def make_flow(name, ambient_dim, **options):
    space = LATENT[name]()
    options.setdefault("high_layers", layers(ambient_dim))
    return InjectiveFlow(ambient_dim, space, **options).double()


def volume_by_hand(flow, u, context=None):
    """Half log det of the Gram matrix of a dense Jacobian, over an own tangent basis."""
    space, values = flow.latent_space, []
    for i in range(len(u)):
        given = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda p, given=given: flow._immerse(p, given), u[i : i + 1]
        ).reshape(-1, u[i].numel())
        eye = torch.eye(u[i].numel(), dtype=u.dtype, device=u.device)
        vectors = geometry.to_tangent(
            space, eye.reshape(-1, *space.shape), u[i].expand(len(eye), *space.shape)
        )
        basis = torch.linalg.svd(vectors.flatten(1))[2][: geometry.dim(space)]
        values.append(0.5 * torch.linalg.slogdet(basis @ jacobian.mT @ jacobian @ basis.mT)[1])
    return torch.stack(values) - geometry.log_volume_element(space, u)


class Isometry(nf.flows.Flow):
    """A fixed rotation and shift, times a factor."""

    def __init__(self, dim, factor=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        normal = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", factor * torch.linalg.qr(normal)[0])

    def forward(self, z):
        return z @ self.matrix.mT + 1.0, torch.linalg.slogdet(self.matrix)[1]

    def inverse(self, x):
        back = (x - 1.0) @ torch.linalg.inv(self.matrix).mT
        return back, -torch.linalg.slogdet(self.matrix)[1]


# The density ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LATENT)
def test_log_prob_is_that_of_a_dense_jacobian(name, device):
    flow = make_flow(name, 5).to(device)
    u = flow.base.sample(4, generator=torch.Generator(device).manual_seed(0))
    x = flow.decode(u)
    expected = flow.base.log_prob(u) - volume_by_hand(flow, u)
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-10)
    off = x + 0.01 * torch.randn_like(x)
    torch.testing.assert_close(
        flow.log_prob(off), flow.log_prob(flow.project(off)), rtol=0, atol=1e-8
    )


def test_low_layers_move_the_density_along_the_manifold():
    space = Hypersphere(1)
    low = gf.layers.MongeAmpere(space, n_steps=4, solver="reversible", dtype=torch.float64)
    roughen(low, 0.05)
    flow = InjectiveFlow(3, space, low_layers=[low], high_layers=layers(3))
    z = flow.base.sample(5)
    u, log_det = low(z)
    expected = flow.base.log_prob(z) - log_det - volume_by_hand(flow, u)
    torch.testing.assert_close(flow.log_prob(flow.decode(z)), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(flow.encode(flow.decode(z)), z, rtol=0, atol=1e-7)


def test_a_base_on_coordinates_and_a_chart_put_a_density_on_a_space():
    space = LATENT["SPD2"]()
    low = [roughen(nf.flows.LULinearPermute(3).double()), gf.layers.Chart(space)]
    base = nf.distributions.DiagGaussian(3).double()
    flow = InjectiveFlow(5, space, base, low, layers(5))
    z = base.sample(4)
    u, log_det = flow.low_layers(z)
    expected = base.log_prob(z) - log_det - volume_by_hand(flow, u)
    torch.testing.assert_close(flow.log_prob(flow.decode(z)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ambient_dim", [2, 4])
def test_integral_over_a_closed_curve(ambient_dim):
    flow = make_flow("S1", ambient_dim)
    angle = torch.arange(8000, dtype=torch.float64) * (2 * math.pi / 8000)
    x = flow.decode(torch.stack([angle.cos(), angle.sin()], dim=1)).detach()
    length = (x[::2].roll(-1, 0) - x[::2]).norm(dim=1)  # of the chords about each odd point
    density = flow.log_prob(x[1::2]).exp()
    assert float((density * length).sum().detach()) == pytest.approx(1, abs=1e-4)
    assert float(length.std() / length.mean()) > 0.1  # so that the volume has a say


def test_integral_over_an_open_curve():
    flow = make_flow("R1", 3)
    z = torch.linspace(-7, 7, 8001, dtype=torch.float64)[:, None]
    x = flow.decode(z).detach()
    length = (x[2::2] - x[:-2:2]).norm(dim=1)
    density = flow.log_prob(x[1::2]).exp().detach()
    assert float((density * length).sum()) == pytest.approx(1, abs=1e-4)


def icosphere(n_divisions):
    """Vertices and faces of a triangulation of the sphere, built here from nothing else."""
    a = (1 + math.sqrt(5)) / 2
    corners = [(s * 1, t * a, 0) for s in (-1, 1) for t in (-1, 1)]
    corners = [c[i:] + c[:i] for i in range(3) for c in corners]
    x = torch.tensor(corners, dtype=torch.float64)
    near = torch.cdist(x, x) < 2.1
    faces = [
        (i, j, k)
        for i in range(12)
        for j in range(i)
        for k in range(j)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    corner = torch.stack([x[torch.tensor(f)] for f in zip(*faces, strict=True)], dim=1)
    for _ in range(n_divisions):
        p, q, r = corner.unbind(1)
        pq, qr, rp = (p + q) / 2, (q + r) / 2, (r + p) / 2
        parts = [(p, pq, rp), (pq, q, qr), (rp, qr, r), (pq, qr, rp)]
        corner = torch.cat([torch.stack(part, dim=1) for part in parts])
    return corner / corner.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("ambient_dim", [3, 6])
def test_integral_over_a_closed_surface(ambient_dim):
    flow = make_flow("S2", ambient_dim)
    corner = icosphere(5)
    x = flow.decode(corner.reshape(-1, 3)).reshape(-1, 3, ambient_dim).detach()
    a, b = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
    squared = a.square().sum(1) * b.square().sum(1) - (a * b).sum(1).square()
    middle = geometry.projection(flow.latent_space, corner.mean(1))
    density = flow.log_prob(flow.decode(middle)).exp()
    assert float((density * squared.sqrt() / 2).sum()) == pytest.approx(1, abs=2e-3)
    assert float(density.std() / density.mean()) > 0.1


@pytest.mark.parametrize("name", ["R2", "S1", "S2"])
def test_an_isometry_on_top_changes_nothing(name):
    base = gf.WrappedNormal(LATENT[name](), dtype=torch.float64)
    flow = make_flow(name, 4, base=base)
    isometry = Isometry(4)
    moved = InjectiveFlow(4, flow.latent_space, base, high_layers=[*layers(4), isometry])
    seed = torch.Generator().manual_seed(0)
    x = flow.sample(6, generator=seed)
    torch.testing.assert_close(moved.sample(6, generator=seed.manual_seed(0)), isometry(x)[0])
    torch.testing.assert_close(moved.log_prob(isometry(x)[0]), flow.log_prob(x))
    x = x + 0.1 * torch.randn_like(x)
    torch.testing.assert_close(
        moved.reconstruction_error(isometry(x)[0]), flow.reconstruction_error(x)
    )


@pytest.mark.parametrize("name", ["R1", "S2"])
def test_scaling_the_data_by_c_divides_the_density_by_c_to_the_d(name):
    flow = make_flow(name, 4)
    scaled = make_flow(name, 4, high_layers=[*layers(4), Isometry(4, 3.0)])
    x = flow.sample(5)
    y = scaled.high_layers[-1](x)[0]
    expected = flow.log_prob(x) - geometry.dim(flow.latent_space) * math.log(3)
    torch.testing.assert_close(scaled.log_prob(y), expected)


def test_rotations_of_the_latent_sphere_that_the_base_ignores():
    flow = InjectiveFlow(3, Hypersphere(2), high_layers=[], reconstruction_weight=1.0).double()
    x = flow.sample(7)
    torch.testing.assert_close(
        flow.log_prob(x), torch.full_like(x[:, 0], -math.log(4 * math.pi))
    )


@pytest.mark.parametrize("d", [2, 3])
def test_without_loss_of_dimension_it_is_a_normalizing_flow(d):
    low = [roughen(nf.flows.LULinearPermute(d).double())]
    high = layers(d)
    base = nf.distributions.DiagGaussian(d).double()
    flow = InjectiveFlow(d, base=base, low_layers=low, high_layers=high, dim=d)
    model = nf.NormalizingFlow(base, [*low, *high])
    x = torch.randn(50, d, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x), model.log_prob(x), rtol=0, atol=1e-13)
    assert float(flow.reconstruction_error(x).max()) < 1e-12
    kld = model.forward_kld(x).double()  # which normflows sums in float32
    torch.testing.assert_close(flow.loss(x), kld, rtol=0, atol=1e-6)


# The map ---------------------------------------------------------------------------------


@pytest.mark.parametrize("embedding", [Embedding, LinearEmbedding])
@pytest.mark.parametrize("name", LATENT)
def test_the_left_inverse(name, embedding):
    space = LATENT[name]()
    embedding = roughen(embedding(math.prod(space.shape), 6).double())
    flow = InjectiveFlow(6, space, high_layers=layers(6), embedding=embedding)
    z = flow.base.sample(5)
    x = flow.decode(z)
    torch.testing.assert_close(flow.encode(x), z, rtol=0, atol=1e-9)
    assert float(flow.reconstruction_error(x).max()) < 1e-9
    off = x + 0.1 * torch.randn_like(x)
    once = flow.project(off)
    torch.testing.assert_close(once, flow.decode(flow.encode(off)))
    torch.testing.assert_close(flow.project(once), once, rtol=0, atol=1e-8)
    torch.testing.assert_close(flow.reconstruction_error(off), (off - once).norm(dim=1))


def test_linear_embedding_has_the_pseudo_inverse():
    embedding = roughen(LinearEmbedding(2, 5, dtype=torch.float64))
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = x @ torch.linalg.pinv(embedding.weight).mT
    torch.testing.assert_close(embedding.inverse(x), expected)
    z = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(embedding.inverse(embedding(z)), z)


def test_images_through_glow(device):
    torch.manual_seed(0)
    high = [
        Reshape((16,), (16, 1, 1)),
        nf.flows.Squeeze(),
        nf.flows.GlowBlock(4, 8),
        nf.flows.Squeeze(),
        Reshape((1, 4, 4), (16,)),
    ]
    flow = InjectiveFlow(16, high_layers=high, embedding=LinearEmbedding(3, 16), dim=3)
    flow.double().to(device)
    x = torch.randn(40, 16, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match="ActNorm has not seen data"):
        flow.log_prob(x)
    flow.fit(x, max_steps=2, batch_size=10, progress=False)
    roughen(flow)
    z = flow.base.sample(3)
    torch.testing.assert_close(flow.encode(flow.decode(z)), z, rtol=0, atol=1e-8)
    expected = flow.base.log_prob(z) - volume_by_hand(flow, z)
    torch.testing.assert_close(flow.log_prob(flow.decode(z)), expected, rtol=0, atol=1e-8)


def test_data_may_be_matrices_under_a_scaled_metric():
    space = Matrices(2, 3)
    plain = InjectiveFlow(space, dim=2, high_layers=layers(6))
    doubled = Matrices(2, 3)
    doubled.metric = 4.0 * doubled.metric
    scaled = InjectiveFlow(doubled, dim=2, high_layers=layers(6))
    x = plain.sample(5)
    assert x.shape == (5, 2, 3) and plain.project(x).shape == x.shape
    expected = plain.log_prob(x) - 2 * math.log(2)  # areas are four times as large
    torch.testing.assert_close(scaled.log_prob(x), expected)


def test_context_reaches_the_layers_that_take_one():
    torch.manual_seed(0)
    low = nf.flows.AutoregressiveRationalQuadraticSpline(2, 1, 8, num_context_channels=2)
    high = nf.flows.MaskedAffineAutoregressive(4, 8, context_features=2, num_blocks=1)
    flow = InjectiveFlow(4, None, None, [low], [*smooth_couplings(4, 1, 8), high], dim=2)
    roughen(flow.double())
    context = torch.randn(5, 2, dtype=torch.float64)
    x, log_prob = flow(5, context=context)
    z = flow.encode(x, context=context)
    u, log_det = flow.low_layers(z, context)
    expected = flow.base.log_prob(z) - log_det - volume_by_hand(flow, u.detach(), context)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-8)
    assert float((flow.log_prob(x, context=-context) - log_prob).abs().max()) > 1e-2
    assert not make_flow("R1", 3).conditional
    with pytest.raises(TypeError, match="context"):
        make_flow("R1", 3).log_prob(torch.zeros(1, 3).double(), context=context[:1])


CONDITIONAL = {
    "affine": lambda: nf.flows.MaskedAffineAutoregressive(4, 8, context_features=2),
    "coupled spline": lambda: nf.flows.CoupledRationalQuadraticSpline(
        4, 1, 8, num_context_channels=2
    ),
    "autoregressive spline": lambda: nf.flows.AutoregressiveRationalQuadraticSpline(
        4, 1, 8, num_context_channels=2
    ),
}


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_a_context_that_layers_need_is_asked_for_by_name(kind):
    flow = InjectiveFlow(4, dim=2, high_layers=[CONDITIONAL[kind]()]).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    assert flow.conditional and flow.context_dim == 2
    ask = [flow.log_prob, flow.encode, flow.project, flow.reconstruction_error, flow.loss]
    for method in [*ask, lambda x, **given: flow.decode(x[:, :2], **given), flow.fit]:
        with pytest.raises(TypeError, match=r"context: .*needs one, of shape \(3, 2\)"):
            method(x)
        with pytest.raises(ValueError, match="context: expected 2 columns, got 3"):
            method(x, context=torch.zeros(3, 3))
    with pytest.raises(TypeError, match="context: .*needs one"):
        flow.manifold()
    assert flow.log_prob(x, context=torch.zeros(3, 2)).shape == (3,)


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_layers_with_a_context_are_trained_through_forward_mode(kind):
    # torch has no derivative of the forward-mode derivative of their gates
    flow = InjectiveFlow(4, dim=2, high_layers=[roughen(CONDITIONAL[kind]())]).double()
    x, context = torch.randn(2, 3, 4, dtype=torch.float64)
    context, weights = context[:, :2], list(flow.high_layers.parameters())
    found = torch.autograd.grad(flow.loss(x, context), weights, allow_unused=True)
    u = flow._left_inverse(x, context)[0]
    columns = torch.eye(2, dtype=x.dtype)[:, None].expand(-1, 3, -1)
    value, derivatives = exact.reverse_mode(lambda y: flow._immerse(y, context), u, columns)
    log_prob = flow.base.log_prob(u) - exact.half_log_det(derivatives)
    expected = (10 * (value - x).square().sum(1) - log_prob).mean()
    for a, b in zip(
        found, torch.autograd.grad(expected, weights, allow_unused=True), strict=True
    ):
        torch.testing.assert_close(a, b)
    flow.fit(x, context=context, max_steps=2, validation=None, progress=False)


def test_layers_made_without_context_take_none():
    low = [
        nf.flows.MaskedAffineAutoregressive(2, 8),
        nf.flows.CoupledRationalQuadraticSpline(2, 1, 8),
        gf.layers.MongeAmpere(Euclidean(2), n_steps=4),
    ]
    flow = InjectiveFlow(4, dim=2, low_layers=low)
    assert not flow.conditional and flow.context_dim is None
    with pytest.raises(TypeError, match="context: .*takes none"):
        flow.log_prob(torch.randn(3, 4), context=torch.zeros(3, 2))
    encoder = torch.nn.Linear(3, 4)
    base = nf.distributions.base.ConditionalDiagGaussian(2, encoder)
    flow = InjectiveFlow(4, base=base, low_layers=low, dim=2)
    assert flow.conditional and flow.context_dim == 3
    assert flow.log_prob(torch.randn(3, 4), context=torch.zeros(3, 3)).shape == (3,)
    with pytest.raises(ValueError, match=r"one length of context .* \[2, 3\]"):
        InjectiveFlow(4, None, base, low, [CONDITIONAL["affine"]()], dim=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device(dtype, device):
    flow = make_flow("S2", 4).to(device, dtype)
    x, log_prob = flow(20, generator=torch.Generator(device).manual_seed(0))
    assert x.dtype == log_prob.dtype == dtype and x.device.type == device.type
    exact = make_flow("S2", 4).to(device).log_prob(x.double())
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(log_prob.double(), exact, rtol=0, atol=tolerance)


def test_samples_depend_on_the_generator_alone():
    flow = make_flow("S2", 4)

    def draw():
        return flow.sample(10, generator=torch.Generator().manual_seed(5))

    assert torch.equal(rng_untouched(draw), draw())
    assert flow.sample(0).shape == (0, 4)


# Learning --------------------------------------------------------------------------------


def circle(n=600, seed=0):
    """Von Mises points of concentration 1 on the unit circle."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(8 * n, generator=generator, dtype=torch.float64)
    kept = (
        torch.rand(8 * n, generator=generator, dtype=torch.float64) < (angle.sin() - 1).exp()
    )
    angle = angle[kept][:n]
    return torch.stack([angle.cos(), angle.sin()], dim=1)


class Radius(nf.flows.Flow):
    """Multiplication by one number, the simplest map of a circle."""

    def __init__(self, log_radius=0.3):
        super().__init__()
        self.log_radius = torch.nn.Parameter(torch.tensor(log_radius, dtype=torch.float64))

    def forward(self, z):
        return z * self.log_radius.exp(), 2 * self.log_radius

    def inverse(self, x):
        return x * (-self.log_radius).exp(), -2 * self.log_radius


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_the_objective_balances_volume_and_reconstruction(method):
    # -log p + weight (1 - r)^2 = log r + weight (1 - r)^2 + const: r (1 - r) = 1 / (2 weight)
    flow = InjectiveFlow(
        2, Hypersphere(1), high_layers=[Radius()], method=method, reconstruction_weight=10.0
    )
    flow.fit(circle(200), max_steps=300, learning_rate=3e-2, progress=False)
    r = float(flow.high_layers[0].log_radius.exp().detach())
    assert r == pytest.approx(0.5 + math.sqrt(0.25 - 1 / 20), abs=2e-3)
    x = flow.project(circle(20))
    log_density = -math.log(2 * math.pi * r)
    torch.testing.assert_close(flow.log_prob(x), torch.full_like(x[:, 0], log_density))


@pytest.mark.parametrize("validation", [0.1, None])
def test_divergence_is_noticed_and_the_good_weights_are_kept(validation):
    # with so small a weight, r (1 - r) = 1 / (2 weight) has no solution: the circle shrinks
    flow = InjectiveFlow(
        2, Hypersphere(1), high_layers=[Radius(0.0)], reconstruction_weight=0.1
    )
    x = circle()
    with pytest.raises(FloatingPointError, match="raise reconstruction_weight") as caught:
        flow.fit(x, max_steps=200, learning_rate=0.1, progress=False, validation=validation)
    assert "diverged" in str(caught.value)
    assert float(flow.reconstruction_error(x).detach().square().mean()) < 0.5
    assert bool(flow.log_prob(x).isfinite().all())


@pytest.mark.parametrize("validation", [0.1, None])
def test_divergence_from_a_poor_start_is_noticed_before_the_weights_are_kept(validation):
    # a line through a circle starts with half of the variance, and has no tenfold to go
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(600, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    flow = InjectiveFlow(
        2, dim=1, high_layers=smooth_couplings(2, 2, 16), reconstruction_weight=0.1
    ).double()
    before = float(flow.reconstruction_error(x).detach().square().mean())
    with pytest.raises(FloatingPointError, match="diverged"):
        flow.fit(
            x,
            max_steps=250,
            learning_rate=1e-2,
            batch_size=256,
            progress=False,
            validation=validation,
        )
    after = float(flow.reconstruction_error(x).detach().square().mean())
    assert after < max(1.5 * before, 0.5)


class Killed(BaseException):
    """What ends a run between two checks."""


@pytest.mark.parametrize("killed_at", [None, 25])
def test_a_resumed_fit_knows_what_the_detector_knew(killed_at, tmp_path):
    # killed at a check, or resumed from what a run that diverged has left
    def stop(step, _):
        if killed_at is not None and step >= killed_at:
            raise Killed

    def fit(**options):
        flow = InjectiveFlow(
            2, Hypersphere(1), high_layers=[Radius(0.0)], reconstruction_weight=0.1
        )
        flow.fit(circle(), max_steps=200, learning_rate=0.1, progress=False, **options)

    with pytest.raises(FloatingPointError) as uninterrupted:
        fit()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises((Killed, FloatingPointError)):
        fit(checkpoint=path, callback=stop)
    with pytest.raises(FloatingPointError) as resumed:
        fit(checkpoint=path, resume=True)
    assert str(resumed.value) == str(uninterrupted.value)


def test_a_differential_without_rank_ends_the_fit_with_the_good_weights():
    class Collapse(Radius):
        n_calls = 0

        def forward(self, z):
            self.n_calls += self.training and torch.is_grad_enabled()
            return z * (0.0 if self.n_calls > 3 else 1.0) * self.log_radius.exp(), 0.0

    flow = InjectiveFlow(2, Hypersphere(1), high_layers=[Collapse(0.0)])
    with pytest.raises(FloatingPointError, match="raise reconstruction_weight"):
        flow.fit(circle(), max_steps=10, progress=False)
    assert float(flow.high_layers[0].log_radius.detach()) == pytest.approx(0, abs=0.1)


def test_fit_finds_a_plane_and_the_normal_law_on_it(device):
    torch.manual_seed(0)
    z = torch.randn(2000, 1, dtype=torch.float64)
    direction = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    x = (z @ direction + torch.tensor([1.0, 0.0, -1.0])).to(device)
    high = [nf.flows.AffineConstFlow((3,)), nf.flows.LULinearPermute(3)]
    flow = InjectiveFlow(3, high_layers=high, dim=1, reconstruction_weight=100.0)
    flow.double().to(device)
    flow.fit(x, max_steps=300, learning_rate=3e-2, batch_size=500, progress=False)
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(float(direction.norm()))
    assert float(flow.reconstruction_error(x).square().mean().detach()) < 1e-3
    assert -float(flow.log_prob(x).mean().detach()) == pytest.approx(entropy, abs=0.05)


def test_each_of_the_two_steps_trains_its_own_part():
    space = Hypersphere(1)
    chart = gf.layers.Chart(space)
    spline = nf.flows.CircularAutoregressiveRationalQuadraticSpline(
        1, 1, 8, ind_circ=[0], tail_bound=math.pi
    ).double()
    low = [nf.flows.Reverse(chart), spline, chart]
    flow = InjectiveFlow(2, space, low_layers=low, high_layers=[Radius()])
    options = dict(max_steps=100, learning_rate=5e-2, progress=False)
    x = circle()
    before = copy.deepcopy(flow)
    flow.fit_manifold(x, **options)
    for p, q in zip(spline.parameters(), before.low_layers.parameters(), strict=True):
        assert torch.equal(p, q)
    r = float(flow.high_layers[0].log_radius.exp().detach())
    assert r == pytest.approx(1, abs=1e-2)  # no volume pulls
    before = -float(flow.log_prob(x).mean())
    flow.fit_density(x, **options)
    assert float(flow.high_layers[0].log_radius.exp()) == r
    assert -float(flow.log_prob(x).mean()) < before - 0.1
    assert len(flow.history_["step"]) == len(flow.history_["loss"])


def test_a_moser_base_is_fitted_in_its_own_way():
    space = Hypersphere(1)
    base = gf.MoserFlow(space).double()
    flow = InjectiveFlow(2, space, base, high_layers=[Radius(0.0)])
    flow.fit_density(circle(), max_steps=20, progress=False)
    entropy = math.log(2 * math.pi * 1.2660658) - 0.4463900
    assert -float(flow.log_prob(circle(2000, seed=1)).detach().mean()) < entropy + 0.05
    u = flow.encode(circle(50))
    torch.testing.assert_close(flow.log_prob(flow.decode(u)), base.log_prob(u))


def test_by_probes_the_loss_has_its_value_as_well():
    high = layers(4)
    exact_flow = InjectiveFlow(4, dim=2, high_layers=high).double()
    flow = InjectiveFlow(4, dim=2, high_layers=high, method="hutchinson").double()
    x = torch.randn(50, 4, dtype=torch.float64)
    torch.manual_seed(0)
    draws = torch.stack([flow.loss(x).detach() for _ in range(40)])
    assert draws.std() > 0
    assert_mean(draws, exact_flow.loss(x).detach())
    with torch.no_grad():
        torch.testing.assert_close(flow.loss(x), exact_flow.loss(x))


def test_fits_repeat_themselves():
    def fitted(method):
        torch.manual_seed(0)
        flow = InjectiveFlow(
            2, Hypersphere(1), high_layers=smooth_couplings(2, 1, 4), method=method
        )
        flow.fit(circle(100).float(), max_steps=4, batch_size=20, progress=False)
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    for method in ("exact", "hutchinson"):
        assert torch.equal(fitted(method), fitted(method))


def test_a_checkpoint_is_of_one_step():
    with pytest.raises(ValueError, match="checkpoint: belongs to one fit"):
        make_flow("R1", 3).fit_in_two_steps(torch.zeros(3, 3).double(), checkpoint="a.pt")


def test_a_new_metric_of_the_latent_space_is_noticed():
    flow = make_flow("S2", 3)
    x = flow.sample(2)
    flow.latent_space.metric = 2.0 * flow.latent_space.metric
    with pytest.raises(ValueError, match="space: its metric changed"):
        flow.log_prob(x)


def test_fit_target_is_refused():
    with pytest.raises(TypeError, match="fit_target"):
        make_flow("R1", 3).fit_target(lambda x: x.sum(1), max_steps=1)


# Free-form -------------------------------------------------------------------------------


def linear_free_form(d, ambient_dim):
    """Encoder A and decoder its pseudo-inverse, so that the surrogate is exact on average."""
    torch.manual_seed(1)
    encoder = torch.nn.Linear(ambient_dim, d, bias=False)
    decoder = torch.nn.Linear(d, ambient_dim, bias=False)
    flow = FreeFormInjectiveFlow(ambient_dim, dim=d, encoder=encoder, decoder=decoder)
    flow.double()
    decoder.weight.data = torch.linalg.pinv(encoder.weight.data)
    return flow


def test_the_trace_has_the_gradient_of_the_likelihood():
    flow = linear_free_form(2, 4)
    weight = flow.embedding.encoder.weight
    x = torch.randn(6, 4, dtype=torch.float64)
    z = x @ weight.mT
    volume = -0.5 * torch.linalg.slogdet(weight @ weight.mT)[1]  # of the pseudo-inverse
    (exact,) = torch.autograd.grad((flow.base.log_prob(z) - volume).sum(), weight)
    torch.testing.assert_close(  # and that is the density that is reported
        flow.log_prob(x), flow.base.log_prob(z) - volume
    )
    generator = torch.Generator().manual_seed(0)
    draws = [
        torch.autograd.grad(flow.training_log_prob(x, generator).sum(), weight)[0]
        for _ in range(200)
    ]
    assert_mean(torch.stack(draws), exact)


def test_the_trace_is_taken_over_tangent_spaces():
    torch.manual_seed(0)
    flow = FreeFormInjectiveFlow(5, Hypersphere(2), n_probes=3).double()
    probes = flow._probes(flow.base.sample(4), None)
    assert probes.shape == (3, 4, 3)
    x = torch.randn(40, 5, dtype=torch.float64)
    u, _ = flow._left_inverse(x)
    many = torch.cat([flow._probes(u, None) for _ in range(100)])
    torch.testing.assert_close(  # tangent, and of the length of the root of d
        (many * u).sum(-1), torch.zeros_like(many[..., 0]), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(many.square().sum(-1), torch.full_like(many[..., 0], 2.0))


def test_free_form_learns_a_circle():
    torch.manual_seed(0)
    flow = FreeFormInjectiveFlow(2, Hypersphere(1), reconstruction_weight=100.0).double()
    x = circle(1000)
    flow.fit(x, max_steps=200, learning_rate=1e-2, batch_size=250, progress=False)
    assert float(flow.reconstruction_error(x).square().mean().detach()) < 1e-3
    angle = torch.arange(4000, dtype=torch.float64) * (2 * math.pi / 4000)
    curve = flow.decode(torch.stack([angle.cos(), angle.sin()], dim=1)).detach()
    length = (curve[::2].roll(-1, 0) - curve[::2]).norm(dim=1)
    density = flow.log_prob(curve[1::2]).exp().detach()
    assert float((density * length).sum()) == pytest.approx(1, abs=0.03)


# Back to geometry ------------------------------------------------------------------------


def test_a_manifold_needs_the_pytorch_backend():
    with pytest.raises(TypeError, match="GEOMSTATS_BACKEND=pytorch"):
        make_flow("S2", 3).manifold()


_GEOMETRY = """
import json, torch
import geomstats.backend as gs
from geomstats.geometry.base import ImmersedSet
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.pullback_metric import PullbackMetric
from geomstats.learning.frechet_mean import FrechetMean
import geoflow_plugin as gf
from geoflow_plugin.distributions.injective import InjectiveFlow
from test_injective import layers

torch.set_num_threads(1)
torch.manual_seed(0)
sphere = Hypersphere(2)
# isometric copy of the sphere: everything has a closed form
flow = InjectiveFlow(5, sphere, high_layers=[]).float()
manifold = flow.manifold(base_point=[0.0, 0.0, 1.0, 0.0, 0.0])
x, y = sphere.projection(0.5 * torch.randn(2, 3, 3) + torch.tensor([0.0, 0.0, 1.0]))
pad = torch.zeros(3, 2)
a, b = (manifold.projection(torch.cat([p, pad], 1)) for p in (x, y))
metric = manifold.metric
found = {
    "immersed": isinstance(manifold, ImmersedSet) and isinstance(metric, PullbackMetric),
    "dtype": str(a.dtype),
    "round trip": float((manifold.immersion(a)[:, :3] - x).abs().max()),
    "distance": float((metric.dist(a, b) - sphere.metric.dist(x, y)).abs().max()),
}
v = metric.log(b, a)
pushed = manifold.tangent_immersion(v, a)[:, :3]
found["log"] = float((pushed - sphere.metric.log(y, x)).abs().max())
found["exp"] = float((metric.exp(v, a) - b).abs().max())
times = gs.linspace(0.0, 1.0, 5)
path = manifold.immersion(metric.geodesic(a[0], b[0])(times))
great = sphere.metric.geodesic(x[0], y[0])(times)
found["geodesic"] = float((path[:, :3] - great).abs().max())
laplacian = gf.laplacian(manifold, lambda c: manifold.immersion(c)[:, 0], a)
found["laplacian"] = float((laplacian + 2 * x[:, 0]).abs().max())  # a spherical harmonic
mean = FrechetMean(manifold).fit(a).estimate_
expected = FrechetMean(sphere).fit(x).estimate_
found["mean"] = float((manifold.immersion(mean)[:3] - expected).abs().max())
# any other immersion: geomstats' own, slower derivatives
flow = InjectiveFlow(4, sphere, high_layers=layers(4))
manifold = flow.manifold()
metric = manifold.metric
a = manifold.random_point(3)
v = 0.3 * torch.randn(3, 2)
own = PullbackMetric.metric_matrix(metric, a)
found["metric"] = float((metric.metric_matrix(a) - own).abs().max())
hessian = ImmersedSet.hessian_immersion(manifold, a)
found["hessian"] = float((manifold.hessian_immersion(a) - hessian).abs().max())
state = torch.stack([a, v], dim=-2)
own = PullbackMetric.geodesic_equation(metric, state)
found["equation"] = float((metric.geodesic_equation(state) - own).abs().max())
path = metric.geodesic(a[0], initial_tangent_vec=v[0])(gs.linspace(0, 1, 101))
path = manifold.immersion(path)
steps = (path[1:] - path[:-1]).norm(dim=1)
found["speed"] = float(steps.std() / steps.mean())
found["length"] = float(steps.sum() / metric.norm(v[0], a[0]))
single = manifold.random_point()
found["shapes"] = [list(single.shape), list(manifold.immersion(single).shape)]
x = flow.sample(5).detach()
found["projection"] = float((manifold.immersion(manifold.projection(x)) - x).abs().max())
# a circle in angles, all around
flow = InjectiveFlow(2, Hypersphere(1), high_layers=[]).double()
angle = torch.tensor([[1.0], [3.0], [3.1], [-3.1]], dtype=torch.float64)
x = torch.cat([angle.cos(), angle.sin()], dim=1)
manifold = flow.manifold()
found["angles"] = float((manifold.projection(x) - angle).abs().max())
found["around"] = float((manifold.immersion(angle + 2 * torch.pi) - x).abs().max())
found["across"] = abs(float(manifold.metric.dist(angle[2], angle[3])) - (2 * torch.pi - 6.2))
turned = flow.manifold(base_point=x[1])
found["from 3"] = float((turned.projection(x[:3]) - (angle[:3] - 3)).abs().max())
print(json.dumps(found))
"""


def test_geomstats_runs_on_the_learned_manifold(monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "tests"))
    found = run_under("pytorch", "-c", _GEOMETRY)
    assert found["immersed"] and found["dtype"] == "torch.float64"
    assert found["shapes"] == [[2], [4]]
    assert found["length"] == pytest.approx(1, abs=1e-4)
    bounds = {"round trip": 1e-10, "metric": 1e-10, "hessian": 1e-9, "projection": 1e-9}
    bounds["laplacian"] = 1e-8
    bounds |= dict.fromkeys(["distance", "log", "exp", "geodesic", "speed"], 1e-4)
    bounds |= {"mean": 1e-3, "equation": 1e-6, "across": 1e-6}
    bounds |= dict.fromkeys(["angles", "around", "from 3"], 1e-12)
    for name, bound in bounds.items():
        assert found[name] < bound, (name, json.dumps(found))


# Outliers --------------------------------------------------------------------------------


def test_a_stump_takes_the_score_that_tells():
    torch.manual_seed(0)
    flow = InjectiveFlow(3, dim=2, high_layers=[]).double()  # the plane, a normal law on it

    def points(spread, height):
        plane = spread * torch.randn(200, 2, dtype=torch.float64)
        return torch.cat([plane, height * torch.randn(200, 1, dtype=torch.float64)], dim=1)

    inliers, far, off = points(1, 0.1), points(20, 0.1), points(1, 10)
    scores = outlier_scores(flow, inliers, batch_size=64)
    torch.testing.assert_close(scores[:, 0], flow.log_prob(inliers))
    torch.testing.assert_close(scores[:, 1], inliers[:, 2].abs())
    for outliers, telling in [(far, "log_prob"), (off, "reconstruction_error")]:
        stump = OutlierStump(flow).fit(inliers[:100], outliers[:100])
        assert stump.score_ == telling
        assert stump.accuracy(inliers[100:], outliers[100:]) > 0.9
        assert stump.predict(outliers[100:]).shape == (100,)
        (other,) = {"log_prob", "reconstruction_error"} - {telling}
        other = OutlierStump(flow, [other]).fit(inliers[:100], outliers[:100])
        assert other.accuracy(inliers[100:], outliers[100:]) < 0.7


# Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: InjectiveFlow(0, dim=1), ValueError, "ambient_dim: .* >= 1, got 0"),
        (lambda: InjectiveFlow(3), ValueError, "dim: .* got None"),
        (lambda: InjectiveFlow(2, dim=3), ValueError, "ambient_dim: expected 3 at least"),
        (lambda: InjectiveFlow(2, Hypersphere(2)), ValueError, "ambient_dim: expected 3"),
        (lambda: InjectiveFlow(4, Hypersphere(2), dim=3), ValueError, "dim: expected 2"),
        (lambda: InjectiveFlow(4, KleinBottle()), TypeError, "several arrays name one point"),
        (lambda: InjectiveFlow(Hypersphere(2), dim=1), TypeError, "ambient_dim: .* Euclid"),
        (lambda: InjectiveFlow(3, dim=2, method="fast"), ValueError, "method: .* 'fast'"),
        (lambda: InjectiveFlow(3, dim=2, n_probes=0), ValueError, "n_probes"),
        (
            lambda: InjectiveFlow(3, dim=2, reconstruction_weight=-1),
            ValueError,
            "reconstruction_weight: .* -1",
        ),
        (
            lambda: InjectiveFlow(3, dim=2, embedding=Embedding(1, 3)),
            ValueError,
            r"embedding: expected one of R\^2 in R\^3, got one of R\^1",
        ),
        (
            lambda: InjectiveFlow(3, dim=2, base=gf.Uniform(Hypersphere(1))),
            ValueError,
            "base: expected a distribution on Euclidean",
        ),
        (lambda: Embedding(3, 2), ValueError, "ambient_dim: expected 3 or more"),
        (lambda: Reshape((4,), (2, 3)), ValueError, "shape_out: expected 4 entries"),
        (lambda: smooth_couplings(1), ValueError, "dim: expected 2 or more"),
        (
            lambda: FreeFormInjectiveFlow(3, dim=2, encoder=torch.sin),
            TypeError,
            "encoder: expected a torch.nn.Module",
        ),
        *(
            (lambda part=part: FreeFormInjectiveFlow(3, dim=2, **part), ValueError, message)
            for part, message in [
                ({"decoder": torch.nn.Linear(2, 5)}, "decoder: expected points of 3 entries"),
                ({"decoder": torch.nn.Linear(3, 3)}, "decoder: sizes do not fit"),
                ({"encoder": torch.nn.Linear(3, 1)}, "encoder: expected points of 2 entries"),
                ({"encoder": torch.nn.Linear(4, 2)}, "encoder: sizes do not fit"),
            ]
        ),
        *(
            (lambda part=part: InjectiveFlow(3, dim=2, **part()), ValueError, message)
            for part, message in [
                (lambda: {"base": nf.distributions.DiagGaussian(3)}, "base: .* 2 entries"),
                (lambda: {"base": nf.distributions.DiagGaussian(1)}, "base: .* 2 entries"),
                (lambda: {"high_layers": smooth_couplings(2)}, "high_layers: sizes"),
                (lambda: {"low_layers": [nf.flows.LULinearPermute(3)]}, "low_layers: sizes"),
                (
                    lambda: {
                        "low_layers": [nf.flows.LULinearPermute(2)],
                        "base": gf.Uniform(Hypersphere(2)),
                    },
                    "low_layers: expected points of 3 entries",
                ),
            ]
        ),
        (lambda: OutlierStump(None, ["fid"]), ValueError, "scores: expected some of"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_points():
    flow = make_flow("S2", 4)
    x = flow.sample(3)
    for method in (flow.log_prob, flow.encode, flow.project, flow.reconstruction_error):
        with pytest.raises(ValueError, match=r"x: expected shape \(n, 4\)"):
            method(x[:, :3])
        with pytest.raises(TypeError, match=r"x: expected torch.float64"):
            method(x.float())
        with pytest.raises(ValueError, match="x: expected finite points"):
            method(x * math.nan)
    with pytest.raises(ValueError, match="z: expected points on Hypersphere"):
        flow.decode(torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("chart", [False, True])
def test_bad_latent_points_are_refused_whosoever_the_base_is(chart):
    space = LATENT["SPD2" if chart else "R2"]()
    k = geometry.dim(space)
    base = nf.distributions.DiagGaussian(k).double()
    low = [nf.flows.LULinearPermute(k), *([gf.layers.Chart(space)] if chart else [])]
    flow = InjectiveFlow(5, space, base, low, layers(5)).double()
    z = base.sample(3).detach()
    assert flow.decode(z).shape == (3, 5)
    for wrong in (z[:, None], z[:0], torch.ones(2, k + 1).double(), z * math.nan):
        with pytest.raises(ValueError, match="z: expected"):
            flow.decode(wrong)
    for wrong in (z.numpy(), z.float()):
        with pytest.raises(TypeError, match="z: expected"):
            flow.decode(wrong)


def test_sizes_are_checked_without_a_trace():
    class Noisy(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(len(x), 1)

    high = [nf.flows.ActNorm((3,)), nf.flows.LULinearPermute(3)]
    before = copy.deepcopy(high[0].state_dict())
    base, encoder, decoder = nf.distributions.DiagGaussian(2), Noisy(3, 2), Noisy(2, 3)
    rng_untouched(lambda: InjectiveFlow(3, dim=2, base=base, high_layers=high) and 0)
    rng_untouched(
        lambda: (
            FreeFormInjectiveFlow(3, dim=2, base=base, encoder=encoder, decoder=decoder) and 0
        )
    )
    for name, value in high[0].state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("check", [gf.check_normalization, gf.check_sampling])
def test_a_density_on_a_submanifold_has_no_integral_around_it(check):
    with pytest.raises(TypeError, match="distribution: .* submanifold of dimension 1"):
        check(InjectiveFlow(2, Hypersphere(1)), n=100)
    high = [CONDITIONAL["affine"]()]
    law = gf.AtContext(InjectiveFlow(4, dim=2, high_layers=high), torch.zeros(2))
    with pytest.raises(TypeError, match="distribution: .* submanifold of dimension 2"):
        check(law, n=100)
    integral, error = gf.check_normalization(InjectiveFlow(2, dim=2), n=2000)
    assert abs(integral - 1) < 5 * error + 1e-6


def test_only_euclidean_spaces_hold_data():
    assert InjectiveFlow.supports(Euclidean(3))
    assert not InjectiveFlow.supports(Hypersphere(2))
