"""Conditional densities p(x | c), in every family, and what they refuse."""

import copy
import math
import warnings

import normflows as nf
import numpy as np
import pytest
import torch
from conftest import make_space, rng_untouched, spaces
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hyperbolic import Hyperbolic
from geomstats.geometry.hypersphere import Hypersphere
from scipy.special import roots_legendre
from torch.utils.data import DataLoader, TensorDataset

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.distributions import rejection
from geoflow_plugin.distributions.kernel_mixture import KernelMixture
from geoflow_plugin.networks import (
    ConditionalSourceField,
    FourierField,
    FourierPotential,
    OneHiddenLayerPotential,
)
from geoflow_plugin.networks.charges import charge_sums

SPHERE = Hypersphere(2)
CONTEXTS = [[0.0, 1.0], [2.0, -1.0]]
F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(network, size=0.3, seed=0):
    """The network away from where it starts, where flows are their bases."""
    draws = generator(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "frequency" not in name and "centers" not in name:
                p.add_(size * torch.randn(p.shape, generator=draws, dtype=p.dtype))
    return network


def fourier(space, size=0.3, dtype=F64, context_dim=2):
    field = FourierField(
        space.shape, 8, 16, 1, 2.0, context_dim, generator=generator(), dtype=dtype
    )
    return shaken(field, size)


def sources(space, dtype=F64):
    background = fourier(space, 0.05, dtype)
    field = ConditionalSourceField(space, 2, 12, background, generator(), dtype)
    shaken(field, 0.03)
    with torch.no_grad():
        field.scaled_log_widths.fill_(-0.08)
        field.scaled_charge.fill_(0.08)
    return field


def moser(space, field=fourier, dtype=F64, **options):
    return gf.MoserFlow(space, normal(space, dtype), field(space, dtype=dtype), **options)


def normal(space, dtype):
    """A narrow base where there is no uniform one, for the quadrature to end somewhere."""
    return None if geometry.is_compact(space) else gf.WrappedNormal(space, None, 0.3, dtype)


def monge_ampere(space, dtype=F64, n_steps=2):
    if geometry.is_euclidean(space):
        potential = OneHiddenLayerPotential(
            space.dim, 16, generator=generator(), dtype=dtype, context_dim=2
        )
    else:
        potential = FourierPotential(
            space.shape, 8, 16, 1, 2.0, context_dim=2, generator=generator(), dtype=dtype
        )
    base = normal(space, dtype)
    potential = shaken(potential, 0.3 if base is None else 0.1 if space.name == "R2" else 0.05)
    return gf.MongeAmpereFlow(space, base, potential, n_steps=n_steps, step_size=0.25)


def wrapped_normal(space, dtype=F64):
    law = gf.ConditionalWrappedNormal(space, 2, dtype=dtype)
    return shaken(law, 0.1)


def kernels(space, dtype=F64):
    base = normal(space, dtype) or gf.Uniform(space, dtype)
    X = base.sample(40, generator=generator())
    c = X.flatten(1)[:, -2:] + 0.1 * torch.randn(40, 2, generator=generator(1), dtype=dtype)
    return gf.ConditionalKernelDensity(space, bandwidth=[0.3, 0.6]).fit(X, c)


FAMILIES = {
    "moser": moser,
    "moser, sources": lambda space, dtype=F64: moser(space, sources, dtype),
    "monge_ampere": monge_ampere,
    "wrapped_normal": wrapped_normal,
    "kernels": kernels,
}


def quadrature(space):
    """Points and weights of the volume, by rules that know nothing of ours."""
    if space.name == "S2":
        z, w = roots_legendre(24)
        a = 2 * np.pi * np.arange(48) / 48
        z, a, w = z[:, None], a[None], w[:, None] * np.ones(48) * 2 * np.pi / 48
        r = np.sqrt(1 - z**2)
        x = np.stack([r * np.cos(a), r * np.sin(a), z + 0 * a], -1).reshape(-1, 3)
    elif space.name == "T2":
        a = 2 * np.pi * np.arange(32) / 32
        a = np.stack(np.meshgrid(a, a, indexing="ij"), -1).reshape(-1, 2)
        x, w = np.stack([np.cos(a), np.sin(a)], -1), np.full(len(a), (2 * np.pi / 32) ** 2)
    elif space.name == "SO3":  # Euler angles z, y, z; the volume is 8 pi^2 under this metric
        a = 2 * np.pi * np.arange(16) / 16
        t, wt = roots_legendre(10)
        first, cosine, last = np.meshgrid(a, t, a, indexing="ij")
        w = (np.meshgrid(a, wt, a, indexing="ij")[1] * (2 * np.pi / 16) ** 2).ravel()
        ca, sa, cb, sb = np.cos(first), np.sin(first), cosine, np.sqrt(1 - cosine**2)
        cg, sg = np.cos(last), np.sin(last)
        x = np.stack(
            [
                *(ca * cb * cg - sa * sg, -ca * cb * sg - sa * cg, ca * sb),
                *(sa * cb * cg + ca * sg, -sa * cb * sg + ca * cg, sa * sb),
                *(-sb * cg, sb * sg, cb),
            ],
            -1,
        ).reshape(-1, 3, 3)
    else:  # a plane; the hyperbolic one by polar coordinates at its origin
        a, (t, wt) = 2 * np.pi * np.arange(48) / 48, roots_legendre(40)
        half = 4.5 if space.name == "R2" else 1.6
        r, wr = half * (t + 1), half * wt
        r, a, wr = r[:, None], a[None], wr[:, None] * np.ones(48) * 2 * np.pi / 48
        if space.name == "R2":
            x, w = np.stack([r * np.cos(a), r * np.sin(a)], -1), wr * r
        else:
            s = np.sinh(r)
            x = np.stack([np.cosh(r) + 0 * a, s * np.cos(a), s * np.sin(a)], -1)
            w = wr * s
        x = x.reshape(-1, x.shape[-1])
    return torch.tensor(x), torch.tensor(np.asarray(w)).reshape(-1)


def spaced(name):
    if name in ("R2", "H2"):
        space = Euclidean(2) if name == "R2" else Hyperbolic(2)
        space.name = name
        return space
    return make_space(name)


def given(context, n, dtype=F64):
    return torch.tensor([context], dtype=dtype).expand(n, -1)


# Densities --------------------------------------------------------------------------------


# the nodes of a normal base are no quasi-random ones: a few 1e-3 remain, and are said
@pytest.mark.filterwarnings("ignore:log_prob. the normalisers")
@pytest.mark.parametrize("name", ["S2", "T2", "SO3", "R2", "H2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_integral_is_one_for_every_context(family, name):
    if family == "moser, sources" and name != "S2":
        pytest.skip("the sphere is enough: what differs elsewhere is the base")
    space = spaced(name)
    law = FAMILIES[family](space)
    x, weight = quadrature(space)
    densities = []
    for context in CONTEXTS:
        with torch.no_grad():
            densities.append(law.log_prob(x, context=given(context, len(x))).exp())
        # wrapped normals have a pole at the cut locus, moser a kink and an estimate
        assert abs(float((weight * densities[-1]).sum()) - 1) < 1e-2
    assert float((weight * (densities[0] - densities[1]).abs()).sum()) > 3e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_single_precision(family):
    law = FAMILIES[family](SPHERE, dtype=torch.float32)
    exact = copy.deepcopy(law).double()
    x = gf.Uniform(SPHERE, F64).sample(20, generator=generator())
    c = torch.randn(20, 2, generator=generator(1), dtype=F64)
    x = x.float().double()
    c = c.float().double()
    x = x / x.norm(dim=1, keepdim=True)
    with torch.no_grad():
        single = law.log_prob(x.float(), context=c.float())
        assert single.dtype == torch.float32
        double = exact.log_prob(x, context=c)
    assert float((single - double).abs().max()) < 5e-3
    drawn, log_prob = law(5, context=c[:5].float(), generator=generator())
    assert drawn.dtype == log_prob.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_follow_the_density(family):
    law = FAMILIES[family](SPHERE)
    x, weight = quadrature(make_space("S2"))
    n = 3000
    context = torch.tensor(CONTEXTS, dtype=F64).repeat(n // 2, 1)
    drawn = rng_untouched(lambda: law.sample(n, context=context, generator=generator()))
    assert torch.equal(law.sample(n, context=context, generator=generator()), drawn)
    for i, c in enumerate(CONTEXTS):
        with torch.no_grad():
            density = law.log_prob(x, context=given(c, len(x))).exp() * weight
        own = drawn[i::2]
        for function in (lambda y: y, lambda y: y.square()):
            expected = (density[:, None] * function(x)).sum(0)
            error = function(own).std(0) / len(own) ** 0.5
            off = (function(own).mean(0) - expected).abs()
            assert bool((off < 4 * error + 5e-3).all())


def test_an_envelope_too_low_is_raised_without_a_trace(monkeypatch):
    # one proposal in 200, 200 times as likely: found late, when much was accepted
    monkeypatch.setattr(rejection, "_BATCH", 100)
    draws, shares = generator(), torch.zeros(2, dtype=F64)
    group = torch.arange(2000) % 2
    peak = torch.tensor([100.0, 10.0], dtype=F64)

    def draw(rows):
        return (torch.rand(len(rows), generator=draws) < 0.005).double()

    def log_ratio(y, rows):
        return torch.where(y == 1, peak[group[rows]], 0.5).log()  # densities, up to a factor

    for _ in range(4):
        low = torch.full((2,), math.log(0.5), dtype=F64)
        y, _ = rejection.conditional_rejection_sample(group, draw, log_ratio, low, draws)
        shares += torch.stack([y[group == g].mean() for g in (0, 1)]) / 4
    expected = 0.005 * peak / (0.005 * peak + 0.995 * 0.5)
    assert bool(((shares - expected).abs() < 4 * (0.25 / 4000) ** 0.5).all()), shares


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_know_of_each_other(family):
    law = FAMILIES[family](SPHERE)
    other = copy.deepcopy(law), copy.deepcopy(law)  # which remember nothing of each other
    x = gf.Uniform(SPHERE, F64).sample(12, generator=generator())
    c = torch.randn(4, 2, generator=generator(1), dtype=F64).repeat(3, 1)
    order = torch.randperm(12, generator=generator(2))
    with torch.no_grad():
        whole = law.log_prob(x, context=c)
        again = other[0].log_prob(x[order], context=c[order])
        alone = other[1].log_prob(x[:1], context=c[:1])
    torch.testing.assert_close(again, whole[order])
    torch.testing.assert_close(alone, whole[:1])


class Deaf(torch.nn.Module):
    """A network that is given a context, and ignores it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, context=None):
        return self.network(x)


def test_a_field_that_ignores_its_context_gives_the_density_without():
    plain = fourier(SPHERE, 0.2, context_dim=0)
    flow, deaf = gf.MoserFlow(SPHERE, field=plain), gf.MoserFlow(SPHERE, field=Deaf(plain))
    x = gf.Uniform(SPHERE, F64).sample(20, generator=generator())
    c = torch.randn(20, 1, generator=generator(1), dtype=F64)
    error = 4 * deaf._conditional_normalizer.tolerance
    with torch.no_grad():
        torch.testing.assert_close(
            deaf.log_prob(x, context=c), flow.log_prob(x), atol=error, rtol=0
        )
        assert torch.equal(deaf.log_prob(x), flow.log_prob(x))
    layer = gf.layers.MongeAmpere(SPHERE, FourierPotential((3,), 4, 8, dtype=F64))
    assert torch.equal(layer(x)[0], layer(x, context=c)[0])


def test_gradients_of_the_normalised_density():
    # against finite differences of the estimate itself, in weights and in the context
    flow = moser(SPHERE, lambda space, dtype: fourier(space, 0.5, dtype))
    x = gf.Uniform(SPHERE, F64).sample(6, generator=generator())
    c = torch.tensor(CONTEXTS * 3, dtype=F64).requires_grad_()
    flow.log_prob(x, context=c).sum().backward()
    weight, step = flow.field.out.weight, 1e-3
    for tensor, index in ((weight, (0, 3)), (c, (1, 0))):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[index] += sign * step
                values.append(float(flow.log_prob(x, context=c).sum()))
                tensor[index] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert abs(float(tensor.grad[index]) - slope) < 2e-2 * max(1.0, abs(slope))


def test_normalisers_are_remembered_and_bounded(monkeypatch):
    from geoflow_plugin.distributions import conditional_normalizer

    flow = moser(SPHERE)
    calls = []
    estimate = flow._conditional_normalizer.estimate
    monkeypatch.setattr(
        flow._conditional_normalizer, "estimate", lambda c: calls.append(len(c)) or estimate(c)
    )
    monkeypatch.setattr(conditional_normalizer, "_KEPT", 3)
    c = torch.arange(5, dtype=F64)[:, None] * c_step()
    first = flow.normalizer(c)[0]
    assert torch.equal(flow.normalizer(c[2:])[0], first[2:]) and calls == [5]
    flow.normalizer(c)
    assert calls == [5, 2] and len(flow._normalizer.cache["contexts"]) == 3
    with torch.no_grad():
        flow.field.out.weight.mul_(1.5)
    assert not torch.equal(flow.normalizer(c[2:])[0], first[2:])


def c_step():
    return torch.tensor([[0.3, -0.2]], dtype=F64)


def test_what_is_not_reached_is_said():
    flow = moser(SPHERE, lambda space, dtype: fourier(space, 1.0, dtype))
    flow.normalizer_tolerance = 1e-12
    flow._conditional_normalizer.estimate = lambda c: torch.tensor([[1.0, 1e-3, 0.0]])
    with pytest.warns(UserWarning, match="normalizer"):
        flow.normalizer(c_step())


def test_charges_of_each_point():
    options = {"dtype": F64, "generator": generator()}
    x = geometry.random_uniform(SPHERE, 7, **options)
    basis = geometry.tangent_basis(SPHERE, x).movedim(1, 0)
    centers = torch.randn(5, 3, **options).requires_grad_()
    widths = torch.rand(5, **options).requires_grad_()
    charges = torch.rand(7, 5, **options).requires_grad_()
    arguments = centers, widths, charges

    def sums(*arguments):
        return charge_sums(x, basis, *arguments)

    assert torch.autograd.gradcheck(sums, arguments)
    shared = charge_sums(x, basis, centers, widths, charges[:1].expand(7, 5).contiguous())
    torch.testing.assert_close(shared, charge_sums(x, basis, centers, widths, charges[0]))


def test_all_contexts_at_once_are_each_context_by_itself():
    flow = moser(SPHERE, sources)
    x, score = flow._normalizer.nodes(0)
    contexts = torch.tensor(CONTEXTS, dtype=F64)
    ours = flow._conditional_normalizer.ratios(contexts, x[:50], score[:50])
    with torch.no_grad():
        expected = [flow.ratio(x[:50], given(c, 50)) for c in CONTEXTS]
    torch.testing.assert_close(ours, torch.stack(expected))


# Bases ------------------------------------------------------------------------------------


def test_conditional_bases():
    x, weight = quadrature(make_space("S2"))
    base = kernels(SPHERE)
    flow = gf.MoserFlow(SPHERE, base=base, field=fourier(SPHERE, 0.05))
    pushed = gf.MongeAmpereFlow(
        SPHERE, wrapped_normal(SPHERE), monge_ampere(SPHERE).potential, n_steps=4
    )
    mixed = gf.Mixture(SPHERE, [gf.Uniform(SPHERE, F64), base])
    for law in (flow, pushed, mixed):
        assert law.conditional and law.context_dim == 2
        with torch.no_grad():
            density = law.log_prob(x, context=given(CONTEXTS[0], len(x))).exp()
        assert abs(float((weight * density).sum()) - 1) < 1e-2
        drawn, log_prob = law(400, context=given(CONTEXTS[0], 400), generator=generator())
        expected = (weight * density) @ x
        error = drawn.std(0) / 20
        assert bool(((drawn.mean(0) - expected).abs() < 4 * error).all())
    X = gf.Uniform(SPHERE, F64).sample(60, generator=generator())
    c = torch.randn(60, 2, generator=generator(1), dtype=F64)
    flow.fit(X, context=c, max_steps=2, progress=False)
    assert np.isfinite(flow.history_["validation"]).all()
    mixed.fit(X, context=c)


@pytest.mark.filterwarnings("ignore:log_prob. the normalisers")
def test_inside_normflows():
    space = spaced("R2")
    encoder = torch.nn.Linear(2, 4, dtype=F64)
    base = nf.distributions.base.ConditionalDiagGaussian(2, encoder)
    x = torch.randn(8, 2, generator=generator(), dtype=F64)
    c = torch.tensor(CONTEXTS * 4, dtype=F64)
    layer = monge_ampere(space).layer
    flow = gf.MongeAmpereFlow(space, base=base, potential=layer.potential)
    z, log_det = flow.layer.inverse(x, context=c)
    expected = base.log_prob(z, context=c) + log_det
    torch.testing.assert_close(flow.log_prob(x, context=c), expected)
    assert flow.sample(8, context=c).shape == (8, 2)
    for q0 in (moser(space), flow):
        model = nf.ConditionalNormalizingFlow(q0, [layer])
        z, log_det = layer.inverse(x, context=c)
        expected = q0.log_prob(z, context=c) + log_det
        torch.testing.assert_close(model.log_prob(x, context=c), expected)
        assert model.sample(8, context=c)[0].shape == (8, 2)
        model.zero_grad()
        loss = model.forward_kld(x, context=c)
        loss.backward()
        torch.testing.assert_close(loss.double(), -expected.mean(), rtol=1e-5, atol=1e-5)
        slopes = [p.grad for p in model.parameters() if p.grad is not None]
        assert slopes and all(bool(g.isfinite().all()) for g in slopes)
    # a Moser flow under a base of normflows that is conditional
    over = gf.MoserFlow(space, base=base, field=fourier(space, 0.05))
    assert over.log_prob(x, context=c).shape == (8,)
    assert over.sample(8, context=c).shape == (8, 2)


# Learning ---------------------------------------------------------------------------------


def turning(n, seed):
    """Von Mises-Fisher points whose mean turns with a covariate of its own units."""
    draws = generator(seed)
    angle = 2 * math.pi * torch.rand(n, generator=draws, dtype=F64)
    mean = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    h = torch.tensor([0.3], dtype=F64)
    x = geometry.random_kernel(SPHERE, mean, h.expand(n), draws)
    along = (x * mean).sum(1)  # what the density at a point depends on
    turned = torch.stack([(1 - along.square()).clamp_min(0).sqrt(), 0 * along, along], 1)
    pole = torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)
    truth = KernelMixture(SPHERE, pole, h, torch.ones_like(h)).log_prob(turned)
    return x, torch.stack([1000 + 50 * mean[:, 0], 1e-3 * mean[:, 1]], 1), -truth.mean()


def test_a_known_law_is_found():
    X, c, _ = turning(300, 0)
    test, given_test, truth = turning(100, 1)
    found = {"kernels": gf.ConditionalKernelDensity(SPHERE).fit(X, c)}
    assert found["kernels"].context_bandwidths.shape == (2,)
    options = {"context": c, "progress": False}
    found["normal"] = gf.ConditionalWrappedNormal(SPHERE, 2, dtype=F64)
    found["normal"].fit(X, max_steps=60, learning_rate=2e-2, **options)
    torch.manual_seed(0)
    found["monge_ampere"] = gf.MongeAmpereFlow(
        SPHERE, base=gf.Uniform(SPHERE, F64), context_dim=2, n_steps=2, step_size=0.5
    )
    found["monge_ampere"].fit(X, max_steps=25, learning_rate=3e-2, **options)
    field = ConditionalSourceField(SPHERE, 2, 100, generator=generator(), dtype=F64)
    found["moser"] = gf.MoserFlow(SPHERE, field=field).fit(X, max_steps=10, **options)
    plain = -gf.KernelDensity(SPHERE).fit(X).log_prob(test).mean()
    for name, law in found.items():
        with torch.no_grad():
            nll = -law.log_prob(test, context=given_test).mean()
        assert truth - 0.1 < nll < plain - 0.3, (name, nll, plain, truth)


@pytest.mark.parametrize("family", ["moser", "monge_ampere"])
def test_resume_bit_for_bit(family, tmp_path):
    X, c, _ = turning(60, 0)

    def fit(steps, **options):
        torch.manual_seed(1)
        if family == "moser":
            background = fourier(SPHERE, 0.05)
            field = ConditionalSourceField(SPHERE, 2, 16, background, generator(), F64)
            flow = gf.MoserFlow(SPHERE, field=field)
        else:
            flow = monge_ampere(SPHERE, n_steps=1)

        def stop(step, metrics):
            if step >= steps:
                raise KeyboardInterrupt

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options |= {"max_steps": 6, "progress": False, "batch_size": 16}
            return flow.fit(X, context=c, callback=stop, **options)

    whole = fit(99).state_dict()
    path = tmp_path / "fit.pt"
    fit(2, checkpoint=path)
    resumed = fit(99, checkpoint=path, resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_streams_of_points_and_contexts():
    X, c, _ = turning(64, 0)
    loader = DataLoader(TensorDataset(X, c), batch_size=16)
    field = ConditionalSourceField(SPHERE, 2, 16, None, generator(), F64)
    flow = gf.MoserFlow(SPHERE, field=field)
    flow.fit(loader, validation=(X[:8], c[:8]), max_steps=3, progress=False)
    assert np.isfinite(flow.history_["validation"]).all()
    with torch.inference_mode():
        inferred = flow.log_prob(X, context=c)
    assert torch.equal(inferred, flow.log_prob(X, context=c).detach())


def test_units_of_the_context_are_taken_once():
    X, c, _ = turning(60, 0)
    flow = monge_ampere(SPHERE)
    flow.fit(X, context=c, max_steps=1, progress=False)
    units = flow.potential.standardize
    assert float((units(c).mean(0)).abs().max()) < 0.3
    before = units.mean.clone()
    flow.fit(X, context=2 * c, max_steps=1, progress=False)
    assert torch.equal(units.mean, before)


# What is refused --------------------------------------------------------------------------

_X = gf.Uniform(SPHERE, F64).sample(4, generator=torch.Generator().manual_seed(0))
_C = torch.zeros(4, 2, dtype=F64)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda law: law.log_prob(_X), TypeError, r"context: .*needs one, of shape \(4, 2\)"),
        (lambda law: law.sample(4), TypeError, "context: .*needs one"),
        (lambda law: law.log_prob(_X, context=_C[:3]), ValueError, "row for each point"),
        (lambda law: law.log_prob(_X, context=_C[:, :1]), ValueError, "expected 2 columns"),
        (lambda law: law.log_prob(_X, context=_C / 0), ValueError, "finite"),
        (lambda law: law.sample(3, context=_C), ValueError, r"expected shape \(3, k\)"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_bad_contexts_are_refused(family, make, error, match):
    with pytest.raises(error, match=match):
        make(FAMILIES[family](SPHERE))


def test_what_to_write_instead():
    for flow in (gf.MoserFlow(SPHERE), gf.MongeAmpereFlow(SPHERE)):
        name = type(flow).__name__
        instead = rf"takes none; make {name}\(space, context_dim=2\)"
        with pytest.raises(TypeError, match=instead):
            flow.fit(_X, context=_C, progress=False)
        conditional = type(flow)(SPHERE, context_dim=2)
        with pytest.raises(TypeError, match="needs one"):
            conditional.fit(_X, progress=False)
        with pytest.raises(ValueError, match="context_dim"):
            type(flow)(SPHERE, context_dim=-1)
    with pytest.raises(ValueError, match="context_dim: is for the default field"):
        gf.MoserFlow(SPHERE, field=fourier(SPHERE), context_dim=2)
    with pytest.raises(ValueError, match="context_dim: is for the default potential"):
        gf.MongeAmpereFlow(SPHERE, potential=FourierPotential((3,)), context_dim=2)
    with pytest.raises(TypeError, match="fit_target: this MongeAmpereFlow is conditional"):
        monge_ampere(SPHERE).fit_target(lambda x: x[:, 0], progress=False)
    with pytest.raises(ValueError, match="context: this network takes none"):
        FourierField((3,), dtype=F64)(_X, _C)
    with pytest.raises(ValueError, match="not fitted yet"):
        gf.ConditionalKernelDensity(SPHERE).log_prob(_X.float(), context=_C.float())


def test_a_law_at_one_context():
    law = gf.AtContext(kernels(SPHERE), CONTEXTS[0])
    with torch.no_grad():
        x, log_prob = law(50, generator=generator())
        expected = law.distribution.log_prob(x, context=given(CONTEXTS[0], 50))
    torch.testing.assert_close(log_prob, expected)
    integral, error = gf.check_normalization(law, 2000, generator=generator())
    assert abs(integral - 1) < 4 * error + 1e-6
    for bad in ([0.0], [[0.0, 1.0]] * 2, [math.nan, 0.0]):
        with pytest.raises(ValueError, match="context"):
            gf.AtContext(law.distribution, bad)
    with pytest.raises(TypeError, match="expected a conditional one"):
        gf.AtContext(gf.Uniform(SPHERE), CONTEXTS[0])


def test_the_map_at_each_context_carries_the_base_to_the_density():
    flow = moser(SPHERE, lambda space, dtype: fourier(space, size=0.02, dtype=dtype))
    layer = flow.transport(rtol=1e-9, atol=1e-10)
    context = torch.tensor([CONTEXTS[k % len(CONTEXTS)] for k in range(12)], dtype=F64)
    with torch.no_grad():
        z = flow.base.sample(12, generator=generator())
        assert float(flow.ratio(z, context).min()) > flow.floor
        x, log_det = layer(z, context)
        expected = flow.log_prob(x, context=context)
        again, back = layer.inverse(x, context)
    torch.testing.assert_close(flow.base.log_prob(z) - log_det, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-6)
    torch.testing.assert_close(back, -log_det, rtol=0, atol=1e-6)
    assert float((x - layer(z, context.flip(0))[0]).norm()) > 1e-3
    with pytest.raises((TypeError, ValueError), match="context"):
        layer(z)


@spaces("S2")
def test_equip(space):
    space.equip_with_distribution("moser", context_dim=2)
    assert space.distribution.context_dim == 2
