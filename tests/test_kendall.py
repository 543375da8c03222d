"""Kendall's shapes: what arrays say that rotations leave alone."""

import math

import geomstats.datasets.utils as geomstats_data
import numpy as np
import pytest
import torch
from conftest import assert_mean
from geomstats.geometry.pre_shape import PreShapeSpace
from scipy import integrate, special

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.testing import check_distribution, check_space

SIZES = [(3, 2), (5, 2), (4, 3), (6, 3)]
sizes = pytest.mark.parametrize("k, m", SIZES)
smallest = pytest.mark.parametrize("k, m", [(4, 2), (4, 3)])


def shapes(k, m, scale=None):
    space = PreShapeSpace(k, m)
    space.equip_with_group_action("rotations")
    space.equip_with_quotient()
    if scale is not None:
        space.quotient.metric = scale * space.quotient.metric
    return space.quotient


def uniform(space, n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return geometry.random_uniform(space, n, generator, dtype=dtype)


def rotations(n, m, seed=0):
    normal = np.random.default_rng(seed).normal(size=(n, m, m))
    q = torch.tensor(np.linalg.qr(normal)[0])
    return torch.cat([q[..., :-1], q[..., -1:] * torch.linalg.det(q)[:, None, None]], dim=-1)


def horizontal(space, x, length, seed=0):
    vector = torch.tensor(np.random.default_rng(seed).normal(size=x.shape))
    vector = geometry.to_tangent(space, vector, x)
    return length * vector / torch.linalg.matrix_norm(vector, keepdim=True)


def cluster(space, n, length=0.3):
    x = geometry.origin(space).expand(n, *space.shape)
    return geometry.exp(space, horizontal(space, x, length), x)


# Geometry -----------------------------------------------------------------------------


@sizes
def test_geodesics_and_metric_are_those_of_geomstats(k, m):
    space = shapes(k, m)
    x, y = uniform(space, 8), uniform(space, 8, seed=1)
    assert space.belongs(x.numpy(), atol=1e-12).all()
    v, w = horizontal(space, x, 0.4), horizontal(space, x, 0.7, seed=1)
    metric = space.metric
    pairs = {
        "exp": (geometry.exp(space, v, x), metric.exp(v.numpy(), x.numpy())),
        "log": (geometry.log(space, y, x), metric.log(y.numpy(), x.numpy())),
        "dist": (geometry.dist(space, y, x), metric.dist(y.numpy(), x.numpy())),
        "inner": (
            geometry.inner_product(space, v, w, x),
            metric.inner_product(v.numpy(), w.numpy(), x.numpy()),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=0, atol=1e-10, msg=name)


@sizes
def test_tangent_vectors_are_horizontal(k, m):
    space = shapes(k, m)
    bundle = space.metric._total_space.fiber_bundle
    x = uniform(space, 4)
    basis = geometry.tangent_basis(space, x)
    assert basis.shape[1] == geometry.dim(space) == m * (k - 1) - 1 - m * (m - 1) // 2
    for vectors in basis.unbind(1):
        assert bundle.is_horizontal(vectors.numpy(), x.numpy(), atol=1e-12).all()
    vector = torch.tensor(np.random.default_rng(0).normal(size=x.shape))
    tangent = bundle._total_space.to_tangent(vector.numpy(), x.numpy())
    expected = bundle.horizontal_projection(tangent, x.numpy())
    ours = geometry.to_tangent(space, vector, x).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@sizes
def test_what_is_said_of_shapes_ignores_rotations_and_not_reflections(k, m):
    space = shapes(k, m)
    x, y, turn = uniform(space, 6), uniform(space, 6, seed=1), rotations(6, m)
    scale = torch.tensor(0.6).double()
    image = geometry.embed(space, x)
    weight = torch.tensor(np.random.default_rng(0).normal(size=(3, image.shape[1])))

    def field(z):
        return (z @ weight.mT).cos() @ weight

    said = {
        "embed": lambda x: geometry.embed(space, x),
        "dist": lambda x: geometry.dist(space, x, y),
        "log": lambda x: geometry.log(space, x, y),
        "divergence": lambda x: gf.divergence(space, field, x),
        "laplacian": lambda x: gf.laplacian(space, lambda z: (z @ weight[0]).sin(), x),
        "normal law": lambda x: geometry.wrapped_normal_log_prob(space, x, y, scale),
        "kernel": lambda x: geometry.kernel_separation(space, x, y)[0],
    }
    for name, function in said.items():
        torch.testing.assert_close(
            function(x @ turn), function(x), rtol=1e-8, atol=1e-9, msg=name
        )
    moved = value_and_divergence(space, field, x @ turn)[0]
    torch.testing.assert_close(moved, value_and_divergence(space, field, x)[0] @ turn)
    mirror = x * torch.tensor([*[1.0] * (m - 1), -1.0])
    assert bool(((geometry.embed(space, mirror) - image).norm(dim=1) > 1e-3).all())


@pytest.mark.parametrize("k", [4, 6, 12])
def test_the_image_of_shapes_is_immersed_flat_ones_included(k):
    space, plane = shapes(k, 3), shapes(k, 2)
    flat = torch.nn.functional.pad(uniform(plane, 20), (0, 1))

    def smallest(space, x):
        basis = geometry.tangent_basis(space, x).unbind(1)
        push = torch.func.jvp
        pushed = [push(lambda x: geometry.embed(space, x), (x,), (e,))[1] for e in basis]
        return torch.linalg.svdvals(torch.stack(pushed, dim=1))[:, -1]

    for x in (uniform(space, 20), flat):
        assert float(smallest(space, x).min()) > 0.02
    # in the plane, an isometry
    assert float((smallest(plane, uniform(plane, 20)) - 1).abs().max()) < 1e-12


@smallest
@pytest.mark.parametrize("scale", [None, 3.0])
def test_the_laws_of_a_space_hold(k, m, scale):
    dtype = torch.float64 if scale is None else torch.float32
    check_space(shapes(k, m, scale), n=32, n_samples=2000, dtype=dtype)


@sizes
def test_derivatives_of_distance_and_logarithm_are_right_twice(k, m):
    space = shapes(k, m)
    x, y = uniform(space, 2), uniform(space, 2, seed=1)
    functions = [lambda x: geometry.dist(space, x, y), lambda x: geometry.log(space, x, y)]
    for function in functions:
        point = x.clone().requires_grad_()
        check = {"check_forward_ad": True, "fast_mode": True}
        assert torch.autograd.gradcheck(function, (point,), **check)
        assert torch.autograd.gradgradcheck(function, (point,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@smallest
def test_derivatives_are_finite_where_alignments_are_not_unique(k, m, dtype):
    space = shapes(k, m)
    x = geometry.origin(space)
    regular = geometry.projection(space, torch.eye(k, m, dtype=torch.float64))
    basis = geometry.tangent_basis(space, x)
    far = geometry.exp(space, math.pi / 2 * basis[0], x)  # where geodesics meet
    flat = geometry.projection(space, torch.cat([x[:, :-1], 0 * x[:, -1:]], dim=1) + 1e-3 * x)
    points = torch.stack([x, regular, far, flat, -x]).to(dtype).requires_grad_()
    base = torch.stack([x, regular, x, flat, x]).to(dtype)
    scale = torch.tensor(0.5, dtype=dtype)
    values = [
        geometry.dist(space, points, base),
        geometry.log(space, points, base).square().sum((1, 2)),
        geometry.kernel_separation(space, points, base)[0].exp().reciprocal().sum(1),
        geometry.wrapped_normal_log_prob(space, points, base, scale),
    ]
    for value in values:
        (slope,) = torch.autograd.grad(value.sum(), points)
        assert bool(value.isfinite().all() and slope.isfinite().all())


# Laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 4, 6])
def test_volume_of_planar_shapes_is_that_of_polar_coordinates(k):
    d = 2 * (k - 2)
    sphere = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    radial = integrate.quad(lambda r: math.sin(r) ** (d - 1) * math.cos(r), 0, math.pi / 2)
    assert geometry.log_volume(shapes(k, 2)) == pytest.approx(math.log(sphere * radial[0]))


@pytest.mark.parametrize("k", [4, 5, 8])
def test_volume_of_solid_shapes_is_that_of_orbits(k):
    n = k - 1

    def density(b, a, power):
        s = [math.cos(a), math.sin(a) * math.cos(b), math.sin(a) * math.sin(b)]
        pairs = [(s[0], s[1]), (s[0], s[2]), (s[1], s[2])]
        value = math.prod(abs(p * p - q * q) for p, q in pairs) * math.prod(s) ** (n - 3)
        return value * math.prod(p * p + q * q for p, q in pairs) ** power * math.sin(a)

    half = math.pi / 2
    with_orbits, without = (
        integrate.dblquad(density, 0, half, 0, half, args=(power,), epsabs=1e-7)[0]
        for power in (-0.5, 0.0)
    )
    sphere = 2 * math.pi ** (1.5 * n) / math.gamma(1.5 * n)
    volume = sphere / (8 * math.pi**2) * with_orbits / without
    assert geometry.log_volume(shapes(k, 3)) == pytest.approx(math.log(volume), abs=1e-4)


@pytest.mark.parametrize("k", [4, 7])
def test_uniform_solid_shapes_are_preshapes_weighted_by_orbits(k):
    space = shapes(k, 3)
    sphere = torch.randn(40_000, k, 3, dtype=torch.float64)
    sphere = geometry.projection(space, sphere)
    values = [torch.linalg.svdvals(x) for x in (uniform(space, 40_000), sphere)]
    i, j = torch.triu_indices(3, 3, 1)
    weight = (values[1][:, i].square() + values[1][:, j].square()).prod(-1).rsqrt()
    for power in (1, 2, 4):
        ours, theirs = (value**power for value in values)
        expected = (weight[:, None] * theirs).mean(0) / weight.mean()
        spread = (weight[:, None] * (theirs - expected)).std(0) / weight.mean()
        error = torch.hypot(spread, ours.std(0)) / 200
        assert bool(((ours.mean(0) - expected).abs() < 4 * error).all())


@smallest
def test_distributions_obey_their_laws(k, m):
    space = shapes(k, m, scale=2.0)
    x = cluster(space, 40)
    check_distribution(gf.Uniform(space, dtype=torch.float64), n=200)
    check_distribution(gf.WrappedNormal(space, x[0], 0.3), n=200)
    check_distribution(gf.WrappedNormal(space).to(torch.float64).fit(x), n=200)
    check_distribution(gf.KernelDensity(space, bandwidth=[0.1, 0.2]).fit(x), n=200)


@sizes
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_wide_laws_count_every_preimage(k, m, scale):
    # uniform over normal densities are bounded, unlike their inverses, which have the
    # poles of the cut locus
    space, generator = shapes(k, m), torch.Generator().manual_seed(0)
    x = uniform(space, 20)
    kernels = gf.KernelDensity(space, bandwidth=scale).fit(x)
    for law in (gf.WrappedNormal(space, x[0], scale), kernels):
        y = law.sample(10_000, generator=generator)
        assert_mean((-geometry.log_volume(space) - law.log_prob(y)).exp(), 1.0)


@pytest.mark.parametrize("k", [3, 5, 30])
def test_planar_kernels_integrate_to_their_normaliser(k):
    n, space = k - 2, shapes(k, 2)
    rate = np.array([1e-9, 1e-2, 0.5 * n, n + 0.9, n + 1.1, 40 * n, 1e6 * n])
    h = torch.tensor(np.sqrt(0.5 / rate))
    ours = geometry.log_kernel_normalizer(space, h) - geometry.log_volume(space)
    nodes, weights = special.roots_legendre(4000)
    for r, value in zip(rate, ours, strict=True):
        top = min(1, (40 + 4 * n) / r)
        u = top * (nodes + 1) / 2
        integral = n * (weights * u ** (n - 1) * np.exp(-r * u)).sum() * top / 2
        assert float(value) == pytest.approx(math.log(integral), abs=1e-8)
    single = geometry.log_kernel_normalizer(space, h.float())
    torch.testing.assert_close(
        single, (ours + geometry.log_volume(space)).float(), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("k, m, h", [(3, 2, 0.3), (6, 2, 2.0), (120, 2, 1e3), (5, 3, 0.2)])
def test_kernels_are_drawn_as_scored(k, m, h):
    space = shapes(k, m)
    centers = uniform(space, 1).expand(5000, k, m).contiguous()
    bandwidth = torch.full((5000,), h, dtype=torch.float64)
    drawn = geometry.random_kernel(space, centers, bandwidth, torch.Generator().manual_seed(0))
    squared, _ = geometry.kernel_separation(space, drawn, centers[:1])
    if m == 3:  # normal laws in disguise
        assert_mean(squared.flatten(), h**2 * geometry.dim(space))
        return
    n, rate = k - 2, 0.5 / h**2
    if k == 120:  # as good as uniform
        assert_mean(squared.flatten(), n / (n + 1))
    else:
        mean = special.gammainc(n + 1, rate) / special.gammainc(n, rate) * n / rate
        assert_mean(squared.flatten(), mean)


@sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_measure_small_distances(k, m, dtype):
    space = shapes(k, m, scale=2.0)
    x = uniform(space, 5)
    step = 1e-3 if dtype == torch.float32 else 1e-6
    near = geometry.exp(space, horizontal(space, x, step), x).to(dtype)
    x = x.to(dtype)
    squared = geometry.kernel_separation(space, near, x)[0].diagonal()
    torch.testing.assert_close(
        squared, torch.full_like(squared, 2 * step**2), rtol=1e-2, atol=0
    )
    assert torch.equal(geometry.kernel_separation(space, x, x)[0].diagonal(), 0 * squared)


# Flows and data -----------------------------------------------------------------------


@smallest
def test_a_moser_flow_of_shapes_is_invariant_and_normalised(k, m):
    space = shapes(k, m)
    x = cluster(space, 200, length=0.4)
    size = geometry.embed(space, x).shape[1:]
    field = gf.networks.FourierField(size, n_features=8, hidden=16, dtype=torch.float64)
    flow = gf.MoserFlow(space, field=field, normalizer_tolerance=1e-2)
    flow.fit(x, max_steps=20, learning_rate=3e-3, validation=None, progress=False)
    with torch.no_grad():
        value, turned = flow.log_prob(x), flow.log_prob(x @ rotations(len(x), m))
    torch.testing.assert_close(turned, value, rtol=1e-6, atol=1e-7)
    assert float(value.mean()) > 0.1 - geometry.log_volume(space)
    integral, error = gf.check_normalization(flow, n=2000)
    assert abs(integral - 1) <= 4 * math.hypot(error, flow.normalizer()[1])


@pytest.mark.parametrize("name, k", [("load_hands", 22), ("load_optical_nerves", 5)])
def test_real_landmarks_are_likelier_than_by_chance(name, k):
    space = shapes(k, 3)
    x = torch.tensor(np.asarray(getattr(geomstats_data, name)()[0]))
    x = geometry.projection(space, x.double())
    for law in (gf.KernelDensity(space), gf.WrappedNormal(space, dtype=torch.float64)):
        value = law.fit(x[::2]).log_prob(x[1::2])
        assert bool(value.isfinite().all())
        assert float(value.mean()) > 1 - geometry.log_volume(space)


@pytest.mark.parametrize("k, m", [(5, 1), (2, 2), (3, 3), (6, 4)])
def test_shapes_without_a_volume_of_ours_are_refused(k, m):
    space = shapes(k, m)
    with pytest.raises(UnsupportedError, match=f"{k} landmarks in R\\^{m}"):
        gf.Uniform(space)
    assert gf.available_distributions(space) == []


def test_landmarks_on_a_line_in_space_are_no_regular_shape():
    line = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None] * torch.ones(3)
    x = geometry.projection(shapes(5, 3), line)
    assert not bool(geometry.belongs(shapes(5, 3), x))
    assert bool(geometry.belongs(shapes(5, 2), geometry.projection(shapes(5, 2), line[:, :2])))


@smallest
def test_no_shapes_are_drawn_when_none_are_asked_for(k, m):
    assert gf.Uniform(shapes(k, m)).sample(0).shape == (0, k, m)
