"""The torch geometry against geomstats itself, and against integrals done by hand."""

import math
import textwrap

import geomstats.backend as gs
import numpy as np
import pytest
import torch
from conftest import (
    COMPACT,
    assert_mean,
    make_space,
    points,
    rng_untouched,
    rows,
    run_under,
    spaces,
    vectors,
)
from geomstats.geometry.complex_poincare_disk import ComplexPoincareDisk
from geomstats.geometry.hpd_matrices import HPDMatrices
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from numpy.polynomial.legendre import leggauss

import geoflow_plugin as gf
from geoflow_plugin import geometry

PI = math.pi
compact_spaces = spaces(*COMPACT)


def as_numpy(*tensors):
    return [t.detach().cpu().numpy() for t in tensors]


def assert_like(actual, expected, atol=1e-9):
    """A tensor of ours equals an array of geomstats', up to its batch quirks."""
    expected = torch.tensor(np.asarray(expected)).to(actual)
    torch.testing.assert_close(actual, expected.reshape(actual.shape), atol=atol, rtol=atol)


# The flat tangent geometry ------------------------------------------------------------


@spaces()
@pytest.mark.parametrize("push", [0.0, 1e-9, 1e-3, 0.5])
def test_belongs_as_geomstats_says(space, push, device):
    x = points(space, 20, device=device)
    x = x + push * torch.randn(x.shape, dtype=x.dtype).to(device)
    ours = geometry.belongs(space, x)
    assert ours.dtype == torch.bool and ours.shape == (20,)
    theirs = np.broadcast_to(space.belongs(x.cpu().numpy(), atol=1e-6), (20,))
    assert ours.tolist() == theirs.tolist()
    assert bool(ours.all()) == (push < 1e-6 or space.name == "R3")


@pytest.mark.parametrize("n", [2, 3, 4])
def test_reflections_are_no_rotations(n):
    space = SpecialOrthogonal(n)
    x = points(space, 5)
    x[:, 0] *= -1
    assert not geometry.belongs(space, x).any()
    assert geometry.belongs(space, geometry.projection(space, x)).all()


@spaces(without=["R3"])
def test_projection_is_the_nearest_point(space, device):
    x = points(space, 50, device=device)
    near = x + 0.1 * torch.randn(x.shape, dtype=x.dtype).to(device)
    foot = geometry.projection(space, near)
    assert geometry.belongs(space, foot, atol=1e-12).all()
    # first-order condition: what was removed is normal, and no step along the
    # space comes nearer
    removed = near - foot
    tangential = geometry.to_tangent(space, removed, foot)
    torch.testing.assert_close(tangential, 0 * tangential, atol=1e-12, rtol=0)
    for length in (0.01, 0.3):
        other = geometry.exp(space, vectors(space, foot, length), foot)
        assert (rows(near - other).norm(dim=1) > rows(removed).norm(dim=1)).all()


@spaces()
def test_derivative_of_the_projection_is_to_tangent(space):
    x = points(space, 5)
    v = torch.randn(x.shape, dtype=x.dtype)
    expected = geometry.to_tangent(space, v, x)
    _, forward = torch.func.jvp(lambda y: geometry.projection(space, y), (x,), (v,))
    torch.testing.assert_close(forward, expected)
    _, pullback = torch.func.vjp(lambda y: geometry.projection(space, y), x)
    torch.testing.assert_close(pullback(v)[0], expected)


@spaces()
def test_to_tangent_is_the_orthogonal_projector(space, device):
    x = points(space, 4, device=device)
    size = math.prod(space.shape)
    unit = torch.eye(size, dtype=x.dtype, device=device).reshape(size, *space.shape)
    columns = [geometry.to_tangent(space, e.expand_as(x), x) for e in unit]
    projector = torch.stack([rows(c) for c in columns], dim=-1)
    torch.testing.assert_close(projector, projector.mT, atol=1e-12, rtol=0)
    torch.testing.assert_close(projector @ projector, projector, atol=1e-12, rtol=0)
    rank = projector.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(rank, torch.full_like(rank, space.dim))
    for column, e in zip(columns, unit, strict=True):
        ambient = e.expand_as(x).cpu().numpy()
        assert_like(column, space.to_tangent(ambient, x.cpu().numpy()))


@spaces()
def test_tangent_basis_is_orthonormal_and_tangent(space, device):
    x = points(space, 6, device=device)
    basis = geometry.tangent_basis(space, x)
    assert basis.shape == (6, space.dim, *space.shape)
    flat = basis.flatten(2)
    eye = torch.eye(space.dim, dtype=x.dtype, device=device).expand(6, -1, -1)
    torch.testing.assert_close(flat @ flat.mT, eye, atol=1e-12, rtol=0)
    for e in basis.unbind(1):
        torch.testing.assert_close(geometry.to_tangent(space, e, x), e, atol=1e-12, rtol=0)
        assert np.all(space.is_tangent(*as_numpy(e, x), atol=1e-9))


@spaces("S1", "S2", "S4")
def test_tangent_basis_at_both_poles(space):
    x = torch.zeros(2, space.dim + 1, dtype=torch.float64)
    x[0, 0], x[1, 0] = 1.0, -1.0
    flat = geometry.tangent_basis(space, x)
    eye = torch.eye(space.dim, dtype=x.dtype).expand(2, -1, -1)
    torch.testing.assert_close(flat @ flat.mT, eye)
    assert (flat @ x[..., None]).abs().max() < 1e-15


@spaces()
def test_origin_belongs(space):
    origin = geometry.origin(space)
    assert origin.shape == tuple(space.shape)
    assert geometry.belongs(space, origin[None]).all()


# The metric ---------------------------------------------------------------------------


@spaces()
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_inner_product_is_the_metrics(space, factor, device):
    if factor != 1.0:
        space.metric = factor * space.metric
    x = points(space, 10, device=device)
    a, b = vectors(space, x), vectors(space, x).flip(0)
    b = geometry.to_tangent(space, b, x)
    ours = geometry.inner_product(space, a, b, x)
    assert_like(ours, space.metric.inner_product(*as_numpy(a, b, x)), 1e-12)


@spaces()
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_log_volume_element_is_half_the_log_determinant_of_gram(space, factor):
    if factor != 1.0:
        space.metric = factor * space.metric
    x = points(space, 3)
    basis = geometry.tangent_basis(space, x)
    gram = np.empty((3, space.dim, space.dim))
    for i in range(space.dim):
        for j in range(space.dim):
            arrays = as_numpy(basis[:, i], basis[:, j], x)
            gram[:, i, j] = space.metric.inner_product(*arrays)
    expected = 0.5 * np.linalg.slogdet(gram)[1]
    assert_like(geometry.log_volume_element(space, x), expected, 1e-12)


def test_log_volume_element_without_a_metric_is_zero():
    space = Hypersphere(2, equip=False)
    x = points(space, 3)
    assert torch.equal(geometry.log_volume_element(space, x), x.new_zeros(3))


def potential(x):
    """A smooth function on any space."""
    flat = x.flatten(1)
    weight = torch.linspace(-1, 1, flat.shape[1], dtype=x.dtype, device=x.device)
    return (flat @ weight).sin() + flat[:, 0] * flat[:, -1]


@spaces()
def test_sharp_represents_the_differential(space, device):
    x = points(space, 10, device=device)
    v = vectors(space, x)
    _, derivative = torch.func.jvp(potential, (x,), (v,))
    (flat,) = torch.autograd.grad(potential(x.requires_grad_()).sum(), x)
    flat = geometry.to_tangent(space, flat, x)
    grad = geometry.sharp(space, flat, x)
    theirs = space.metric.inner_product(*as_numpy(grad, v, x))
    assert_like(derivative, theirs, 1e-11)


# Moving on the space ------------------------------------------------------------------


@spaces()
@pytest.mark.parametrize("length", [1e-8, 1e-3, 0.7, 2.0])
def test_exp_log_and_dist_are_geomstats(space, length, device):
    x = points(space, 8, device=device)
    v = vectors(space, x, length)
    y = geometry.exp(space, v, x)
    arrays = as_numpy(v, x)
    assert_like(y, space.metric.exp(*arrays), 1e-9)
    # geomstats' own logarithm keeps about half of the digits of nearby points
    log = geometry.log(space, y, x)
    assert_like(log, space.metric.log(*as_numpy(y, x)), 1e-6)
    torch.testing.assert_close(log, v, atol=1e-12, rtol=1e-7)
    dist = geometry.dist(space, x, y)
    assert_like(dist, space.metric.dist(*as_numpy(x, y)), 1e-6)
    torch.testing.assert_close(dist, torch.full_like(dist, length), rtol=1e-7, atol=0)


@spaces()
def test_exp_undoes_log(space, device):
    x = points(space, 50, device=device)
    y = points(space, 50, device=device)
    v = geometry.log(space, y, x)
    torch.testing.assert_close(geometry.to_tangent(space, v, x), v, atol=1e-10, rtol=1e-9)
    assert geometry.belongs(space, geometry.exp(space, v, x), atol=1e-9).all()
    torch.testing.assert_close(geometry.exp(space, v, x), y, atol=1e-8, rtol=0)
    torch.testing.assert_close(
        geometry.dist(space, x, y), geometry.dist(space, y, x), atol=1e-9, rtol=1e-9
    )


@spaces()
def test_retraction_agrees_with_exp_to_first_order(space, device):
    x = points(space, 20, device=device)
    v = vectors(space, x, 1.0)
    # at least quadratic: halving the step quarters the error
    errors = []
    for step in (2e-3, 1e-3):
        point = geometry.retraction(space, step * v, x)
        assert geometry.belongs(space, point, atol=1e-12).all()
        off = rows(point - geometry.exp(space, step * v, x))
        errors.append(float(off.norm(dim=1).max()))
        assert errors[-1] < step**2
    assert errors[1] < errors[0] / 3.9 or errors[0] < 1e-14


@spaces()
def test_derivative_of_exp_at_zero_is_the_identity(space):
    x = points(space, 5)
    v = vectors(space, x)
    zero = torch.zeros_like(v)
    for move in (geometry.exp, geometry.retraction):
        _, change = torch.func.jvp(lambda u, f=move: f(space, u, x), (zero,), (v,))
        torch.testing.assert_close(change, v, atol=1e-12, rtol=1e-12)


@spaces()
def test_derivative_of_log_at_identical_points_is_the_identity(space):
    x = points(space, 5)
    v = vectors(space, x)
    for forward in (True, False):
        if forward:
            _, change = torch.func.jvp(lambda y: geometry.log(space, y, x), (x,), (v,))
        else:
            _, pullback = torch.func.vjp(lambda y: geometry.log(space, y, x), x)
            change = geometry.to_tangent(space, pullback(v)[0], x)
        torch.testing.assert_close(change, v, atol=1e-9, rtol=1e-9)


@spaces()
def test_dist_has_a_subgradient_at_identical_points(space):
    x = points(space, 5)
    y = x.clone().requires_grad_()
    dist = geometry.dist(space, x, y)
    assert (dist < 1e-12).all()
    (gradient,) = torch.autograd.grad(dist.sum(), y, retain_graph=True)
    norm = rows(geometry.to_tangent(space, gradient, x)).norm(dim=1)
    largest = geometry.log_volume_element(space, x).exp().clamp_min(1)
    assert (norm <= largest + 1e-9).all()  # the unit ball of covectors, or less
    (gradient,) = torch.autograd.grad(dist.square().sum(), y)
    torch.testing.assert_close(gradient, torch.zeros_like(y), atol=1e-12, rtol=0)


def _half_turns(n):
    """Rotations by half a turn in one plane, and in as many planes as there are."""
    one = torch.eye(n, dtype=torch.float64)
    one[0, 0] = one[1, 1] = -1
    every = torch.eye(n, dtype=torch.float64)
    every[: 2 * (n // 2), : 2 * (n // 2)] *= -1
    return torch.stack([one, every])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_half_turns(n, dtype):
    space = SpecialOrthogonal(n)
    turns = _half_turns(n).to(dtype)
    frame = points(space, 2, dtype)
    y = (frame @ turns @ frame.mT).requires_grad_()
    identity = torch.eye(n, dtype=dtype).expand_as(y)
    log = geometry.log(space, y, identity)
    planes = torch.tensor([1, n // 2], dtype=dtype)
    atol = 1e-5 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(
        geometry.dist(space, identity, y), PI * planes.sqrt(), atol=atol, rtol=0
    )
    back = geometry.exp(space, log, identity)
    torch.testing.assert_close(back, y.detach().clone(), atol=atol, rtol=0)
    (gradient,) = torch.autograd.grad(log.sum(), y)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@spaces("S1", "S2", "S4", "T2")
def test_antipodes(space, dtype):
    x = points(space, 4, dtype)
    y = (-x).requires_grad_()
    tangent_vec = geometry.log(space, y, x)
    assert tangent_vec.isfinite().all()
    length = PI * math.sqrt(space.dim if space.name == "T2" else 1)
    dist = geometry.dist(space, x, y)
    (gradient,) = torch.autograd.grad(dist.sum() + tangent_vec.sum(), y)
    assert gradient.isfinite().all()
    # the logarithm is not unique, its length is
    torch.testing.assert_close(dist, torch.full_like(dist, length), atol=1e-3, rtol=0)


@spaces()
def test_functional_transforms(space):
    x, y = points(space, 4), points(space, 4).flip(0)
    v = vectors(space, x, 0.5)
    pairs = {
        "exp": (v, x),
        "log": (y, x),
        "to_tangent": (y, x),
        "retraction": (v, x),
        "dist": (y, x),
        "sharp": (v, x),
    }
    for name, arguments in pairs.items():
        function = getattr(geometry, name)
        batched = function(space, *arguments)
        mapped = torch.func.vmap(lambda a, b, f=function: f(space, a, b))(*arguments)
        torch.testing.assert_close(mapped, batched, msg=lambda m, n=name: f"{n}: {m}")
    mapped = torch.func.vmap(lambda b: geometry.tangent_basis(space, b))(x)
    torch.testing.assert_close(mapped, geometry.tangent_basis(space, x))

    # forward-mode derivative of exp along its own direction, by central differences
    step = 1e-5
    _, change = torch.func.jvp(lambda u: geometry.exp(space, u, x), (v,), (v,))
    ends = [geometry.exp(space, (1 + s) * v, x) for s in (step, -step)]
    difference = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(change, difference, atol=1e-8, rtol=1e-7)


# The uniform measure ------------------------------------------------------------------

_LOG_VOLUME = {
    "S1": math.log(2 * PI),
    "S2": math.log(4 * PI),
    "S4": math.log(8 * PI**2 / 3),
    "T2": 2 * math.log(2 * PI),
    "T3": 3 * math.log(2 * PI),
    "S1xS1": 2 * math.log(2 * PI),
    "SO2": math.log(2 * PI),
    "SO3": math.log(8 * PI**2),
    "SO4": math.log(16 * PI**4),
    "S2xSO3": math.log(4 * PI * 8 * PI**2),
    "T2 scales 1, 2": math.log(4 * PI**2 * math.sqrt(2)),
    "S2 doubled": math.log(8 * PI),
}


@compact_spaces
def test_log_volume(space):
    expected = _LOG_VOLUME[space.name]
    assert geometry.log_volume(space) == pytest.approx(expected, abs=1e-12)
    space.metric = 5.0 * space.metric
    scaled = expected + 0.5 * space.dim * math.log(5.0)
    assert geometry.log_volume(space) == pytest.approx(scaled, abs=1e-12)


def _ball_volume(space, center, radius, n):
    """Volume of a geodesic ball, by integrating the volume change of exp: a sample."""
    basis = geometry.tangent_basis(space, center[None])[0].flatten(1)
    gram = [
        [
            float(space.metric.inner_product(*as_numpy(a, b, center)))
            for b in basis.reshape(-1, *space.shape)
        ]
        for a in basis.reshape(-1, *space.shape)
    ]
    frame = torch.linalg.cholesky(torch.tensor(gram, dtype=torch.float64))
    frame = torch.linalg.solve_triangular(frame, basis, upper=False)
    direction = torch.nn.functional.normalize(torch.randn(n, space.dim).double(), dim=1)
    weight = radius * torch.rand(n, 1).double() ** (1 / space.dim) * direction
    center = center.expand(n, *space.shape)

    def point(w):
        return geometry.exp(space, (w @ frame).reshape(center.shape), center)

    eye = torch.eye(space.dim, dtype=torch.float64)
    columns = [torch.func.jvp(point, (weight,), (e.expand_as(weight),))[1] for e in eye]
    foot = point(weight)
    pairs = [
        torch.stack([geometry.inner_product(space, a, b, foot) for b in columns], -1)
        for a in columns
    ]
    change = torch.stack(pairs, -1).det().clamp_min(0).sqrt()
    half = space.dim / 2
    return change * radius**space.dim * PI**half / math.gamma(half + 1)


@compact_spaces
def test_volume_and_uniform_measure_agree_with_the_metric(space):
    # The share of uniform points in a geodesic ball is its volume over the total. The
    # ball lies within the injectivity radius, so exp parametrises it.
    radius = 2.5
    center = points(space, 2)[0]
    x = geometry.random_uniform(space, 60_000, dtype=torch.float64)
    inside = geometry.dist(space, center.expand_as(x), x) < radius
    share = inside.double().mean()
    ball = _ball_volume(space, center, radius, 20_000)
    expected = ball.mean() / math.exp(geometry.log_volume(space))
    error = math.hypot(
        float(inside.double().std()) / math.sqrt(len(x)),
        float(ball.std()) / math.sqrt(len(ball)) / math.exp(_LOG_VOLUME[space.name]),
    )
    assert abs(float(share - expected)) < 4 * error + 1e-9


def _second_moment(space):
    """E[x x^T] of the uniform law, for the flattened array."""
    if isinstance(space, NFoldManifold):
        factors = [space.base_manifold] * space.n_copies
    else:
        factors = getattr(space, "factors", None)
    if factors is not None:
        return torch.block_diag(*map(_second_moment, factors))
    if isinstance(space, Hypersphere):
        return torch.eye(space.dim + 1, dtype=torch.float64) / (space.dim + 1)
    if space.n == 2:  # [[c, -s], [s, c]]: two entries repeat
        rotation = [[1, 0, 0, 1], [0, 1, -1, 0], [0, -1, 1, 0], [1, 0, 0, 1]]
        return torch.tensor(rotation, dtype=torch.float64) / 2
    return torch.eye(space.n**2, dtype=torch.float64) / space.n


def _outer(x):
    return rows(x)[:, :, None] * rows(x)[:, None, :]


@compact_spaces
def test_random_uniform_has_the_moments_of_haar(space, device):
    generator = torch.Generator(device).manual_seed(1)
    x = geometry.random_uniform(space, 40_000, generator, dtype=torch.float64)
    assert x.device.type == device.type
    x = x.cpu()
    assert geometry.belongs(space, x, atol=1e-12).all()
    assert space.belongs(x[:50].numpy()).all()
    assert_mean(rows(x), torch.zeros(math.prod(space.shape)))
    assert_mean(_outer(x), _second_moment(space))
    # third moments vanish on all of these but SO(3), whose determinant is one
    if space.name not in ("SO3", "S2xSO3"):
        flat = rows(x)
        third = flat[:, :1] * flat[:, 1:2] * flat
        assert_mean(third, torch.zeros(flat.shape[1]))


@pytest.mark.parametrize(
    "n, moments",
    [
        # dimensions of the invariants of the tensor powers of R^n; on SO(2) and SO(4)
        # the volume form adds to those of O(n)
        (2, {1: 0, 2: 2, 3: 0, 4: 6}),
        (3, {1: 0, 2: 1, 3: 1, 4: 3}),
        (4, {1: 0, 2: 1, 3: 0, 4: 4}),
        (5, {1: 0, 2: 1, 3: 0, 4: 3}),
    ],
)
@pytest.mark.parametrize("quasi", [False, True])
def test_moments_of_the_trace_count_invariants(n, moments, quasi):
    space = SpecialOrthogonal(n)
    if quasi:
        x = torch.cat([geometry.quasi_uniform(space, 2**12, seed) for seed in range(8)])
    else:
        x = geometry.random_uniform(space, 2**15, dtype=torch.float64)
    trace = x.diagonal(dim1=-2, dim2=-1).sum(-1)
    for power, expected in moments.items():
        assert_mean(trace**power, float(expected))
    # the Frobenius-Schur indicator of a real representation
    square = (x @ x).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert_mean(square, 0.0 if n == 2 else 1.0)


@compact_spaces
def test_quasi_uniform_is_uniform_with_less_scatter(space):
    def moments(x):
        return torch.cat([rows(x).mean(0), _outer(x).mean(0).flatten()])

    size, n_replicates = 512, 24
    quasi = torch.stack(
        [moments(geometry.quasi_uniform(space, size, s)) for s in range(n_replicates)]
    )
    plain = torch.stack(
        [
            moments(geometry.random_uniform(space, size, dtype=torch.float64))
            for _ in range(n_replicates)
        ]
    )
    width = math.prod(space.shape)
    expected = torch.cat([torch.zeros(width), _second_moment(space).flatten()])
    # Sobol points are multiples of 2^-30
    assert_mean(quasi, expected, sigmas=5.0, floor=2.0**-30)
    scatter = [moment.var(0).sum() for moment in (quasi, plain)]
    # QR of a 16-dimensional normal draw gains least
    assert scatter[0] < scatter[1] / (1 if space.name == "SO4" else 4)
    x = geometry.quasi_uniform(space, 100, 3, dtype=torch.float32)
    assert x.dtype == torch.float32 and geometry.belongs(space, x).all()
    assert not torch.equal(x, geometry.quasi_uniform(space, 100, 4, dtype=x.dtype))


@spaces()
def test_draws_follow_their_generator_alone(space):
    center = points(space, 5)
    width = torch.full((5,), 0.4, dtype=torch.float64)
    draws = {
        "random_kernel": lambda g: geometry.random_kernel(space, center, width, g),
        "random_tangent_normal": lambda g: geometry.random_tangent_normal(space, center, g),
    }
    if space.name != "R3":
        draws["random_uniform"] = lambda g: geometry.random_uniform(
            space, 5, g, dtype=torch.float64
        )
        draws["quasi_uniform"] = lambda g: geometry.quasi_uniform(space, 5, g.initial_seed())
    for name, draw in draws.items():
        x, again, other = (
            rng_untouched(lambda s=s, d=draw: d(torch.Generator().manual_seed(s)))
            for s in (7, 7, 8)
        )
        assert torch.equal(x, again), name
        assert not torch.equal(x, other), name


@compact_spaces
def test_random_uniform_of_none_and_of_one(space):
    for n in (0, 1):
        x = geometry.random_uniform(space, n, dtype=torch.float64)
        assert x.shape == (n, *space.shape)


def test_no_uniform_measure_without_a_finite_volume():
    space = make_space("R3")
    assert not geometry.is_compact(space)
    with pytest.raises(ValueError, match="space: .*not compact"):
        geometry.random_uniform(space, 3)


# Normal laws and kernels --------------------------------------------------------------


@spaces()
def test_random_tangent_normal_is_standard_in_the_metric(space):
    x = points(space, 2)[:1].expand(20_000, *space.shape)
    v = geometry.random_tangent_normal(space, x)
    e = vectors(space, x[:1], 1.0).expand_as(x)
    component = geometry.inner_product(space, v, e, x)
    assert_mean(component, 0.0)
    assert_mean(component.square(), 1.0)
    assert_mean(component**4, 3.0)
    assert_mean(geometry.inner_product(space, v, v, x), float(space.dim))


@spaces()
def test_squared_chord_is_the_squared_norm_in_metric_units(space):
    x, y = points(space, 4), points(space, 3)
    ours = geometry.squared_chord(space, x, y)
    # nearby, a chord is as long as the geodesic
    v = vectors(space, x, 1e-5)
    near = geometry.squared_chord(space, x, geometry.exp(space, v, x)).diagonal()
    torch.testing.assert_close(near, torch.full_like(near, 1e-10), rtol=1e-6, atol=0)
    assert ours.shape == (4, 3)
    assert (ours <= geometry.dist(space, x[:, None], y[None]).square() + 1e-9).all()
    assert (geometry.squared_chord(space, x, x).diagonal() == 0).all()


@compact_spaces
@pytest.mark.parametrize("bandwidth", [0.6, 1.0, 3.0])
def test_random_kernel_follows_its_density(space, bandwidth):
    center = points(space, 2)[:1]
    n = 20_000
    width = torch.full((n,), bandwidth, dtype=torch.float64)
    drawn = geometry.random_kernel(space, center.expand(n, *space.shape), width)
    assert geometry.belongs(space, drawn, atol=1e-12).all()
    x = geometry.random_uniform(space, 200_000, dtype=torch.float64)
    squared = geometry.squared_chord(space, x, center)[:, 0]
    weight = (-squared / (2 * bandwidth**2)).exp()
    weight = weight / weight.mean()

    def tests(y):
        chord = geometry.squared_chord(space, y, center)[:, 0]
        return torch.stack([chord, chord**2, *rows(y)[:, :4].unbind(1)], dim=1)

    expected = (weight[:, None] * tests(x)).mean(0)
    # of a ratio estimate, by the delta method
    error = (weight[:, None] * (tests(x) - expected)).std(0) / math.sqrt(len(x))
    values = tests(drawn)
    error = torch.hypot(error, values.std(0) / math.sqrt(n))
    assert ((values.mean(0) - expected).abs() < 4 * error).all()


@spaces()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_narrow_kernels_are_normal(space, dtype):
    n, h = 20_000, 1e-2
    center = points(space, 2, dtype)[:1]
    width = torch.full((n,), h, dtype=dtype)
    x = geometry.random_kernel(space, center.expand(n, *space.shape), width)
    squared = geometry.squared_chord(space, x, center)[:, 0].double() / h**2
    # chi-squared but for terms of the order of the curvature times h^2
    assert_mean(squared, float(space.dim), floor=2 * space.dim * h**2)
    assert_mean(squared**2, space.dim * (space.dim + 2.0), floor=1e-1 * h)
    volume = geometry.log_kernel_normalizer(space, torch.tensor([h], dtype=dtype))
    expected = space.dim * math.log(h * math.sqrt(2 * PI))
    assert float(volume) == pytest.approx(expected, abs=3e-4)


def _angles(n):
    return torch.arange(n, dtype=torch.float64) * (2 * PI / n)


def _integral_S1(h):
    gap = 1 - _angles(4000).cos()
    return 2 * PI * (-gap / h**2).exp().mean()


_NODES = tuple(map(torch.as_tensor, leggauss(400)))


def _integral_S2(h):
    # Gauss-Legendre in sqrt(1 - z), in which the narrowest kernel is still smooth
    u, weight = _NODES
    u, weight = (u + 1) / math.sqrt(2), weight / math.sqrt(2)
    return 2 * PI * (weight * 2 * u * (-(u**2) / h**2).exp()).sum()


def _integral_S4(h):
    theta, weight = _NODES
    theta, weight = (theta + 1) * PI / 2, weight * PI / 2
    value = (-(1 - theta.cos()) / h**2).exp() * theta.sin() ** 3
    return 2 * PI**2 * (weight * value).sum()


def _integral_SO3(h):
    # tr R = 1 + 2 cos t, and the angle has density (1 - cos t) / 2 pi on [0, 2 pi)
    cosine = _angles(4000).cos()
    return 8 * PI**2 * ((1 - cosine) * (-(1 - cosine) / h**2).exp()).mean()


def _integral_SO4(h):
    # Weyl: both angles have density (cos a - cos b)^2 over the square
    a, b = torch.meshgrid(_angles(1000).cos(), _angles(1000).cos(), indexing="ij")
    return 16 * PI**4 * ((a - b) ** 2 * (-(2 - a - b) / h**2).exp()).mean()


_INTEGRALS = {
    "S1": _integral_S1,
    "S2": _integral_S2,
    "S4": _integral_S4,
    "T2": lambda h: _integral_S1(h) ** 2,
    "T3": lambda h: _integral_S1(h) ** 3,
    "S1xS1": lambda h: _integral_S1(h) ** 2,
    "SO2": _integral_S1,
    "SO3": _integral_SO3,
    "SO4": _integral_SO4,
    "S2xSO3": lambda h: _integral_S2(h) * _integral_SO3(h),
    # lengths on the second circle grow by sqrt(2), on the doubled sphere areas by 2
    "T2 scales 1, 2": lambda h: (
        math.sqrt(2) * _integral_S1(h) * _integral_S1(h / math.sqrt(2))
    ),
    "S2 doubled": lambda h: 2 * _integral_S2(h / math.sqrt(2)),
    "R3": lambda h: torch.tensor(h * math.sqrt(2 * PI), dtype=torch.float64) ** 3,
}


@spaces()
def test_kernel_normalizer_by_quadrature(space):
    widths = torch.tensor([0.05, 0.2, 0.7, 1.0, 3.0, 100.0], dtype=torch.float64)
    ours = geometry.log_kernel_normalizer(space, widths)
    expected = torch.stack([_INTEGRALS[space.name](float(h)) for h in widths]).log()
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)
    # the same for any shape of bandwidths, and another dtype
    square = geometry.log_kernel_normalizer(space, widths.reshape(2, 3).float())
    torch.testing.assert_close(square, ours.reshape(2, 3).float(), atol=1e-5, rtol=1e-5)


@compact_spaces
def test_kernel_normalizer_by_monte_carlo(space):
    h = torch.tensor([1.0], dtype=torch.float64)
    x = geometry.random_uniform(space, 50_000, dtype=torch.float64)
    squared = geometry.squared_chord(space, x, points(space, 2)[:1])
    expected = float(geometry.log_kernel_normalizer(space, h) - _LOG_VOLUME[space.name])
    assert_mean((-squared / 2).exp(), math.exp(expected))


def test_kernel_normalizer_of_extreme_bandwidths():
    for name in ("S1", "S2", "S4", "SO3", "SO4"):
        space = make_space(name)
        h = torch.tensor([1e-6, 1e-4], dtype=torch.float64)
        expected = space.dim * (h * math.sqrt(2 * PI)).log()
        ours = geometry.log_kernel_normalizer(space, h)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
        wide = geometry.log_kernel_normalizer(space, h.new_tensor([1e6]))
        assert float(wide) == pytest.approx(_LOG_VOLUME[name], abs=1e-9)


# Dtypes and devices -------------------------------------------------------------------


def _everything(space, x, y, v):
    """Every deterministic function of the geometry, by name."""
    width = torch.full((3,), 0.5, dtype=x.dtype, device=x.device)
    scale = width[0]
    results = {
        "projection": geometry.projection(space, x + 0.1 * v),
        "to_tangent": geometry.to_tangent(space, y, x),
        "tangent_basis": geometry.tangent_basis(space, x),
        "log_volume_element": geometry.log_volume_element(space, x),
        "inner_product": geometry.inner_product(space, v, v, x),
        "sharp": geometry.sharp(space, v, x),
        "exp": geometry.exp(space, v, x),
        "log": geometry.log(space, y, x),
        "dist": geometry.dist(space, x, y),
        "retraction": geometry.retraction(space, v, x),
        "squared_chord": geometry.squared_chord(space, x, y),
        "log_kernel_normalizer": geometry.log_kernel_normalizer(space, width),
        "wrapped_normal_log_prob": geometry.wrapped_normal_log_prob(space, x, y, scale),
        "constraint_residual": geometry.constraint_residual(space, x),
    }
    if space.name in ("S1", "T2", "T3", "S1xS1", "R3", "T2 scales 1, 2"):
        results["chart"], results["chart_log_det"] = geometry.chart(space, x)
    return results


@spaces()
def test_float32_agrees_with_float64_and_stays(space, device):
    x = points(space, 6, device=device)
    v = vectors(space, x, 0.7)
    y = geometry.exp(space, vectors(space, x, 1.5), x)
    double = _everything(space, x, y, v)
    single = _everything(space, x.float(), y.float(), v.float())
    for name, value in single.items():
        assert value.dtype == torch.float32, name
        assert double[name].dtype == torch.float64, name
        assert value.device.type == double[name].device.type == device.type, name
        torch.testing.assert_close(
            value.double(),
            double[name],
            atol=2e-5,
            rtol=2e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@spaces()
def test_random_draws_keep_dtype_and_device(space, device):
    generator = torch.Generator(device).manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        center = points(space, 4, dtype, device)
        width = torch.full((4,), 0.5, dtype=dtype, device=device)
        draws = [
            geometry.random_kernel(space, center, width, generator),
            geometry.random_tangent_normal(space, center, generator),
        ]
        if space.name != "R3":
            draws += [
                geometry.random_uniform(space, 4, generator, dtype=dtype),
                geometry.random_uniform(space, 4, device=device, dtype=dtype),
                geometry.quasi_uniform(space, 4, device=device, dtype=dtype),
            ]
        for draw in draws:
            assert draw.dtype == dtype and draw.device.type == device.type
            assert draw.shape == (4, *space.shape)


@pytest.mark.parametrize("name", ["S2", "SO3", "T2"])
def test_divergence_compiles_without_graph_breaks(name):
    torch._dynamo.reset()
    space = make_space(name)
    size = math.prod(space.shape)
    field = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(size, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, size),
        torch.nn.Unflatten(1, tuple(space.shape)),
    ).double()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x):
        return gf.divergence(space, field, x)

    for n in (5, 3, 17):
        x = points(space, n)
        torch.testing.assert_close(compiled(x), gf.divergence(space, field, x))


# Spaces we do not know ----------------------------------------------------------------

UNSUPPORTED = {
    "HPDMatrices": lambda: HPDMatrices(2),
    "intrinsic sphere": lambda: Hypersphere(2, intrinsic=True),
    "complex disk": lambda: ComplexPoincareDisk(),
    "product of intrinsic circles": lambda: ProductManifold(
        [Hypersphere(2), Hypersphere(1, intrinsic=True)]
    ),
    "string": lambda: "sphere",
}


@pytest.mark.parametrize("make", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_spaces_are_refused_by_name(make):
    space = make()
    shape = getattr(space, "shape", (3,))
    x = torch.zeros(2, *shape, dtype=torch.float64)
    width = torch.ones(2, dtype=torch.float64)
    calls = {
        "projection": lambda: geometry.projection(space, x),
        "to_tangent": lambda: geometry.to_tangent(space, x, x),
        "tangent_basis": lambda: geometry.tangent_basis(space, x),
        "origin": lambda: geometry.origin(space),
        "exp": lambda: geometry.exp(space, x, x),
        "log": lambda: geometry.log(space, x, x),
        "dist": lambda: geometry.dist(space, x, x),
        "belongs": lambda: geometry.belongs(space, x),
        "is_compact": lambda: geometry.is_compact(space),
        "log_volume": lambda: geometry.log_volume(space),
        "random_uniform": lambda: geometry.random_uniform(space, 2),
        "quasi_uniform": lambda: geometry.quasi_uniform(space, 2),
        "random_kernel": lambda: geometry.random_kernel(space, x, width),
        "log_kernel_normalizer": lambda: geometry.log_kernel_normalizer(space, width),
        "wrapped_normal_log_prob": lambda: geometry.wrapped_normal_log_prob(
            space, x, x, width[0]
        ),
        "log_volume_element": lambda: geometry.log_volume_element(space, x),
        "inner_product": lambda: geometry.inner_product(space, x, x, x),
        "sharp": lambda: geometry.sharp(space, x, x),
        "retraction": lambda: geometry.retraction(space, x, x),
        "divergence": lambda: gf.divergence(space, lambda y: y, x),
        "gradient": lambda: gf.gradient(space, lambda y: y.flatten(1).sum(1), x),
        "laplacian": lambda: gf.laplacian(space, lambda y: y.flatten(1).sum(1), x),
        "Uniform": lambda: gf.Uniform(space),
        "WrappedNormal": lambda: gf.WrappedNormal(space),
        "KernelDensity": lambda: gf.KernelDensity(space),
        "Mixture": lambda: gf.Mixture(space, [gf.Uniform(make_space("S2"))]),
        "MoserFlow": lambda: gf.MoserFlow(space),
    }
    answered = []
    for name, call in calls.items():
        try:
            call()
        except (TypeError, ValueError) as error:
            if "space" not in str(error):
                answered.append(f"{name} does not name space: {error}")
        except Exception as error:
            answered.append(f"{name} raises {type(error).__name__}: {error}")
        else:
            answered.append(f"{name} answers")
    assert not answered, "\n".join(answered)
    assert gf.available_distributions(space) == []


# Independence of geomstats' backend ---------------------------------------------------

_SCRIPT = """
    import json
    import torch
    import geoflow_plugin as gf
    from geomstats.geometry.hypersphere import Hypersphere
    from geomstats.geometry.nfold_manifold import NFoldManifold
    from geomstats.geometry.special_orthogonal import SpecialOrthogonal

    results = {}
    spaces = {
        "S2": Hypersphere(2),
        "SO3": SpecialOrthogonal(3),
        "T2": NFoldManifold(Hypersphere(1), 2),
    }
    for name, space in spaces.items():
        generator = torch.Generator().manual_seed(0)
        x = gf.geometry.random_uniform(space, 4, generator, dtype=torch.float32)
        field = lambda y: (y + 0.5).sin().flip(1)
        uniform = gf.Uniform(space, dtype=torch.float32)
        normal = gf.WrappedNormal(space, scale=0.5, dtype=torch.float32)
        kernels = gf.KernelDensity(space).fit(x)
        values = {
            "points": x,
            "divergence": gf.divergence(space, field, x),
            "uniform": uniform.log_prob(x),
            "uniform sample": uniform.sample(3, generator=generator),
            "normal": normal.log_prob(x),
            "normal sample": normal.sample(3, generator=generator),
            "kernels": kernels.log_prob(x),
            "kernels sample": kernels.sample(3, generator=generator),
        }
        for key, value in values.items():
            assert value.dtype == torch.float32, (name, key, value.dtype)
            results[name + " " + key] = value.flatten().tolist()
    print(json.dumps(results))
"""


def _run(script, backend):
    return run_under(backend, "-c", textwrap.dedent(script))


def test_pytorch_backend_gives_what_the_numpy_backend_gives():
    with_numpy, with_torch = (_run(_SCRIPT, b) for b in ("numpy", "pytorch"))
    assert with_numpy.keys() == with_torch.keys()
    for key, value in with_numpy.items():
        assert with_torch[key] == value, key


def test_no_call_reaches_geomstats_backend(monkeypatch):
    made = [make_space(n) for n in ("S2", "SO3", "SO4", "T2", "S2xSO3", "R3")]
    start = [points(space, 5) for space in made]
    ours = {}

    def forbidden(name):
        def call(*args, **kwargs):
            raise AssertionError(f"geomstats.backend.{name} was called")

        return call

    for module in (gs, gs.linalg, gs.random, gs.autodiff):
        for name, value in list(vars(module).items()):
            if callable(value) and not isinstance(value, type):
                monkeypatch.setattr(module, name, forbidden(name))
    with pytest.raises(AssertionError, match="was called"):
        made[0].belongs(start[0].numpy())
    for space, x in zip(made, start, strict=True):
        v = geometry.random_tangent_normal(space, x)
        ours = _everything(space, x, geometry.exp(space, 0.3 * v, x), 0.3 * v)
        assert all(value.isfinite().all() for value in ours.values())
        assert gf.divergence(space, torch.sin, x).isfinite().all()
        assert gf.laplacian(space, potential, x).isfinite().all()
        bases = [
            gf.WrappedNormal(space, x[0], 0.4),
            gf.KernelDensity(space).fit(x),
        ]
        if geometry.is_compact(space):
            bases.append(gf.Uniform(space, dtype=x.dtype))
        for base in [*bases, gf.Mixture(space, bases)]:
            drawn, log_prob = base(6)
            assert geometry.belongs(space, drawn).all()
            torch.testing.assert_close(log_prob, base.log_prob(drawn))
        assert "uniform" in gf.available_distributions(space) or space.name == "R3"
