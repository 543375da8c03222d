"""Positive definite, triangular and correlation matrices against geomstats and calculus."""

import math

import numpy as np
import pytest
import torch
from conftest import assert_mean, points, vectors
from geomstats.geometry import full_rank_correlation_matrices as correlation
from geomstats.geometry import positive_lower_triangular_matrices as triangular
from geomstats.geometry import spd_matrices as spd
from geomstats.information_geometry.normal import CenteredNormalDistributions
from torch.func import grad, hessian, jacfwd, vmap

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.spaces.matrix_functions import exp_log_volume, matrix_log, matrix_sqrt


def _equip(space, metric=None, scale=None, **kwargs):
    if metric is not None:
        space.equip_with_metric(metric, **kwargs)
    if scale is not None:
        space.metric = scale * space.metric
    return space


def _power(metric, power=0.5):
    image = _equip(spd.SPDMatrices(2), metric, scale=1 / power**2)
    return _equip(spd.SPDMatrices(2), spd.SPDPowerMetric, image_space=image)


def _invariant(left):
    metric = triangular.InvariantPositiveLowerTriangularMatricesMetric
    matrix = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.7]])
    space = triangular.PositiveLowerTriangularMatrices(2)
    return _equip(space, metric, metric_mat_at_identity=matrix, left=left)


def _correlations(n, name):
    metric = getattr(correlation, name)
    return lambda: _equip(correlation.FullRankCorrelationMatrices(n), metric)


# complete: normal laws are those of the Riemannian exponential
COMPLETE = {
    "affine 2": lambda: spd.SPDMatrices(2),
    "affine 3": lambda: spd.SPDMatrices(3),
    "affine 5": lambda: spd.SPDMatrices(5),
    "affine 2 tripled": lambda: _equip(spd.SPDMatrices(2), scale=3.0),
    "centered normals 2": lambda: CenteredNormalDistributions(2),
    "log-Euclidean 2": lambda: _equip(spd.SPDMatrices(2), spd.SPDLogEuclideanMetric),
    "log-Euclidean 3 tripled": lambda: _equip(
        spd.SPDMatrices(3), spd.SPDLogEuclideanMetric, scale=3.0
    ),
    "power affine": lambda: _power(spd.SPDAffineMetric),
    "Cholesky": lambda: triangular.PositiveLowerTriangularMatrices(3),
    "unit diagonal": lambda: triangular.PLTUnitDiagMatrices(3),
    "Euclidean-Cholesky": _correlations(3, "EuclideanCholeskyMetric"),
    "log-Euclidean-Cholesky": _correlations(4, "LogEuclideanCholeskyMetric"),
    "poly-hyperbolic 3": _correlations(3, "PolyHyperbolicCholeskyMetric"),
    "poly-hyperbolic 2": _correlations(2, "PolyHyperbolicCholeskyMetric"),
    "off-log 3": _correlations(3, "OffLogMetric"),
    "off-log 4": _correlations(4, "OffLogMetric"),
    "log-scaled 3": _correlations(3, "LogScaledMetric"),
    "log-scaled 2": _correlations(2, "LogScaledMetric"),
}
CARRIED = {
    "Euclidean": lambda: _equip(spd.SPDMatrices(2), spd.SPDEuclideanMetric),
    "Bures-Wasserstein 2": lambda: _equip(
        spd.SPDMatrices(2), spd.SPDBuresWassersteinMetric, scale=3.0
    ),
    "Bures-Wasserstein 3": lambda: _equip(spd.SPDMatrices(3), spd.SPDBuresWassersteinMetric),
    "power Euclidean": lambda: _power(spd.SPDEuclideanMetric),
    "Lie-Cholesky": lambda: _equip(spd.SPDMatrices(2), spd.LieCholeskyMetric),
    "left-invariant": lambda: _invariant(left=True),
    "right-invariant": lambda: _invariant(left=False),
    "quotient": _correlations(3, "FullRankCorrelationAffineQuotientMetric"),
}
MAKE = COMPLETE | CARRIED
# geomstats' own log or exp of these takes an ODE, a matching, or is missing
NO_EXP = {"Lie-Cholesky", "left-invariant", "right-invariant", "power Euclidean"}
NO_LOG = NO_EXP | {"quotient"}


@pytest.fixture
def space(request):
    return MAKE[request.param]()


def over(names):
    return pytest.mark.parametrize("space", list(names), indirect=True)


def _points(space, n):
    x = points(space, n)
    if isinstance(space, triangular.PositiveLowerTriangularMatrices):
        x = x + 0.3 * torch.eye(space.n, dtype=x.dtype)
    return x


def _flat(space, array):
    return array.flatten(-len(space.shape))


@over(MAKE)
def test_flat_geometry(space):
    x = _points(space, 6)
    basis = geometry.tangent_basis(space, x)
    flat = _flat(space, basis)
    eye = torch.eye(space.dim, dtype=x.dtype)
    torch.testing.assert_close(flat @ flat.mT, eye.expand(6, -1, -1))
    assert np.all(space.is_tangent(basis[:, 0].numpy(), x.numpy()))
    noise = torch.randn(x.shape, dtype=x.dtype)
    expected = (_flat(space, noise).unsqueeze(-2) @ flat.mT @ flat).reshape(x.shape)
    torch.testing.assert_close(geometry.to_tangent(space, noise, x), expected)
    torch.testing.assert_close(geometry.projection(space, x), x)
    assert bool(geometry.belongs(space, x).all())
    near = geometry.projection(space, x + 3 * noise)
    assert bool(geometry.belongs(space, near).all())
    assert np.all(space.belongs(near.numpy(), atol=1e-6))
    off = geometry.constraint_residual(space, torch.stack([-x, x + noise]))
    assert float(off.min()) > 1e-3
    step = geometry.retraction(space, 1e-4 * expected, x)
    assert float((step - x - 1e-4 * expected).abs().max()) < 1e-6


@over(MAKE)
def test_inner_product_and_volume_are_those_of_geomstats(space):
    x = _points(space, 5)
    u, v = vectors(space, x), vectors(space, x).flip(0)
    v = geometry.to_tangent(space, v, x)
    expected = space.metric.inner_product(u.numpy(), v.numpy(), x.numpy())
    actual = geometry.inner_product(space, u, v, x)
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=1e-7, atol=1e-9)
    basis = geometry.tangent_basis(space, x)
    gram = np.zeros((len(x), space.dim, space.dim))
    for i in range(space.dim):
        for j in range(space.dim):
            pair = basis[:, i].numpy().copy(), basis[:, j].numpy().copy()
            gram[:, i, j] = space.metric.inner_product(*pair, x.numpy())
    gram = torch.as_tensor(gram)
    volume = geometry.log_volume_element(space, x)
    torch.testing.assert_close(volume, gram.logdet() / 2, rtol=1e-7, atol=1e-7)
    flat = (_flat(space, basis) * _flat(space, u).unsqueeze(-2)).sum(-1)
    rise = torch.linalg.solve(gram, flat)
    rise = (rise.unsqueeze(-2) @ _flat(space, basis)).reshape(x.shape)
    torch.testing.assert_close(geometry.sharp(space, u, x), rise, rtol=1e-6, atol=1e-8)


@over(sorted(set(MAKE) - NO_EXP))
def test_exp_and_log_are_those_of_geomstats(space, request):
    x = _points(space, 4)
    length = 0.3 if space.dim > 1 else 0.1
    v = vectors(space, x, length)
    y = geometry.exp(space, v, x)
    expected = torch.as_tensor(space.metric.exp(v.numpy(), x.numpy())).reshape(x.shape)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
    if request.node.callspec.params["space"] not in NO_LOG:
        torch.testing.assert_close(geometry.log(space, y, x), v, rtol=1e-6, atol=1e-7)
        distance = torch.full((4,), length, dtype=x.dtype)
        torch.testing.assert_close(geometry.dist(space, x, y), distance)
        assert float(geometry.dist(space, x, x).max()) < 1e-7


def _carry(space, mean, scale):
    """The map of a standard normal of R^dim that a wrapped normal is the law of."""
    model = geometry.model(space)
    if model.isometric or isinstance(geometry.bare_metric(space), spd.SPDAffineMetric):
        root = torch.linalg.cholesky(geometry.gram(space, mean))
        basis = _flat(space, geometry.tangent_basis(space, mean))

        def carry(z):
            weight = torch.linalg.solve_triangular(root.mT, z.unsqueeze(-1), upper=True)
            tangent = (weight.squeeze(-1) @ basis).reshape(space.shape)
            return geometry.exp(space, scale * tangent, mean)

        return carry
    scale = scale / math.sqrt(geometry.outer_scale(space))
    center = model.to_model(mean)
    return lambda z: model.from_model(center + scale * z)


@over([*COMPLETE, *sorted(set(CARRIED) - {"Lie-Cholesky", "power Euclidean"})])
def test_wrapped_normal_is_a_normal_law_carried(space):
    mean, scale = _points(space, 2)[0], torch.tensor(0.4, dtype=torch.float64)
    carry = _carry(space, mean, scale)
    z = torch.randn(3, space.dim, dtype=torch.float64)
    x = vmap(carry)(z)
    basis = _flat(space, geometry.tangent_basis(space, x))
    jacobian = vmap(jacfwd(lambda z: carry(z).flatten()))(z)
    change = torch.linalg.slogdet(basis @ jacobian)[1]
    expected = -0.5 * z.square().sum(-1) - space.dim / 2 * math.log(2 * math.pi)
    expected = expected - change - geometry.log_volume_element(space, x)
    density = gf.WrappedNormal(space, mean, float(scale)).log_prob(x)
    torch.testing.assert_close(density, expected, rtol=1e-6, atol=1e-6)
    squared, log_volume = geometry.kernel_separation(space, x, mean[None])
    log_volume = 0.0 if log_volume is None else log_volume
    kernel = -0.5 * squared / scale**2 - log_volume
    kernel = kernel[:, 0] - geometry.log_kernel_normalizer(space, scale)
    torch.testing.assert_close(kernel, expected, rtol=1e-6, atol=1e-6)
    assert float(geometry.kernel_separation(space, x, x)[0].diagonal().abs().max()) == 0


@over([*COMPLETE, *CARRIED])
def test_samples_have_the_lengths_of_a_normal_law(space):
    mean = _points(space, 2)[0]
    x = gf.WrappedNormal(space, mean, 0.5).sample(400)
    assert bool(geometry.belongs(space, x).all())
    squared, _ = geometry.kernel_separation(space, x, mean[None])
    assert_mean(squared / 0.25, float(space.dim))


@over(["affine 2 tripled", "Cholesky", "Bures-Wasserstein 2", "quotient"])
def test_normal_laws_and_kernel_densities_are_normalized(space):
    # that kernels are normal laws, and these right to the last digit, is tested above
    generator = torch.Generator().manual_seed(1)
    law = gf.WrappedNormal(space, _points(space, 2)[0], 0.5)
    estimate = gf.KernelDensity(space, [0.3]).fit(law.sample(20, generator=generator))
    for density in (law, estimate):
        wide = gf.WrappedNormal(space, law.mean, 0.9)
        x = wide.sample(4000, generator=generator)
        assert_mean((density.log_prob(x) - wide.log_prob(x)).exp(), 1.0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_logarithm_and_root_keep_their_digits(n):
    rotation = torch.linalg.qr(torch.randn(20, n, n, dtype=torch.float64))[0]
    logs = math.log(1e6) * torch.rand(20, n, dtype=torch.float64)
    logs[:, 0], logs[:, -1] = 0.0, math.log(1e6)  # condition number 1e6
    logs[:5] = logs[:5, -1:] / 2  # multiples of the identity
    logs[5:10, 1:] = logs[5:10, -1:]  # a repeated eigenvalue

    def with_eigenvalues(values):
        return rotation * values.unsqueeze(-2) @ rotation.mT

    for size in (1e-8, 1.0, 1e8):
        expected = with_eigenvalues(logs + math.log(size))
        actual = matrix_log(size * with_eigenvalues(logs.exp()))
        assert float((actual - expected).abs().max()) < 1e-9 * math.log(1e6)
        root = matrix_sqrt(size * with_eigenvalues(logs.exp()))
        root = matrix_sqrt(size * with_eigenvalues(logs.exp())) / math.sqrt(size)
        expected = with_eigenvalues((logs / 2).exp())
        assert float((root - expected).abs().max()) < 1e-9 * 1e3


@pytest.mark.parametrize("n", [2, 3])
def test_derivatives_at_repeated_eigenvalues(n):
    # log(I + h) = h - h^2 / 2 + h^3 / 3 - ...
    eye = torch.eye(n, dtype=torch.float64)
    direction = torch.randn(n, n, dtype=torch.float64)
    direction = direction + direction.mT

    def along(t):
        return matrix_log(eye + t * direction)

    zero = torch.zeros((), dtype=torch.float64)
    derivative = along
    for k in range(1, 5):
        derivative = jacfwd(derivative)
        power = torch.linalg.matrix_power(direction, k)
        expected = (-1) ** (k + 1) * math.factorial(k - 1) * power
        torch.testing.assert_close(derivative(zero), expected, rtol=1e-9, atol=1e-9)
    # the volume change along diag(a) is log(sinh(t) / t) = t^2 / 6 - ...
    values = torch.zeros(n, dtype=torch.float64)
    second = hessian(lambda a: exp_log_volume(torch.diag_embed(a)))(values)
    laplacian = (n * eye - 1) / 12
    torch.testing.assert_close(second, laplacian, rtol=1e-9, atol=1e-12)


@over(
    ["affine 2", "affine 3", "log-Euclidean 2", "Bures-Wasserstein 2"]
    + ["off-log 3", "log-scaled 3", "Cholesky", "Lie-Cholesky", "quotient"]
)
def test_log_density_is_twice_differentiable_at_the_mean(space):
    mean = geometry.origin(space)
    law = gf.WrappedNormal(space, mean, 0.7)
    basis = geometry.tangent_basis(space, mean)

    def along(z):
        return law.log_prob((mean + (z @ _flat(space, basis)).reshape(space.shape))[None])[0]

    z = torch.zeros(space.dim, dtype=torch.float64)
    forward, backward = jacfwd(jacfwd(along))(z), jacfwd(grad(along))(z)
    torch.testing.assert_close(forward, backward, rtol=1e-7, atol=1e-7)
    step = 1e-4 * torch.eye(space.dim, dtype=z.dtype)
    difference = torch.stack([grad(along)(d) - grad(along)(-d) for d in step]) / 2e-4
    torch.testing.assert_close(forward, difference, rtol=1e-5, atol=1e-5)
    kernel = grad(lambda x: geometry.kernel_separation(space, x, mean[None])[0].sum())
    assert float(kernel(mean[None]).abs().max()) < 1e-12


@over(
    [
        "affine 2",
        "affine 3",
        "log-Euclidean 2",
        "Bures-Wasserstein 3",
        "off-log 3",
        "log-scaled 3",
        "Cholesky",
        "quotient",
    ]
)
def test_single_precision_and_device(space, device):
    x, mean = _points(space, 20), geometry.origin(space)
    exact = gf.WrappedNormal(space, mean, 0.7).log_prob(x)
    law = gf.WrappedNormal(space, mean.float(), 0.7).to(device)
    single = law.log_prob(x.float().to(device))
    assert single.dtype == torch.float32
    assert single.device.type == device.type
    torch.testing.assert_close(single.cpu().double(), exact, rtol=1e-4, atol=1e-3)
    drawn = law.sample(50)
    assert drawn.dtype == torch.float32
    assert bool(geometry.belongs(space, drawn).all())


def test_affine_distance_is_invariant_and_exact_for_close_points():
    for n in (2, 3):
        space = spd.SPDMatrices(n)
        x, y = points(space, 2)
        action = torch.randn(n, n, dtype=torch.float64)
        moved = [action @ z @ action.mT for z in (x, y)]
        assert float(geometry.dist(space, *moved)) == pytest.approx(
            float(geometry.dist(space, x, y))
        )
        step = 1e-9 * vectors(space, x[None], 1.0)[0]
        assert float(geometry.dist(space, x, x + step)) == pytest.approx(1e-9, rel=1e-5)


def test_projection_of_what_is_not_positive():
    for dtype in (torch.float32, torch.float64):
        for matrix in (torch.zeros(2, 2), -torch.eye(2), torch.ones(2, 2)):
            near = geometry.projection(spd.SPDMatrices(2), matrix.to(dtype))
            torch.linalg.cholesky(near)
            assert float((near - matrix.clamp_min(0)).abs().max()) < 1e-3
