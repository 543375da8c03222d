"""Hyperbolic space in all its models, positive reals, and the Klein bottle."""

import math

import mpmath
import numpy as np
import pytest
import torch
from conftest import assert_mean
from geomstats.geometry.hyperboloid import Hyperboloid
from geomstats.geometry.klein_bottle import KleinBottle
from geomstats.geometry.open_hemisphere import OpenHemisphere, OpenHemispheresProduct
from geomstats.geometry.poincare_ball import PoincareBall
from geomstats.geometry.poincare_half_space import PoincareHalfSpace
from geomstats.geometry.poincare_polydisk import PoincarePolydisk
from geomstats.geometry.positive_reals import PositiveReals
from geomstats.information_geometry.normal import UnivariateNormalDistributions

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import score
from geoflow_plugin.spaces.hyperbolic import hyperboloid
from geoflow_plugin.spaces.klein_bottle import EmbeddedKleinBottle, embed, unembed
from geoflow_plugin.testing import check_space


def _scaled(space, factor):
    space.metric = factor * space.metric
    return space


SPACES = {
    "H1": lambda: Hyperboloid(1),
    "H2": lambda: Hyperboloid(2),
    "H4": lambda: Hyperboloid(4),
    "H2 doubled": lambda: _scaled(Hyperboloid(2), 2.0),
    "ball": lambda: PoincareBall(3),
    "ball doubled": lambda: _scaled(PoincareBall(2), 2.0),
    "half-space": lambda: PoincareHalfSpace(3),
    "polydisk": lambda: PoincarePolydisk(2),
    "hemisphere": lambda: OpenHemisphere(2),
    "hemispheres": lambda: OpenHemispheresProduct(3),
    "normal laws": lambda: UnivariateNormalDistributions(),
    "normal laws tripled": lambda: _scaled(UnivariateNormalDistributions(), 3.0),
    "positive reals": lambda: PositiveReals(),
    "bottle in R7": lambda: EmbeddedKleinBottle(),
}
NATIVE = [name for name in SPACES if name != "bottle in R7"]
FOUR_MODELS = [Hyperboloid, PoincareBall, PoincareHalfSpace, OpenHemisphere]


def some(space, n, scale=0.7, seed=0, dtype=torch.float64):
    law = gf.WrappedNormal(space, scale=scale, dtype=dtype)
    return law.sample(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPACES)
def test_laws(name, dtype, device):
    check_space(SPACES[name](), n=32, n_samples=2000, dtype=dtype, device=device)


@pytest.mark.parametrize("name", NATIVE)
def test_agrees_with_geomstats(name):
    space = SPACES[name]()
    x, y = some(space, 8, seed=1), some(space, 8, seed=2)
    assert np.asarray(space.belongs(x.numpy(), atol=1e-9)).all()
    vector = geometry.log(space, y, x)
    for ours, theirs in [
        (vector, space.metric.log(y.numpy(), x.numpy())),
        (y, space.metric.exp(vector.numpy(), x.numpy())),
        (geometry.dist(space, x, y), space.metric.dist(x.numpy(), y.numpy())),
    ]:
        assert torch.allclose(ours, torch.as_tensor(np.asarray(theirs)), atol=1e-9)
    # the volume element against the determinant of geomstats' inner products
    basis = geometry.tangent_basis(space, x)
    rows = [basis[:, i].numpy() for i in range(space.dim)]
    gram = np.array(
        [[space.metric.inner_product(a, b, x.numpy()) for a in rows] for b in rows]
    ).reshape(space.dim, space.dim, len(x))
    half = 0.5 * np.linalg.slogdet(np.moveaxis(gram, 2, 0))[1]
    found = geometry.log_volume_element(space, x)
    assert torch.allclose(found, torch.as_tensor(half), atol=1e-10)


def test_densities_agree_between_the_models():
    images = some(Hyperboloid(3), 200, scale=1.5)
    means = some(Hyperboloid(3), 1, seed=3)
    values = []
    for make in FOUR_MODELS:
        space = make(3)
        found = geometry.model(space)
        x, mean = (images, means) if found is None else map(found.from_model, (images, means))
        assert bool(geometry.belongs(space, x, atol=1e-12).all())
        values.append(gf.WrappedNormal(space, mean[0], 0.8).log_prob(x))
        kernels = gf.KernelDensity(space, [0.3, 0.9]).fit(x[:50])
        values[-1] = torch.stack([values[-1], kernels.log_prob(x)])
        if found is not None:
            assert torch.allclose(found.to_model(x), images, rtol=1e-9)
    for value in values[1:]:
        assert torch.allclose(value, values[0], atol=1e-6)


@pytest.mark.parametrize(
    "name", ["H2", "H2 doubled", "ball doubled", "normal laws", "hemisphere"]
)
def test_laws_integrate_to_one_over_the_chart(name):
    space = SPACES[name]()
    side = torch.linspace(-9, 9, 250, dtype=torch.float64)
    x, log_det = geometry.chart_inverse(space, torch.cartesian_prod(side, side))
    for law in (
        gf.WrappedNormal(space, some(space, 1)[0], 0.6),
        gf.KernelDensity(space, [0.3, 0.5]).fit(some(space, 20, scale=0.5)),
    ):
        total = (law.log_prob(x) + log_det).exp().sum() * (side[1] - side[0]) ** 2
        assert float(total) == pytest.approx(1, abs=1e-6)
        # and what is drawn has the mean that the density says
        drawn = law.sample(4000, generator=torch.Generator().manual_seed(1))
        weight = (law.log_prob(x) + log_det).exp() * (side[1] - side[0]) ** 2
        origin = geometry.origin(space)
        expected = (weight * (-geometry.dist(space, x, origin)).exp()).sum()
        assert_mean((-geometry.dist(space, drawn, origin)).exp(), expected)


def test_distances_lose_no_more_digits_than_the_points():
    # the direction of a point at radius r is rounded by eps, hence its place by eps e^r
    space, generator = hyperboloid(3), torch.Generator().manual_seed(0)
    mpmath.mp.dps = 60
    for radius in (0.0, 1.0, 5.0, 12.0):
        for step in (1e-6, 1e-2, 3.0):
            base = radius * torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
            x = geometry.chart_inverse(space, base[None])[0]
            v = geometry.random_tangent_normal(space, x, generator)
            y = geometry.exp(space, step * v, x)
            a, b = ([mpmath.mpf(float(c)) for c in p[0, 1:]] for p in (x, y))
            lifts = [mpmath.sqrt(1 + sum(c * c for c in p)) for p in (a, b)]
            square = sum((c - d) ** 2 for c, d in zip(a, b, strict=True))
            square -= (lifts[0] - lifts[1]) ** 2
            exact = 2 * mpmath.asinh(mpmath.sqrt(square) / 2)
            error = abs(float(geometry.dist(space, x, y)) - float(exact))
            assert error < 10 * 2.2e-16 * math.exp(radius + step)


def test_coincident_points():
    space = hyperboloid(2)
    x = some(space, 5, scale=2.0).requires_grad_()
    squared, log_volume = geometry.kernel_separation(space, x, x.detach())
    assert bool((squared.diagonal() == 0).all() and (log_volume.diagonal() == 0).all())
    y = x.detach()
    assert bool((geometry.dist(space, x, y) == 0).all())
    assert bool((score(lambda p: geometry.dist(space, p, y), y) == 0).all())
    assert bool((geometry.log(space, y, y) == 0).all())
    # half the Hessian of the squared distance is the metric
    v = geometry.random_tangent_normal(space, y, torch.Generator().manual_seed(0))

    def energy(t):
        moved = geometry.exp(space, t * v, y)
        return geometry.wrapped_normal_log_prob(space, moved, y, torch.ones((), dtype=t.dtype))

    (hessian,) = torch.autograd.functional.hessian(
        lambda t: energy(t).sum(), (torch.zeros(5, 1, dtype=torch.float64),)
    )[0]
    # of -d^2/2 - log(sinh d / d), whose second derivative at zero is -(1 + 1/3)
    expected = -4 / 3 * geometry.inner_product(space, v, v, y)
    assert torch.allclose(hessian.reshape(5, 5).diagonal(), expected, rtol=1e-6)
    assert torch.allclose(hessian.reshape(5, 5), torch.diag(expected), rtol=1e-6)


@pytest.mark.parametrize("make", FOUR_MODELS)
def test_float32_follows_float64_far_out(make):
    space = make(2)
    x, y = some(space, 50, scale=2.0, seed=1), some(space, 50, seed=2)
    value = gf.WrappedNormal(space, y[0]).log_prob(x)
    single = gf.WrappedNormal(space, y[0].float()).log_prob(x.float())
    assert torch.allclose(single.double(), value, rtol=2e-3, atol=2e-3)


def test_projections_pull_inside_and_leave_the_inside_alone():
    ball, half_space, hemisphere = PoincareBall(2), PoincareHalfSpace(2), OpenHemisphere(2)
    for space, outside in [
        (ball, [[-2.0, 0.0], [0.0, 1.0]]),  # geomstats leaves (-2, 0) where it is
        (half_space, [[3.0, -1.0], [0.0, 0.0]]),
        (hemisphere, [[-1.0, 0.1, 0.0], [0.0, 1.0, 0.0]]),
        (PositiveReals(), [[-1.0], [0.0]]),
    ]:
        for dtype in (torch.float32, torch.float64):
            off = torch.tensor(outside, dtype=dtype)
            assert bool((geometry.constraint_residual(space, off) > 0.5).all())
            pulled = geometry.projection(space, off)
            assert bool((geometry.constraint_residual(space, pulled) < 1e-6).all())
            assert bool(geometry.log_volume_element(space, pulled).isfinite().all())
            assert bool(geometry.dist(space, pulled[:1], pulled[1:]).isfinite().all())
            x = some(space, 9, dtype=dtype)
            assert torch.allclose(geometry.projection(space, x), x, atol=1e-7, rtol=0)


def test_other_coordinates_are_refused():
    space = Hyperboloid(2)
    space.coords_type = "ball"
    with pytest.raises(TypeError, match="PoincareBall"):
        gf.WrappedNormal(space)


@pytest.mark.parametrize("make", [Hyperboloid, PoincareBall])
def test_stein_identity_of_a_decaying_field(make):
    space, law = make(2), gf.WrappedNormal(make(2), scale=0.8, dtype=torch.float64)

    def field(x):
        origin = geometry.origin(space).to(x).expand_as(x)
        decay = (-geometry.dist(space, x, origin).square()).exp().unsqueeze(-1)
        return decay * torch.stack([(3 * c + 1).sin() for c in x.unbind(-1)], -1)

    x = law.sample(20_000, generator=torch.Generator().manual_seed(0))
    flux = gf.divergence(space, field, x)
    tangent = geometry.to_tangent(space, field(x), x)
    assert_mean(flux + (score(law.log_prob, x) * tangent).sum(-1), 0.0)


@pytest.mark.parametrize("make", [Hyperboloid, PoincareBall])
def test_moser_flow(make):
    space = make(2)
    data = some(space, 200, scale=0.5)
    field = gf.networks.SourceField(space, n_sources=32, dtype=torch.float64)
    base = gf.WrappedNormal(space, dtype=torch.float64)  # wider than the data
    flow = gf.MoserFlow(space, base, field).fit(data, max_steps=20, progress=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = flow.sample(500, generator=generator)
        assert float(geometry.constraint_residual(space, x).max()) < 1e-12
        assert float((flow.log_prob(data) - flow.base.log_prob(data)).mean()) > 0.02
        x = flow.base.sample(10_000, generator=generator)
        assert_mean((flow.log_prob(x) - flow.base.log_prob(x)).exp(), 1.0)


# The Klein bottle ------------------------------------------------------------------------

GRID = (torch.cartesian_prod(torch.arange(160.0), torch.arange(160.0)).double() + 0.5) / 160


def test_bottle_agrees_with_geomstats():
    space, generator = KleinBottle(), torch.Generator().manual_seed(0)
    far = 4 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    x = geometry.projection(space, far)
    assert torch.allclose(x, torch.as_tensor(space.regularize(far.numpy())), atol=1e-14)
    assert torch.allclose(embed(x), embed(far), atol=1e-13)
    assert torch.allclose(unembed(embed(x)), x, atol=1e-13)
    y = x.roll(1, 0)
    vector = geometry.log(space, y, x)
    theirs = torch.as_tensor(space.metric.log(y.numpy(), x.numpy()))
    assert torch.allclose(vector.norm(dim=-1), theirs.norm(dim=-1), atol=1e-13)
    assert torch.allclose(embed(geometry.exp(space, vector, x)), embed(y), atol=1e-13)
    edge = torch.tensor([[0.0, 0.3], [1.0, 0.7], [0.2, 0.0], [0.2, 1.0]], dtype=torch.float64)
    assert torch.equal(geometry.projection(space, edge), edge)
    assert float(geometry.dist(space, edge[::2], edge[1::2]).max()) < 1e-15


@pytest.mark.parametrize("scale, factor", [(0.05, 1.0), (0.2, 3.0), (0.7, 1.0), (5.0, 3.0)])
def test_laws_on_the_bottle(scale, factor):
    space = _scaled(KleinBottle(), factor)
    places = torch.tensor([[0.98, 0.2], [0.4, 0.5], [0.5, 0.99]], dtype=torch.float64)
    for place in places:
        laws = [gf.WrappedNormal(space, place, scale)]
        if scale < 1:
            repeated = place.expand(2, 2)
            laws.append(gf.KernelDensity(space, scale).fit(repeated))
        for law in laws:
            density = law.log_prob(GRID).exp()
            # trapezoids on a closed surface: exact where the density is smooth
            assert float(factor * density.mean()) == pytest.approx(1, abs=1e-9)
            drawn = law.sample(3000, generator=torch.Generator().manual_seed(0))
            assert bool(geometry.belongs(space, drawn).all())
            expected = (factor * density[:, None] * embed(GRID)).mean(0)
            assert_mean(embed(drawn), expected)
            seam = torch.tensor([[0.0, 0.3], [1.0, 0.7], [0.2, 0.0], [0.2, 1.0]])
            value = law.log_prob(seam.double()).exp()
            assert torch.allclose(value[::2], value[1::2], rtol=1e-6)


def test_moser_flow_on_the_bottle():
    points = some(KleinBottle(), 200, scale=0.15)
    for space, show in ((KleinBottle(), lambda x: x), (EmbeddedKleinBottle(), embed)):
        field = gf.networks.FourierField((7,), dtype=torch.float64)
        data = show(points)
        flow = gf.MoserFlow(space, field=field).fit(data, max_steps=20, progress=False)
        with torch.no_grad():
            # Stokes, through the seam: exact up to the grid
            assert float(flow.ratio(show(GRID)).mean()) == pytest.approx(1, abs=1e-6)
            assert float(flow.log_prob(data).mean()) > 0.1
            density = flow.log_prob(show(GRID)).exp()
            assert float(density.mean()) == pytest.approx(1, abs=2e-3)
