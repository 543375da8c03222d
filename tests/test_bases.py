"""Uniform, wrapped normal, kernel and mixture laws: densities, samples, symmetry."""

import math

import normflows as nf
import pytest
import torch
from conftest import (
    NAMES,
    assert_mean,
    make_space,
    points,
    rng_untouched,
    rows,
    spaces,
    vectors,
)
from numpy.polynomial.legendre import leggauss

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.distributions import kernel_density, kernel_mixture

PI = math.pi
KINDS = ["uniform", "wrapped normal", "kernels", "mixture"]


def _frame(space, dtype):
    """A few points that do not move with the seed or the dtype."""
    torch.manual_seed(11)
    start = geometry.origin(space).expand(7, *space.shape)
    normal = geometry.random_tangent_normal(space, start)
    return geometry.exp(space, 0.7 * normal, start).to(dtype)


def make(kind, space, dtype=torch.float64):
    """A distribution of each kind, none of them symmetric."""
    x = _frame(space, dtype)
    if kind == "uniform":
        return gf.Uniform(space, dtype=dtype)
    if kind == "wrapped normal":
        return gf.WrappedNormal(space, x[0], 0.8)
    if kind == "kernels":
        return gf.KernelDensity(space, bandwidth=[0.4, 0.8]).fit(x[1:])
    first = "wrapped normal" if space.name == "R3" else "uniform"
    parts = [make(k, space, dtype) for k in (first, "wrapped normal", "kernels")]
    return gf.Mixture(space, parts, weights=[1.0, 2.0, 1.0])


def pairs(*names):
    """Every kind of distribution on every space that carries it."""
    return pytest.mark.parametrize(
        "kind, space",
        [
            pytest.param(kind, name, id=f"{kind}-{name}")
            for name in names or NAMES
            for kind in KINDS
            if not (kind == "uniform" and name == "R3")
        ],
        indirect=["space"],
    )


# Independent quadrature ---------------------------------------------------------------


def _circle(n):
    angle = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * PI / n)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _rotation_grid():
    """Euler angles z-y-z: Lebesgue in both angles and in the height of the pole."""
    n = 40
    circle = _circle(n)
    height, weight = map(torch.as_tensor, leggauss(n))
    zero, one = torch.zeros(n).double(), torch.ones(n).double()
    c, s = circle.unbind(-1)
    z = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).reshape(n, 3, 3)
    r = (1 - height**2).sqrt()
    y = torch.stack([height, zero, r, zero, one, zero, -r, zero, height], -1)
    y = y.reshape(n, 3, 3)
    nodes = z[:, None, None] @ y[None, :, None] @ z[None, None]
    weight = (weight / 2 / n**2)[None, :, None].expand(n, n, n)
    return nodes.reshape(-1, 3, 3), 8 * PI**2 * weight.reshape(-1)


def quadrature(space):
    """Nodes, and weights that add up to the Riemannian volume."""
    name = space.name
    if name in ("S1", "SO2"):
        circle = _circle(1000)
        weight = torch.full((1000,), 2 * PI / 1000, dtype=torch.float64)
        if name == "S1":
            return circle, weight
        c, s = circle.unbind(-1)
        return torch.stack([c, -s, s, c], -1).reshape(-1, 2, 2), weight
    if name in ("S2", "S2 doubled"):
        height, weight = map(torch.as_tensor, leggauss(300))
        radius = (1 - height**2).sqrt()
        flat = radius[:, None, None] * _circle(300)
        z = height[:, None, None].expand(-1, 300, 1)
        nodes = torch.cat([flat, z], dim=-1).reshape(-1, 3)
        scale = 2.0 if name == "S2 doubled" else 1.0
        return nodes, scale * (weight * 2 * PI / 300).repeat_interleave(300)
    if name == "SO3":
        return _rotation_grid()
    n = 200
    circle = _circle(n)
    nodes = torch.stack([circle.repeat_interleave(n, 0), circle.repeat(n, 1)], dim=1)
    scale = math.sqrt(2) if name == "T2 scales 1, 2" else 1.0
    weight = torch.full((n**2,), scale * (2 * PI / n) ** 2, dtype=torch.float64)
    return nodes, weight


GRIDS = ("S1", "SO2", "S2", "T2", "S1xS1", "T2 scales 1, 2", "S2 doubled", "SO3")


def _tolerance(kind, space):
    # exp of a wrapped normal has an integrable pole opposite its mean, and the angle a
    # corner: quadrature converges there by powers, elsewhere faster than any
    smooth = kind in ("uniform", "kernels") or space.name in (
        "S1", "SO2", "T2", "S1xS1", "T2 scales 1, 2"
    )  # fmt: skip
    return 1e-9 if smooth else 2e-3


@pairs(*GRIDS)
def test_integrates_to_one_by_quadrature(kind, space):
    nodes, weight = quadrature(space)
    expected = math.exp(geometry.log_volume(space))
    assert float(weight.sum()) == pytest.approx(expected, rel=1e-12)
    density = make(kind, space).log_prob(nodes).exp()
    total = float((weight * density).sum())
    assert total == pytest.approx(1.0, abs=_tolerance(kind, space))


@spaces("S4", "T3", "SO4", "S2xSO3", "R3")
def test_integrates_to_one_by_importance_sampling(space, device):
    # of all kinds at once; each by itself further down
    distribution = make("mixture", space).to(device)
    generator = torch.Generator(device).manual_seed(5)
    total, error = gf.check_normalization(distribution, 5000, generator=generator)
    assert abs(total - 1) < 4 * error + 1e-9
    assert error < 0.05


class Doubled(gf.Distribution):
    """A law that claims twice the density it has."""

    def __init__(self, inner):
        super().__init__(inner.space, inner.dtype)
        self.inner = inner

    def _log_prob(self, x):
        return self.inner._log_prob(x) + math.log(2)

    def _draw(self, n, generator):
        return self.inner._draw(n, generator)


@spaces("S2", "R3")
def test_check_normalization_sees_what_is_not_normalised(space):
    generator = torch.Generator().manual_seed(0)
    liar = Doubled(make("wrapped normal", space))
    total, error = gf.check_normalization(liar, 5000, generator=generator)
    assert abs(total - 2) < 4 * error + 1e-9
    assert abs(total - 1) > 10 * error


@pairs(*GRIDS)
def test_samples_follow_the_density(kind, space):
    distribution = make(kind, space)
    nodes, weight = quadrature(space)
    log_prob = distribution.log_prob(nodes)
    mass = weight * log_prob.exp()
    mass = mass / mass.sum()
    x = distribution.sample(20_000, generator=torch.Generator().manual_seed(1))
    assert geometry.belongs(space, x, atol=1e-12).all()
    assert space.belongs(x[:100].numpy()).all()
    entropy = -float((mass * log_prob).sum())
    slack = _tolerance(kind, space)
    assert_mean(-distribution.log_prob(x), entropy, floor=slack)
    # and every coordinate, square and product
    products = rows(nodes)[:, :, None] * rows(nodes)[:, None, :]
    assert_mean(rows(x), (mass[:, None] * rows(nodes)).sum(0), floor=slack)
    expected = (mass[:, None, None] * products).sum(0)
    assert_mean(rows(x)[:, :, None] * rows(x)[:, None, :], expected, floor=slack)


@pairs("S4", "T3", "SO4", "S2xSO3", "R3")
def test_samples_follow_the_density_where_no_grid_reaches(kind, space):
    distribution = make(kind, space)
    x = distribution.sample(8000, generator=torch.Generator().manual_seed(1))
    assert geometry.belongs(space, x, atol=1e-9).all()
    # importance sampling from wide kernels, whose law other tests pin by quadrature
    centers = _frame(space, torch.float64)
    wide = gf.KernelDensity(space, bandwidth=1.0).fit(centers)
    proposed = wide.sample(15_000, generator=torch.Generator().manual_seed(2))
    if space.name != "R3":
        uniform = gf.Uniform(space, dtype=torch.float64)
        wide = gf.Mixture(space, [wide, uniform])
        proposed = wide.sample(15_000, generator=torch.Generator().manual_seed(2))
    log_prob = distribution.log_prob(proposed)
    weight = (log_prob - wide.log_prob(proposed)).exp()
    assert_mean(weight, 1.0)  # it integrates to one

    def tests(y, value):
        near = geometry.squared_chord(space, y, centers[:2])
        return torch.cat([-value[:, None], rows(y)[:, :6], (-near).exp()], dim=1)

    values = tests(proposed, log_prob)
    expected = (weight[:, None] * values).mean(0) / weight.mean()
    error = (weight[:, None] * (values - expected)).std(0) / math.sqrt(len(weight))
    drawn = tests(x, distribution.log_prob(x))
    error = torch.hypot(error, drawn.std(0) / math.sqrt(len(x)))
    assert ((drawn.mean(0) - expected).abs() <= 4 * error + 1e-9).all()


# Closed forms -------------------------------------------------------------------------


@spaces(without=["R3"])
def test_uniform_is_minus_the_log_volume(space, device):
    x = points(space, 5, device=device)
    log_prob = gf.Uniform(space, dtype=x.dtype).to(device).log_prob(x)
    expected = torch.full_like(log_prob, -geometry.log_volume(space))
    torch.testing.assert_close(log_prob, expected)


@spaces()
def test_narrow_wrapped_normal_is_normal_in_the_tangent_space(space, device):
    # log density at exp_mean(s v): that of the normal law, over the volume change of
    # exp, which is 1 - O(s^2)
    mean = points(space, 2, device=device)[0]
    scale = 1e-3
    base = mean.expand(50, *space.shape)
    v = geometry.random_tangent_normal(space, base)
    x = geometry.exp(space, scale * v, base)
    squared = geometry.inner_product(space, v, v, base)
    expected = -squared / 2 - space.dim * math.log(scale * math.sqrt(2 * PI))
    ours = gf.WrappedNormal(space, mean, scale).to(device).log_prob(x)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_wrapped_normal_on_the_circle_is_the_theta_series():
    space = make_space("S1")
    angle = torch.linspace(-3.1, 3.1, 50, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], dim=-1)
    for scale in (0.3, 1.0, 2.5):
        k = torch.arange(1, 60, dtype=torch.float64)
        modes = (-0.5 * (scale * k) ** 2).exp() * (k * angle[:, None]).cos()
        expected = ((1 + 2 * modes.sum(1)) / (2 * PI)).log()
        ours = gf.WrappedNormal(space, x.new_tensor([1.0, 0.0]), scale).log_prob(x)
        # where the density is 1e-20 the series of cosines has no digits left
        seen = expected > -15
        torch.testing.assert_close(ours[seen], expected[seen], atol=1e-8, rtol=1e-8)


def test_kernels_on_r3_are_a_gaussian_mixture():
    space = make_space("R3")
    x, centers = points(space, 9), points(space, 4)
    h = torch.tensor([0.3, 1.2], dtype=torch.float64)
    weight = torch.tensor([0.7, 0.3], dtype=torch.float64)
    ours = kernel_mixture.KernelMixture(space, centers, h, weight).log_prob(x)
    component = torch.distributions.Independent(
        torch.distributions.Normal(
            centers.repeat(2, 1), h.repeat_interleave(4)[:, None].expand(8, 3)
        ),
        1,
    )
    mixing = torch.distributions.Categorical(weight.repeat_interleave(4) / 4)
    expected = torch.distributions.MixtureSameFamily(mixing, component).log_prob(x)
    torch.testing.assert_close(ours, expected)


def test_kernels_on_the_circle_are_von_mises():
    space = make_space("S1")
    center = points(space, 2)[:1]
    angle = torch.linspace(-3, 3, 20, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], dim=-1)
    for h in (0.2, 1.0, 4.0):
        mixture = kernel_mixture.KernelMixture(space, center, x.new_tensor([h]), x.new_ones(1))
        location = torch.atan2(center[0, 1], center[0, 0])
        concentration = x.new_tensor(h**-2)
        law = torch.distributions.VonMises(location, concentration)
        # torch's own Bessel function has some seven digits
        torch.testing.assert_close(
            mixture.log_prob(x), law.log_prob(angle), atol=1e-6, rtol=1e-6
        )


@spaces("S2", "SO3", "T2", "R3")
def test_mixture_is_the_weighted_sum(space):
    parts = [make(kind, space) for kind in ("wrapped normal", "kernels")]
    mixture = gf.Mixture(space, parts, weights=[3.0, 1.0])
    x = points(space, 9)
    expected = 0.75 * parts[0].log_prob(x).exp() + 0.25 * parts[1].log_prob(x).exp()
    torch.testing.assert_close(mixture.log_prob(x).exp(), expected)


def test_mixture_weights_maximise_the_likelihood():
    space = make_space("S2")
    parts = [make(kind, space) for kind in ("wrapped normal", "kernels")]
    x = torch.cat([parts[0].sample(600), parts[1].sample(1400)])
    mixture = gf.Mixture(space, parts).fit(x)
    assert float(mixture.weights.sum()) == pytest.approx(1.0)
    best = float(mixture.log_prob(x).mean())
    grid = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    others = [
        float(gf.Mixture(space, parts, [w, 1 - w]).log_prob(x).mean()) for w in grid.tolist()
    ]
    assert best >= max(others) - 1e-9
    assert abs(float(mixture.weights[0]) - 0.3) < 0.1


# Kernel density estimation ------------------------------------------------------------


def _elsewhere(space, centers, drop, x, h, weight):
    kept = torch.arange(len(centers)) != drop
    return kernel_mixture.KernelMixture(space, centers[kept], h, weight).log_prob(x)


@spaces()
@pytest.mark.parametrize("n_copies", [1, 2, 3])
def test_leave_one_out_is_leaving_one_out(space, n_copies):
    centers = points(space, 6)
    copies = centers[:1].expand(n_copies - 1, *space.shape)
    centers = torch.cat([centers, copies])
    h = torch.tensor([0.3, 0.9], dtype=torch.float64)
    weight = torch.tensor([0.6, 0.4], dtype=torch.float64)
    mixture = kernel_mixture.KernelMixture(space, centers, h, weight)
    ours = mixture.training_log_prob(centers)
    expected = torch.cat(
        [
            _elsewhere(space, centers, i, centers[i : i + 1], h, weight)
            for i in range(len(centers))
        ]
    )
    torch.testing.assert_close(ours, expected)
    # points that are no centres are scored as ever
    other = geometry.exp(space, vectors(space, centers, 0.1), centers)
    torch.testing.assert_close(mixture.training_log_prob(other), mixture.log_prob(other))


def _kernels_of_their_own(keep=slice(None)):
    """Four kernels on the sphere, each with a bandwidth and a weight of its own."""
    space = make_space("S2")
    centers = _frame(space, torch.float64)[:4]
    h = torch.tensor([[0.3, 0.5, 0.7, 0.9]], dtype=torch.float64)
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    return kernel_mixture.KernelMixture(space, centers[keep], h[:, keep], weight[:, keep])


def test_a_bandwidth_for_each_centre():
    mixture = _kernels_of_their_own()
    x = points(mixture.space, 6)
    expected = sum(
        w * _kernels_of_their_own(slice(i, i + 1)).log_prob(x).exp()
        for i, w in enumerate(mixture.weights[0])
    )
    torch.testing.assert_close(mixture.log_prob(x).exp(), expected)


def test_leave_one_out_with_a_bandwidth_for_each_centre():
    mixture = _kernels_of_their_own()
    others = [[j for j in range(4) if j != i] for i in range(4)]
    expected = torch.cat(
        [
            _kernels_of_their_own(keep).log_prob(mixture.centers[i : i + 1])
            for i, keep in enumerate(others)
        ]
    )
    ours = mixture.training_log_prob(mixture.centers)
    torch.testing.assert_close(ours, expected)


@spaces("S2", "T2", "SO3", "R3")
def test_chunks_change_nothing(space, monkeypatch):
    kernels = make("kernels", space)
    data = torch.cat([_frame(space, torch.float64), points(space, 30)])
    mixture, loo = kernels.log_prob(data), kernels.training_log_prob(data)
    fitted = gf.KernelDensity(space).fit(data)
    for chunk in (1, 8, 50):
        monkeypatch.setattr(kernel_density, "_CHUNK", chunk)
        monkeypatch.setattr(kernel_mixture, "CHUNK", chunk)
        torch.testing.assert_close(kernels.log_prob(data), mixture)
        torch.testing.assert_close(kernels.training_log_prob(data), loo)
        again = gf.KernelDensity(space).fit(data)
        torch.testing.assert_close(again.bandwidths, fitted.bandwidths)
        torch.testing.assert_close(again.weights, fitted.weights)


@spaces("S2", "SO3")
def test_a_hundred_thousand_centres(space):
    centers = geometry.random_uniform(space, 100_000)
    kernels = gf.KernelDensity(space, bandwidth=0.5).fit(centers)
    x = points(space, 3, torch.float32)
    # so many of them are nearly uniform: the kernel mean, by its normaliser, is one
    squared = geometry.squared_chord(space, x, centers)
    weight = (-2 * squared).exp()
    error = weight.std(1) / weight.mean(1) / math.sqrt(len(centers))
    off = kernels.log_prob(x) + geometry.log_volume(space)
    assert (off.abs() < 4 * error).all()


@spaces("S1", "S2", "T2", "SO3", "R3")
def test_bandwidths_maximise_the_leave_one_out_likelihood(space):
    law = gf.WrappedNormal(space, points(space, 2)[0], 0.5)
    data = law.sample(400)
    kernels = gf.KernelDensity(space).fit(data)
    chosen = float(kernels.training_log_prob(data).mean())
    widths = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
    alone = [gf.KernelDensity(space, bandwidth=h).fit(data) for h in widths]
    single = [float(law.training_log_prob(data).mean()) for law in alone]
    # the dropped shares cost at most their sum
    assert chosen > max(single) - 0.02
    assert float(kernels.weights.sum()) == pytest.approx(1.0, abs=1e-9)
    fresh = law.sample(2000)
    gap = float((law.log_prob(fresh) - kernels.log_prob(fresh)).mean())
    assert 0 < gap < 0.25  # a Kullback-Leibler divergence


# Contracts ----------------------------------------------------------------------------


@pairs()
def test_is_a_citizen_of_torch_and_normflows(kind, space):
    distribution = make(kind, space)
    assert isinstance(distribution, nf.distributions.BaseDistribution)
    assert isinstance(distribution, torch.nn.Module)
    assert distribution.space is space


@pairs()
def test_shapes_of_batches(kind, space):
    distribution = make(kind, space)
    for n in (0, 1, 3):
        x = distribution.sample(n)
        assert x.shape == (n, *space.shape)
        x, log_prob = distribution(n)
        assert x.shape == (n, *space.shape) and log_prob.shape == (n,)
    assert distribution.sample().shape == (1, *space.shape)
    assert distribution.log_prob(x[:1]).shape == (1,)


@pairs()
def test_forward_is_sample_with_log_prob(kind, space, device):
    distribution = make(kind, space).to(device)
    x, log_prob = distribution(20, generator=torch.Generator(device).manual_seed(4))
    y = distribution.sample(20, generator=torch.Generator(device).manual_seed(4))
    assert torch.equal(x, y)
    torch.testing.assert_close(log_prob, distribution.log_prob(x))


@pairs()
def test_samples_follow_their_generator_alone(kind, space):
    distribution = make(kind, space)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return rng_untouched(lambda: distribution.sample(10, generator=generator))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    # without one, from torch's global stream
    torch.manual_seed(3)
    first = distribution.sample(10)
    torch.manual_seed(3)
    assert torch.equal(first, distribution.sample(10))
    rng_untouched(lambda: distribution.log_prob(first))


@pairs()
def test_dtypes_and_devices(kind, space, device):
    double = make(kind, space).to(device)
    single = make(kind, space, torch.float32).to(device)
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    x = double.sample(50)
    assert x.dtype == torch.float64 and x.device.type == device.type
    y = single.sample(50)
    assert y.dtype == torch.float32 and y.device.type == device.type
    assert geometry.belongs(space, y).all()
    log_prob = single.log_prob(x.float())
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), double.log_prob(x), atol=1e-3, rtol=1e-3)
    # and moved as any module is
    moved = make(kind, space, torch.float32).to(device).double()
    assert moved.dtype == torch.float64
    torch.testing.assert_close(moved.log_prob(x), double.log_prob(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.float().log_prob(x.float()), log_prob)


@pairs()
def test_gradients_reach_the_points(kind, space):
    distribution = make(kind, space)
    x = points(space, 4)
    v = vectors(space, x)
    _, slope = torch.func.jvp(distribution.log_prob, (x,), (v,))
    step = 1e-5
    ends = [distribution.log_prob(geometry.exp(space, s * v, x)) for s in (step, -step)]
    expected = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(slope, expected, atol=1e-5, rtol=1e-5)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distribution.log_prob(y).sum(), y)
    torch.testing.assert_close(rows(gradient * v).sum(1), slope, atol=1e-8, rtol=1e-7)


@pairs("S2", "SO3", "T2", "R3")
def test_loss_is_the_mean_of_training_log_prob(kind, space):
    distribution = make(kind, space)
    x = points(space, 5)
    loss = distribution.loss(x)
    assert loss.shape == ()
    torch.testing.assert_close(loss, -distribution.training_log_prob(x).mean())


@spaces()
def test_log_prob_follows_a_change_of_metric(space):
    # the same law in a metric c g: log_prob falls by (dim / 2) log c
    scaled = make_space(space.name)
    scaled.metric = 4.0 * scaled.metric
    x = points(space, 5)
    fallen = space.dim * math.log(2)
    law = make("kernels", space).kernels
    again = kernel_mixture.KernelMixture(scaled, law.centers, 2 * law.bandwidths, law.weights)
    torch.testing.assert_close(again.log_prob(x), law.log_prob(x) - fallen)
    law = make("wrapped normal", space)
    again = gf.WrappedNormal(scaled, law.mean, 2 * law.scale)
    torch.testing.assert_close(again.log_prob(x), law.log_prob(x) - fallen)
    # and the same draws, from the same stream
    drawn, other = (
        d.sample(5, generator=torch.Generator().manual_seed(0)) for d in (law, again)
    )
    torch.testing.assert_close(drawn, other)


@spaces("S2", "SO3", "T2", "R3")
def test_a_changed_metric_is_noticed(space):
    for kind in KINDS:
        if kind == "uniform" and space.name == "R3":
            continue
        target = make_space(space.name)
        law = make(kind, target)
        x = points(target, 3)
        target.metric = 2.0 * target.metric
        for call in (
            lambda d=law, y=x: d.log_prob(y),
            lambda d=law: d.sample(2),
            lambda d=law: d(2),
            lambda d=law, y=x: d.loss(y),
        ):
            with pytest.raises(ValueError, match="space: .*metric"):
                call()


# normflows ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wrapped normal", "kernels", "mixture"])
def test_is_a_base_of_a_normflows_model(kind):
    space = make_space("R3")
    base = make(kind, space, torch.float32)
    model = nf.NormalizingFlow(base, [nf.flows.AffineConstFlow((3,))])
    with torch.no_grad():
        model.flows[0].s.copy_(torch.tensor([[0.5, -0.3, 0.1]]))
        model.flows[0].t.copy_(torch.tensor([[1.0, 2.0, -1.0]]))
    s, t = (getattr(model.flows[0], name).detach() for name in ("s", "t"))
    x = points(space, 6, torch.float32)
    expected = base.log_prob((x - t) / s.exp()) - s.sum()
    torch.testing.assert_close(model.log_prob(x), expected)
    torch.manual_seed(0)
    drawn, log_prob = model.sample(5)
    assert drawn.shape == (5, 3)
    torch.testing.assert_close(log_prob, model.log_prob(drawn), atol=1e-4, rtol=1e-4)
    # maximum likelihood reaches the layers through the base
    model.forward_kld(x).backward()
    assert model.flows[0].s.grad.abs().max() > 0


# Equivariance -------------------------------------------------------------------------


def _isometry(space, seed=0):
    """A random isometry of the space, as a map of points."""
    generator = torch.Generator().manual_seed(seed)
    if hasattr(space, "base_manifold"):
        factors = [space.base_manifold] * space.n_copies
    else:
        factors = getattr(space, "factors", None)
    if factors is not None:
        maps = [_isometry(factor, seed + i) for i, factor in enumerate(factors)]
        sizes = [math.prod(factor.shape) for factor in factors]

        def on_each(x):
            parts = x.flatten(1).split(sizes, dim=1)
            moved = [
                rows(move(part.reshape(-1, *factor.shape)))
                for move, part, factor in zip(maps, parts, factors, strict=True)
            ]
            return torch.cat(moved, dim=1).reshape(x.shape)

        return on_each
    size = space.shape[-1]
    turns = torch.randn(2, size, size, dtype=torch.float64, generator=generator)
    left, right = torch.linalg.qr(turns)[0]
    if len(space.shape) == 2:  # rotations: both sides, and the inverse
        left, right = _proper(left), _proper(right)
        return lambda x: left @ x.mT @ right
    if getattr(space, "name", "") == "R3":
        return lambda x: x @ left + right[0]
    return lambda x: x @ left


def _proper(matrix):
    columns = torch.ones(len(matrix), dtype=matrix.dtype)
    columns[0] = torch.linalg.det(matrix).sign()
    return matrix * columns


def _moved(law, move):
    """The same law, its mean or centres moved by an isometry."""
    space = law.space
    if isinstance(law, gf.Uniform):
        return law
    if isinstance(law, gf.WrappedNormal):
        return gf.WrappedNormal(space, move(law.mean[None])[0], law.scale)
    if isinstance(law, gf.KernelDensity):
        law = law.kernels
        return kernel_mixture.KernelMixture(
            space, move(law.centers), law.bandwidths, law.weights
        )
    parts = [_moved(component, move) for component in law.components]
    return gf.Mixture(space, parts, law.weights.tolist())


@pairs()
def test_isometries_carry_densities_along(kind, space):
    law, move = make(kind, space), _isometry(space)
    # the mean of a wrapped normal is a pole of its density, where rounding decides
    x = torch.cat([points(space, 10), _frame(space, torch.float64)[1:]])
    there = move(x)
    assert geometry.belongs(space, there, atol=1e-9).all()
    torch.testing.assert_close(
        geometry.dist(space, there[:4], there[4:8]),
        geometry.dist(space, x[:4], x[4:8]),
    )
    torch.testing.assert_close(
        _moved(law, move).log_prob(there), law.log_prob(x), atol=1e-9, rtol=1e-9
    )
