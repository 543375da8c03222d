"""Divergence, gradient and Laplacian against closed forms and Stokes' theorem."""

import math

import pytest
import torch
from conftest import (
    COMPACT,
    assert_mean,
    make_space,
    points,
    rng_untouched,
    rows,
    spaces,
    vectors,
)
from geomstats.geometry.nfold_manifold import NFoldManifold
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss

import geoflow_plugin as gf
from geoflow_plugin import geometry

PI = math.pi
seeds = st.integers(0, 2**20)


# Eigenfunctions of the Laplacian, in closed form --------------------------------------


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _real_power(a, b, k):
    """Real part of (a + i b)^k, with real operations only."""
    real, imaginary = torch.ones_like(a), torch.zeros_like(a)
    for _ in range(k):
        real, imaginary = real * a - imaginary * b, real * b + imaginary * a
    return real


def _on_sphere(n, degree, seed):
    """Re <a, x>^l with <a, a> = 0: a harmonic polynomial, hence -l (l + n - 1)."""
    frame = torch.randn(n + 1, 2, dtype=torch.float64, generator=_generator(seed))
    frame = torch.linalg.qr(frame)[0]

    def function(x):
        a, b = (x @ frame.to(x)).unbind(-1)
        return _real_power(a, b, degree)

    return function, -degree * (degree + n - 1)


def _on_rotations(n, degree, seed):
    """A matrix coefficient, or on SO(3) the character of spin l, translated.

    The squares of the unit-speed generators E_ij - E_ji of SO(n) add up to -(n - 1) on
    R^n. SO(3) is half of a sphere of radius 2, on which spin l has -l (l + 1).
    """
    weight = torch.randn(n, n, dtype=torch.float64, generator=_generator(seed))
    if n != 3:
        return lambda x: (x * weight.to(x)).sum((-2, -1)), 1 - n
    shift = geometry.projection(make_space("SO3"), weight)

    def character(x):
        cosine = ((x * shift.to(x)).sum((-2, -1)) - 1) / 2  # of the angle
        before, now = torch.ones_like(cosine), cosine
        total = before
        for _ in range(degree):  # 1 + 2 sum cos(m t)
            total = total + 2 * now
            before, now = now, 2 * cosine * now - before
        return total

    return character, -degree * (degree + 1)


def _on_euclidean(degree, seed):
    wave = torch.randn(3, dtype=torch.float64, generator=_generator(seed)) * degree
    return lambda x: (x @ wave.to(x)).cos(), -float(wave.square().sum())


def _on_product(factors, scales, degree, seed):
    """A product of eigenfunctions; a metric c g divides eigenvalues by c."""
    terms = [eigenfunction(f, max(1, degree - i), seed + i) for i, f in enumerate(factors)]
    sizes = [math.prod(factor.shape) for factor in factors]

    def function(x):
        value = 1.0
        parts = x.flatten(1).split(sizes, dim=1)
        for (term, _), factor, part in zip(terms, factors, parts, strict=True):
            value = value * term(part.reshape(-1, *factor.shape))
        return value

    return function, sum(e / c for (_, e), c in zip(terms, scales, strict=True))


def eigenfunction(space, degree, seed):
    """Function on a space and its eigenvalue for the metric the space came with."""
    name = getattr(space, "name", None)
    if name == "T2 scales 1, 2":
        return _on_product([space.base_manifold] * 2, [1, 2], degree, seed)
    if isinstance(space, NFoldManifold):
        n = space.n_copies
        return _on_product([space.base_manifold] * n, [1] * n, degree, seed)
    if hasattr(space, "factors"):
        ones = [1] * len(space.factors)
        return _on_product(space.factors, ones, degree, seed)
    if name == "R3":
        return _on_euclidean(degree, seed)
    if hasattr(space, "n"):
        return _on_rotations(space.n, degree, seed)
    function, eigenvalue = _on_sphere(space.dim, degree, seed)
    return function, eigenvalue / (2 if name == "S2 doubled" else 1)


def assert_close(actual, expected, scale=1.0):
    """To 1e-10 in float64 and 1e-4 in float32, relative to a scale of the problem."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    tolerance = 1e-10 if actual.dtype == torch.float64 else 1e-4
    worst = float((actual - expected).detach().abs().max())
    assert worst <= tolerance * max(1.0, scale), f"off by {worst} at scale {scale}"


@spaces()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(degree=st.integers(1, 5), seed=seeds)
def test_laplacian_of_eigenfunctions(space, dtype, device, degree, seed):
    function, eigenvalue = eigenfunction(space, degree, seed)
    x = points(space, 8, dtype, device)
    expected = eigenvalue * function(x)
    # float32 points are off the space by rounding, which degree l amplifies
    scale = abs(eigenvalue) * float(function(x).abs().max())
    assert_close(gf.laplacian(space, function, x), expected, scale)


@spaces()
@given(degree=st.integers(1, 4), seed=seeds, factor=st.floats(0.1, 10.0))
def test_eigenvalues_scale_with_the_inverse_of_the_metric(space, degree, seed, factor):
    function, eigenvalue = eigenfunction(space, degree, seed)
    space = make_space(space.name)
    space.metric = factor * space.metric
    x = points(space, 4)
    expected = eigenvalue / factor * function(x)
    scale = abs(eigenvalue / factor) * float(function(x).abs().max())
    assert_close(gf.laplacian(space, function, x), expected, scale)


@spaces("S1", "S2", "S4", "S2 doubled")
@given(seed=seeds)
def test_linear_coordinates_of_spheres(space, seed):
    # <a, x> has gradient a - <a, x> x (in the round metric), of divergence -n <a, x>;
    # divergences do not change with a constant scale of the metric
    a = torch.randn(space.dim + 1, dtype=torch.float64, generator=_generator(seed))
    x = points(space, 6)
    divergence = gf.divergence(space, lambda y: a.expand_as(y), x)
    assert_close(divergence, -space.dim * (x @ a))


@spaces("S1", "S2", "S4", "S2 doubled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=seeds)
def test_linear_fields_on_spheres(space, dtype, seed):
    # the tangential part of x -> M x has divergence tr M - (n + 1) <x, M x>
    size = space.dim + 1
    matrix = torch.randn(size, size, dtype=torch.float64, generator=_generator(seed))
    matrix = matrix.to(dtype)
    x = points(space, 6, dtype)
    expected = matrix.trace() - size * ((x @ matrix.mT) * x).sum(-1)
    divergence = gf.divergence(space, lambda y: y @ matrix.mT, x)
    assert_close(divergence, expected, scale=float(matrix.abs().sum()))


@spaces("SO2", "SO3", "SO4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=seeds)
def test_invariant_fields_on_rotations_preserve_volume(space, dtype, seed):
    a = torch.randn(space.n, space.n, generator=_generator(seed)).to(dtype)
    a = a - a.mT
    x = points(space, 5, dtype)
    zero = x.new_zeros(5)
    scale = float(a.abs().max())
    assert_close(gf.divergence(space, lambda y: y @ a, x), zero, scale)
    assert_close(gf.divergence(space, lambda y: a @ y, x), zero, scale)


@spaces("T2", "T3", "S1xS1", "T2 scales 1, 2")
@given(seed=seeds, k=st.integers(0, 3))
def test_trigonometric_fields_on_tori(space, seed, k):
    # sin(k t_i + phase) d/dt_(i+1) + cos(k t_i) d/dt_i, d/dt_i = (-y_i, x_i)
    phase = float(torch.rand((), generator=_generator(seed))) * 6

    def field(x):
        angle = torch.atan2(x[..., 1], x[..., 0])
        turn = torch.stack([-x[..., 1], x[..., 0]], dim=-1)
        speed = (k * angle).cos() + (k * angle + phase).sin().roll(1, dims=-1)
        return speed[..., None] * turn

    x = points(space, 6)
    angle = torch.atan2(x[..., 1], x[..., 0])
    assert_close(gf.divergence(space, field, x), -k * (k * angle).sin().sum(-1))


# Laws of any field --------------------------------------------------------------------


class Field(torch.nn.Module):
    """A random smooth field, analytic so that quadrature is spectrally accurate."""

    def __init__(self, space, width=8, gain=0.5):
        super().__init__()
        size = math.prod(space.shape)
        self.inner = torch.nn.Parameter(gain * torch.randn(size, width).double())
        self.outer = torch.nn.Parameter(torch.randn(width, size).double())

    def forward(self, x):
        hidden = (x.flatten(1) @ self.inner.to(x) + 0.3).sin()
        return (hidden @ self.outer.to(x)).reshape(x.shape)


def potential(x):
    """A smooth scalar function of points of any space."""
    flat = x.flatten(1)
    weight = torch.linspace(-1, 1, flat.shape[1], dtype=x.dtype, device=x.device)
    return (flat @ weight).sin() + flat[:, 0] * flat[:, -1]


@spaces()
def test_gradient_represents_the_differential(space, device):
    x = points(space, 8, device=device)
    v = vectors(space, x)
    grad = gf.gradient(space, potential, x)
    assert grad.shape == x.shape
    assert_close(geometry.to_tangent(space, grad, x), grad, 10.0)
    _, derivative = torch.func.jvp(potential, (x,), (v,))
    inner = space.metric.inner_product(*(t.cpu().numpy() for t in (grad, v, x)))
    assert_close(torch.tensor(inner).to(x), derivative, 10.0)
    # the difference quotient along a geodesic, which knows no derivative at all
    step = 1e-4
    ends = [potential(geometry.exp(space, s * v, x)) for s in (step, -step)]
    torch.testing.assert_close(
        (ends[0] - ends[1]) / (2 * step), derivative, atol=1e-6, rtol=1e-6
    )


@spaces()
def test_laplacian_is_the_second_derivative_along_geodesics(space):
    x = points(space, 4)
    basis = geometry.tangent_basis(space, x)
    change = 0.0
    step = 1e-3
    for e in basis.unbind(1):
        # bases are orthogonal in the metric, too, on all of these spaces
        squared = geometry.inner_product(space, e, e, x)
        ends = [potential(geometry.exp(space, s * e, x)) for s in (step, -step)]
        second = (ends[0] + ends[1] - 2 * potential(x)) / step**2
        change = change + second / squared
    laplacian = gf.laplacian(space, potential, x)
    torch.testing.assert_close(laplacian, change, atol=2e-5, rtol=1e-5)


@spaces()
def test_divergence_of_the_gradient_is_the_laplacian(space, device):
    x = points(space, 8, device=device)
    divergence = gf.divergence(space, lambda y: gf.gradient(space, potential, y), x)
    assert_close(gf.laplacian(space, potential, x), divergence, 10.0)
    column = gf.laplacian(space, lambda y: potential(y)[:, None], x)
    assert torch.equal(column, gf.laplacian(space, potential, x))


@spaces()
def test_product_rule(space):
    field, x = Field(space), points(space, 8)
    product = gf.divergence(
        space,
        lambda y: potential(y).reshape(-1, *[1] * len(space.shape)) * field(y),
        x,
    )
    slope = geometry.inner_product(
        space,
        gf.gradient(space, potential, x),
        geometry.to_tangent(space, field(x), x),
        x,
    )
    expected = potential(x) * gf.divergence(space, field, x) + slope
    assert_close(product, expected, 100.0)


@spaces(without=["R3"])
def test_only_values_on_the_space_matter(space):
    field, x = Field(space), points(space, 8)

    radius = rows(x).square().sum(1)[0]  # the same all over each of these spaces

    def extended(y):  # another extension off the space, and a normal part
        stretch = 1 + (rows(y).square().sum(1) - radius).sin()
        other = (3 * y).cos()
        normal = other - geometry.to_tangent(space, other, y)
        return stretch.reshape(-1, *[1] * len(space.shape)) * field(y) + normal

    assert_close(gf.divergence(space, extended, x), gf.divergence(space, field, x), 100.0)


@spaces()
def test_divergence_does_not_see_a_constant_scale_of_the_metric(space):
    field, x = Field(space), points(space, 8)
    before = gf.divergence(space, field, x)
    space.metric = 7.0 * space.metric
    assert_close(gf.divergence(space, field, x), before, 10.0)


@spaces()
def test_divergence_is_the_change_of_log_volume(space):
    # d/dt log |det D phi_t| at t = 0, by differences of the flow of the field
    field, x = Field(space), points(space, 3)
    step = 1e-3
    volume = []
    for sign in (1, -1):

        def move(y, t=sign * step):
            velocity = geometry.to_tangent(space, field(y), y)
            return geometry.exp(space, t * velocity, y)

        images = [
            torch.func.jvp(move, (x,), (e,))[1]
            for e in geometry.tangent_basis(space, x).unbind(1)
        ]
        foot = move(x)
        gram = torch.stack(
            [
                torch.stack([geometry.inner_product(space, a, b, foot) for b in images])
                for a in images
            ]
        ).movedim(-1, 0)
        volume.append(0.5 * torch.linalg.slogdet(gram)[1])
    change = (volume[0] - volume[1]) / (2 * step)
    torch.testing.assert_close(gf.divergence(space, field, x), change, atol=1e-4, rtol=1e-4)


# Stokes -------------------------------------------------------------------------------


def _circle(n):
    angle = torch.arange(n, dtype=torch.float64) * (2 * PI / n)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _grid(name):
    """Nodes and weights (adding up to one) of a rule that is spectrally accurate."""
    if name == "S1":
        return _circle(64), torch.full((64,), 1 / 64, dtype=torch.float64)
    if name == "S2":
        height, weight = map(torch.as_tensor, leggauss(32))
        circle = _circle(64)
        radius = (1 - height**2).sqrt()
        flat = radius[:, None, None] * circle
        z = height[:, None, None].expand(-1, 64, 1)
        nodes = torch.cat([flat, z], dim=-1).reshape(-1, 3)
        return nodes, (weight / 128).repeat_interleave(64)
    circle = _circle(48)
    nodes = torch.stack([circle.repeat_interleave(48, 0), circle.repeat(48, 1)], dim=1)
    return nodes, torch.full((48**2,), 48.0**-2, dtype=torch.float64)


@pytest.mark.parametrize("name", ["S1", "S2", "T2"])
@given(seed=seeds)
def test_stokes_by_quadrature(name, device, seed):
    space = make_space(name)
    torch.manual_seed(seed)
    field = Field(space)
    nodes, weight = (t.to(device) for t in _grid(name))
    divergence = gf.divergence(space, field, nodes)
    assert divergence.abs().max() > 1e-2
    assert abs(float((weight * divergence.detach()).sum())) < 1e-10
    # and Green: the integral of f lap g is symmetric
    f, g = (lambda x, a=a: (x.flatten(1) @ a).cos() for a in field.outer.detach()[:2])
    mixed = f(nodes) * gf.laplacian(space, g, nodes)
    mixed = mixed - g(nodes) * gf.laplacian(space, f, nodes)
    assert abs(float((weight * mixed).sum())) < 1e-10 * float(mixed.abs().max() + 1)


@spaces(*COMPACT)
@pytest.mark.parametrize("draw", range(3))
def test_stokes_by_monte_carlo(space, draw):
    torch.manual_seed(draw)
    field = Field(space, gain=1.0)
    x = geometry.random_uniform(space, 10_000, dtype=torch.float64)
    assert_mean(gf.divergence(space, field, x), 0.0)


@spaces("SO3", "SO4", "S2xSO3")
def test_stokes_by_quasi_monte_carlo(space):
    field = Field(space)
    means = torch.stack(
        [
            gf.divergence(space, field, geometry.quasi_uniform(space, 1024, s)).mean()
            for s in range(16)
        ]
    )
    assert_mean(means, 0.0)
    assert means.abs().max() < 0.2 * field.outer.abs().max()


# Closed forms -------------------------------------------------------------------------


@spaces()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_curvature_is_the_divergence_of_projected_constants(space, dtype, device):
    x, v = points(space, 6, dtype, device), points(space, 6, dtype, device).flip(0)
    bend = geometry.mean_curvature(space, x)
    assert_close((bend * v).flatten(1).sum(-1), gf.divergence(space, lambda y: v, x), 10.0)
    # it is normal, and what every space that registered nothing gets
    assert float(geometry.to_tangent(space, bend, x).abs().max()) < 1e-5
    assert_close(bend, geometry.mean_curvature.__wrapped__(space, x), 10.0)


@spaces()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=seeds, factor=st.floats(0.1, 10.0))
def test_closed_forms_of_potentials(space, dtype, device, seed, factor):
    space.metric = factor * make_space(space.name).metric
    size = math.prod(space.shape)
    hidden = gf.networks.OneHiddenLayerPotential(
        size, 9, generator=_generator(seed), dtype=torch.float64
    )
    x = points(space, 6, dtype, device)
    hidden.initialize(x.cpu(), 3.0, _generator(seed))
    hidden.amplitude.data.mul_(100)
    hidden.to(device, dtype)
    gradient, laplacian = gf.calculus.gradient_and_laplacian(space, hidden, x)
    scale = 10 / factor
    assert_close(gradient, gf.gradient(space, hidden, x), scale)
    assert_close(laplacian, gf.laplacian(space, hidden, x), scale)


@spaces("S2", "T3", "SO3", "S2xSO3")
def test_fields_that_know_their_trace(space):
    field, x = Field(space), points(space, 6)

    def value_and_trace(y, basis):
        products = [torch.func.jvp(field, (y,), (e.contiguous(),))[1] * e for e in basis]
        return field(y), sum(product.flatten(1).sum(-1) for product in products)

    known = lambda y: field(y)  # noqa: E731 - a function with a method
    known.value_and_trace = value_and_trace
    values = gf.calculus.value_and_divergence(space, known, x)
    for ours, expected in zip(
        values, gf.calculus.value_and_divergence(space, field, x), strict=True
    ):
        assert_close(ours, expected, 10.0)


# Hutchinson ---------------------------------------------------------------------------


@spaces()
@pytest.mark.parametrize("n_probes", [1, 3])
def test_hutchinson_is_unbiased(space, n_probes, device):
    field, x = Field(space), points(space, 4, device=device)
    generator = torch.Generator(device).manual_seed(0)
    copies = x.repeat(500, *[1] * len(space.shape))
    arguments = ("hutchinson", n_probes, generator)
    draws = gf.divergence(space, field, copies, *arguments).detach().reshape(500, 4)
    exact = gf.divergence(space, field, x).detach()
    assert_mean(draws, exact, floor=1e-10)
    if space.dim > 1:
        assert (draws.std(0) > 0).any()
    laplacian = gf.laplacian(space, potential, copies, *arguments).reshape(500, 4)
    assert_mean(laplacian, gf.laplacian(space, potential, x), floor=1e-10)


@spaces("S2", "SO3", "T2", "S2xSO3", "R3")
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_strides_of_the_points_do_not_matter(space, method):
    field, x = Field(space), points(space, 6)
    layouts = {
        "expanded": x[:1].expand(6, *space.shape),
        "every other": x[::2],
        "transposed": x.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    for name, view in layouts.items():
        value, expected = (
            gf.divergence(space, field, at, method, generator=_generator(0))
            for at in (view, view.clone(memory_format=torch.contiguous_format))
        )
        torch.testing.assert_close(value, expected, msg=lambda m, n=name: f"{n}: {m}")


@spaces("S4", "SO4")
def test_more_probes_have_less_variance(space):
    field, x = Field(space), points(space, 2)[:1]
    x = x.repeat(2000, *[1] * len(space.shape))
    one, nine = (gf.divergence(space, field, x, "hutchinson", k).var() for k in (1, 9))
    assert 6 < one / nine < 13


@spaces("S2", "SO3", "T2", "S2xSO3")
def test_hutchinson_follows_its_generator_alone(space):
    field, x = Field(space), points(space, 6)

    def estimate(seed):
        return rng_untouched(
            lambda: gf.divergence(space, field, x, "hutchinson", generator=_generator(seed))
        )

    assert torch.equal(estimate(1), estimate(1))
    assert not torch.equal(estimate(1), estimate(2))
    # the exact divergence draws nothing
    exact = rng_untouched(lambda: gf.divergence(space, field, x))
    assert torch.equal(exact, gf.divergence(space, field, x))


# Derivatives of the divergence --------------------------------------------------------


@spaces("S2", "SO3", "T2", "S2xSO3", "R3")
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_gradcheck_in_parameters_and_points(space, method):
    x = points(space, 2)
    basis = geometry.tangent_basis(space, x)
    size = math.prod(space.shape)
    inner = (0.5 * torch.randn(size, 3).double()).requires_grad_()
    outer = torch.randn(3, size).double().requires_grad_()
    step = (0.1 * torch.randn(2, space.dim).double()).requires_grad_()

    def value(inner, outer, step):
        v = (step[:, None, :] @ basis.flatten(2)).reshape(x.shape)
        at = geometry.exp(space, v, x)

        def field(y):
            return ((y.flatten(1) @ inner).sin() @ outer).reshape(y.shape)

        return gf.divergence(space, field, at, method, generator=_generator(3))

    assert torch.autograd.gradcheck(value, (inner, outer, step), atol=1e-6)


@spaces("S2", "SO3", "T2")
def test_gradcheck_of_the_laplacian_and_second_derivatives(space):
    x = points(space, 2)
    weight = torch.randn(math.prod(space.shape)).double().requires_grad_()

    def value(weight):
        return gf.laplacian(space, lambda y: (y.flatten(1) @ weight).sin(), x)

    assert torch.autograd.gradcheck(value, (weight,))
    assert torch.autograd.gradgradcheck(value, (weight,))


@spaces("S2", "SO3", "T2")
def test_divergence_trains_a_field(space):
    # every parameter of the field receives the gradient of the mean square divergence
    field, x = Field(space), points(space, 16)
    gf.divergence(space, field, x).square().mean().backward()
    for parameter in field.parameters():
        before = parameter.grad
        assert before.isfinite().all() and before.abs().max() > 1e-6


# What is refused ----------------------------------------------------------------------


@spaces("S2", "SO3", "T2")
def test_vectors_of_another_shape_are_refused(space):
    x = points(space, 4)
    for field in (
        lambda y: y.flatten(1)[:, :-1],
        lambda y: y.flatten(1).sum(-1),
        lambda y: y[:2],
    ):
        with pytest.raises(ValueError, match="field: .*shape"):
            gf.divergence(space, field, x)


@spaces("S2", "SO3", "T2")
def test_potentials_that_are_not_scalar_are_refused(space):
    x = points(space, 4)
    for function in (lambda y: y, lambda y: y.sum(), lambda y: y.flatten(1)[:, :2]):
        for operator in (gf.gradient, gf.laplacian):
            with pytest.raises(ValueError, match="potential: .*shape"):
                operator(space, function, x)


@pytest.mark.parametrize("n_probes", [0, -1, 1.5, True, "3", None])
def test_bad_numbers_of_probes_are_refused(n_probes):
    space = make_space("S2")
    x = points(space, 4)
    for call in (
        lambda: gf.divergence(space, Field(space), x, "hutchinson", n_probes),
        lambda: gf.laplacian(space, potential, x, "hutchinson", n_probes),
    ):
        with pytest.raises((TypeError, ValueError), match="n_probes"):
            call()


@pytest.mark.parametrize("method", ["Exact", "", None, 1, "monte carlo"])
def test_unknown_methods_are_refused(method):
    space = make_space("S2")
    x = points(space, 4)
    with pytest.raises((TypeError, ValueError), match="method: .*exact"):
        gf.divergence(space, Field(space), x, method)
    with pytest.raises((TypeError, ValueError), match="method: .*exact"):
        gf.laplacian(space, potential, x, method)
