"""Frames, planes, pre-shapes, rigid motions, rotation vectors, groups and full rank."""

import math

import numpy as np
import pytest
import torch
from conftest import assert_mean
from geomstats.geometry.full_rank_matrices import FullRankMatrices
from geomstats.geometry.general_linear import GeneralLinear
from geomstats.geometry.grassmannian import Grassmannian
from geomstats.geometry.heisenberg import HeisenbergVectors
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.invariant_metric import InvariantMetric
from geomstats.geometry.pre_shape import PreShapeSpace
from geomstats.geometry.special_euclidean import (
    SpecialEuclidean,
    SpecialEuclideanMatricesLieAlgebra,
)
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from geomstats.geometry.stiefel import Stiefel
from torch.func import grad, jacfwd, jvp, vmap

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.calculus import divergence
from geoflow_plugin.testing import check_distribution, check_space


def _doubled(space):
    space.metric = 2.0 * space.metric
    return space


MAKE = {
    "St(3,1)": lambda: Stiefel(3, 1),
    "St(4,2)": lambda: Stiefel(4, 2),
    "St(4,3)": lambda: Stiefel(4, 3),
    "St(3,3)": lambda: Stiefel(3, 3),
    "St(4,2) doubled": lambda: _doubled(Stiefel(4, 2)),
    "St(3,2) flat": lambda: Stiefel(3, 2, equip=False),
    "Gr(4,2)": lambda: Grassmannian(4, 2),
    "Gr(3,1)": lambda: Grassmannian(3, 1),
    "Gr(5,3) doubled": lambda: _doubled(Grassmannian(5, 3)),
    "pre-shapes": lambda: PreShapeSpace(4, 2),
    "SE2": lambda: SpecialEuclidean(2),
    "SE3": lambda: SpecialEuclidean(3),
    "SO2 vectors": lambda: SpecialOrthogonal(2, point_type="vector"),
    "SO3 vectors": lambda: SpecialOrthogonal(3, point_type="vector"),
    "SO3 vectors doubled": lambda: _doubled(SpecialOrthogonal(3, point_type="vector")),
    "SE2 vectors": lambda: SpecialEuclidean(2, point_type="vector"),
    "SE3 vectors": lambda: SpecialEuclidean(3, point_type="vector"),
    "Heisenberg": lambda: HeisenbergVectors(),
    "GL(2)": lambda: GeneralLinear(2),
    "GL(2)+": lambda: GeneralLinear(2, positive_det=True),
    "GL(1)+": lambda: GeneralLinear(1, positive_det=True),
    "full rank": lambda: FullRankMatrices(3, 2),
}
COMPACT = [n for n in MAKE if n[:2] in ("St", "Gr", "SO", "pr")]
# normal laws of our own making
CARRIED = [n for n in MAKE if n[:2] in ("St", "Gr") and n != "St(3,1)"]
FREE = [n for n in MAKE if "vectors" in n]


@pytest.fixture
def space(request):
    return MAKE[request.param]()


def over(names):
    return pytest.mark.parametrize("space", names, indirect=True)


def sample(space, n, scale=0.5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = geometry.origin(space).to(dtype)
    return geometry.random_wrapped_normal(
        space, mean.expand(n, *mean.shape), torch.tensor(scale, dtype=dtype), generator
    )


def tangents(space, x, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return geometry.to_tangent(space, vector, x)


@over(MAKE)
def test_flat_geometry(space):
    x = sample(space, 5)
    rows = geometry.tangent_basis(space, x).flatten(2)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(space.dim).to(x).expand(5, -1, -1))
    vector = torch.randn_like(x)
    spanned = ((rows @ vector.flatten(1)[..., None]) * rows).sum(1).reshape(x.shape)
    torch.testing.assert_close(geometry.to_tangent(space, vector, x), spanned)
    torch.testing.assert_close(geometry.projection(space, x), x)
    _, pushed = jvp(lambda y: geometry.projection(space, y), (x,), (vector,))
    torch.testing.assert_close(pushed, spanned)  # nearest points, to first order
    for near in (x, geometry.projection(space, x + 0.05 * vector)):
        assert geometry.constraint_residual(space, near).max() < 1e-12
    if math.prod(space.shape) > space.dim:
        assert (geometry.constraint_residual(space, x + 0.1) > 1e-3).all()
    mapped = vmap(lambda y: geometry.tangent_basis(space, y))(x).flatten(2)
    torch.testing.assert_close(mapped.mT @ mapped, rows.mT @ rows)


@over([n for n in MAKE if n not in ("SO2 vectors", "St(3,2) flat")])
def test_geomstats_agrees(space):
    """But for SO(2) vectors, where geomstats' inner product raises."""
    x = sample(space, 6)
    a, b = tangents(space, x), tangents(space, x, seed=1)
    assert space.belongs(np.asarray(x), atol=1e-8).all()
    one_by_one = (map(np.asarray, arrays) for arrays in zip(a, b, x, strict=True))
    expected = [np.ravel(space.metric.inner_product(*arrays))[0] for arrays in one_by_one]
    ours = geometry.inner_product(space, a, b, x)
    np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-9)
    if isinstance(space, Stiefel | Grassmannian | PreShapeSpace):
        vector = np.random.default_rng(0).normal(size=x.shape)
        expected = space.to_tangent(vector, np.asarray(x))
        ours = geometry.to_tangent(space, torch.tensor(vector), x)
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@over(["St(4,2)", "St(4,3)", "Gr(4,2)", "Gr(3,1)", "pre-shapes", "SE2", "SE3", "SO3 vectors"])
def test_exp_is_geomstats(space):
    x, n = sample(space, 6), np.asarray
    v = 0.6 * tangents(space, x)
    y = geometry.exp(space, v, x)
    expected = [space.metric.exp(n(a), n(p)) for a, p in zip(v, x, strict=True)]
    np.testing.assert_allclose(y, np.reshape(expected, y.shape), atol=1e-7)
    torch.testing.assert_close(geometry.log(space, y, x), v)
    length = geometry.inner_product(space, v, v, x).sqrt()
    torch.testing.assert_close(geometry.dist(space, x, y), length)


@over(MAKE)
def test_volume_element_is_the_gram_determinant(space):
    x = sample(space, 4)
    basis = geometry.tangent_basis(space, x)
    pairs = [
        geometry.inner_product(space, basis[:, i], basis[:, j], x)
        for i in range(space.dim)
        for j in range(space.dim)
    ]
    gram = torch.stack(pairs, -1).reshape(4, space.dim, space.dim)
    element = geometry.log_volume_element(space, x)
    torch.testing.assert_close(element, 0.5 * torch.linalg.slogdet(gram)[1])
    covector = tangents(space, x)
    sharp = geometry.sharp(space, covector, x)
    torch.testing.assert_close(
        geometry.inner_product(space, sharp, basis[:, 0], x),
        (covector * basis[:, 0]).flatten(1).sum(-1),
    )


def test_rotation_volume_element_is_smooth_at_the_origin():
    space = SpecialOrthogonal(3, point_type="vector")
    element = lambda v: geometry.log_volume_element(space, v)  # noqa: E731
    hessian = jacfwd(jacfwd(element))(torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(hessian, -torch.eye(3, dtype=torch.float64) / 6)
    v = torch.tensor([[0.2, 0.2, 0.0], [0.0, 0.0, math.pi]], dtype=torch.float64)
    t = v.norm(dim=-1)
    torch.testing.assert_close(element(v), (2 * (1 - t.cos()) / t**2).log())


@over(CARRIED)
def test_carried_laws_have_the_density_of_their_map(space):
    """Against the brute-force Jacobian of tangent coordinates -> points."""
    mean = sample(space, 1, seed=3)[0]
    basis = geometry.tangent_basis(space, mean)
    basis = torch.linalg.solve(
        torch.linalg.cholesky(geometry.gram(space, mean)), basis.flatten(1)
    ).reshape(basis.shape)  # orthonormal in the metric
    scale = torch.tensor(0.7, dtype=torch.float64)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(space.dim, generator=generator, dtype=torch.float64)

        def carry(z):
            v = torch.tensordot(z, basis, dims=1)
            return geometry.retraction(space, v, mean)

        point, columns = carry(z), jacfwd(carry)(z).flatten(0, -2)
        frame = geometry.tangent_basis(space, point).flatten(1)
        volume = torch.linalg.slogdet(frame @ columns)[1]
        volume = volume + geometry.log_volume_element(space, point)
        squared, change = geometry.kernel_separation(space, point[None], mean[None])
        torch.testing.assert_close(squared[0, 0], z.square().sum())
        torch.testing.assert_close(change[0, 0], volume)
        log_prob = geometry.wrapped_normal_log_prob(space, point[None], mean[None], scale)
        normal = torch.distributions.Normal(0.0, scale).log_prob(z).sum()
        torch.testing.assert_close(log_prob[0], normal - volume)


@over(CARRIED)
def test_carried_kernels_at_and_near_their_centres(space):
    x = sample(space, 5, scale=1.0).requires_grad_()
    squared, _ = geometry.kernel_separation(space, x, x.detach())
    assert (squared.diagonal() == 0).all()
    v = tangents(space, x.detach())
    near = geometry.retraction(space, 1e-6 * v, x.detach())
    squared, _ = geometry.kernel_separation(space, near, x.detach())
    expected = 1e-12 * geometry.inner_product(space, v, v, x.detach())
    torch.testing.assert_close(squared.diagonal(), expected, rtol=1e-6, atol=0)
    if isinstance(space, Grassmannian) and space.n != 2 * space.p:
        return
    far = -x if isinstance(space, Stiefel) else torch.eye(space.n) - x
    squared, change = geometry.kernel_separation(space, far, x.detach())
    assert (squared.diagonal() > 1e5).all()
    (squared.clamp_max(1e9) + change).sum().backward()
    assert x.grad.isfinite().all()


@over(COMPACT)
def test_uniform_is_haar_and_has_the_stated_volume(space):
    """Kernels integrate to one; the first two moments are those of Haar measure."""
    x = geometry.quasi_uniform(space, 4096)
    assert geometry.constraint_residual(space, x).max() < 1e-9
    center = sample(space, 8, scale=0.3)
    kernels = gf.KernelDensity(space, bandwidth=0.7).fit(center)
    ratio = (kernels.log_prob(x) + geometry.log_volume(space)).exp()
    assert_mean(ratio, 1.0)
    x = geometry.random_uniform(space, 4096, torch.Generator().manual_seed(0), dtype=x.dtype)
    if isinstance(space, Stiefel):
        assert_mean(x.flatten(1), 0.0)
        assert_mean(x[:, :, 0].square(), 1 / space.n)
    elif isinstance(space, Grassmannian):
        assert_mean(x.flatten(1), (torch.eye(space.n) * space.p / space.n).flatten())


@pytest.mark.parametrize(
    ("space", "volume"),
    [
        (Stiefel(3, 1), 4 * math.pi),
        (Stiefel(3, 2), 8 * math.pi**2),  # SO(3)
        (Stiefel(2, 2), 4 * math.pi),  # O(2)
        (Grassmannian(2, 1), math.sqrt(2) * math.pi),
        (Grassmannian(3, 1), 4 * math.pi),  # half a sphere, twice the metric
        (Grassmannian(3, 2), 4 * math.pi),
        (PreShapeSpace(3, 2), 2 * math.pi**2),
        (SpecialOrthogonal(2, point_type="vector"), 2 * math.pi),
        (SpecialOrthogonal(3, point_type="vector"), 8 * math.pi**2),
    ],
)
def test_volumes_known_by_hand(space, volume):
    assert math.exp(geometry.log_volume(space)) == pytest.approx(volume)


@over([n for n in MAKE if n not in COMPACT])
def test_normal_laws_and_kernels_integrate_to_one(space):
    law = gf.WrappedNormal(space, geometry.origin(space), 0.5)
    data = law.sample(30, generator=torch.Generator().manual_seed(0))
    kernels = gf.KernelDensity(space, bandwidth=0.4).fit(data)
    wide = gf.WrappedNormal(space, geometry.origin(space), 1.0)
    x = wide.sample(4000, generator=torch.Generator().manual_seed(1))
    for density in (law, kernels):
        assert_mean((density.log_prob(x) - wide.log_prob(x)).exp(), 1.0)


@over(CARRIED)
def test_normal_samples_agree_with_their_density(space):
    law = gf.WrappedNormal(space, sample(space, 1, seed=3)[0], 0.6)
    x = law.sample(4000, generator=torch.Generator().manual_seed(1))
    squared, _ = geometry.kernel_separation(space, x, law.mean[None])
    assert_mean(squared[:, 0] / law.scale**2, float(space.dim))


def test_isometries():
    """St(3,1) is a sphere, St(3,2) is SO(3): exponentials and divergences agree."""
    pairs = [
        (Stiefel(3, 1), Hypersphere(2), lambda y: y.unsqueeze(-1)),
        (Stiefel(3, 2), SpecialOrthogonal(3), lambda y: y[..., :2]),
    ]
    for space, twin, carry in pairs:
        y = geometry.quasi_uniform(twin, 8)
        x, v = carry(y), tangents(twin, y)
        w = carry(v)
        image = carry(geometry.exp(twin, v, y))
        torch.testing.assert_close(geometry.exp(space, w, x), image)
        weight = torch.randn(x[0].numel(), x[0].numel(), dtype=x.dtype)

        def scalar(x, weight=weight):
            return (x.flatten(1) @ weight).sin().sum(-1)

        torch.testing.assert_close(
            gf.laplacian(space, scalar, x),
            gf.laplacian(twin, lambda y, carry=carry: scalar(carry(y)), y),
        )
        assert geometry.log_volume(space) == pytest.approx(geometry.log_volume(twin))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_densities_on_frames_of_one_column_are_those_on_the_sphere(n, scale):
    space, twin = Stiefel(n, 1), Hypersphere(n - 1)
    for each in (space, twin):
        each.metric = scale * each.metric
    x = geometry.quasi_uniform(twin, 200)
    far = torch.cat([x, -x[:1], x[:1]])
    laws = [
        gf.WrappedNormal(space, x[0].unsqueeze(-1), 0.7),
        gf.KernelDensity(space, bandwidth=0.1).fit(x[:50].unsqueeze(-1), seed=0),
        gf.KernelDensity(space).fit(x[:50].unsqueeze(-1), seed=0),
    ]
    twins = [
        gf.WrappedNormal(twin, x[0], 0.7),
        gf.KernelDensity(twin, bandwidth=0.1).fit(x[:50], seed=0),
        gf.KernelDensity(twin).fit(x[:50], seed=0),
    ]
    for law, other in zip(laws, twins, strict=True):
        torch.testing.assert_close(
            law.log_prob(far.unsqueeze(-1)), other.log_prob(far), atol=1e-6, rtol=0
        )
        gf.testing.check_distribution(law)


@over([*FREE, "SE3", "pre-shapes"])
def test_carried_densities_are_those_of_the_model(space):
    """And continuous through half turns, where v and -v are one rotation."""
    found, scale = geometry.model(space), torch.tensor(1.2, dtype=torch.float64)
    x = sample(space, 16, scale=1.0)
    mean = sample(space, 1, seed=5)[0].expand_as(x)
    ours = geometry.wrapped_normal_log_prob(space, x, mean, scale)
    c = geometry.outer_scale(space)
    theirs = geometry.wrapped_normal_log_prob(
        found.space, found.to_model(x), found.to_model(mean), scale / math.sqrt(c)
    )
    torch.testing.assert_close(ours, theirs - 0.5 * space.dim * math.log(c), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.from_model(found.to_model(x)), x)
    if len(space.shape) == 1:
        k = {2: 1, 3: 3}[space.n]
        turn = x[:, :k] / x[:, :k].norm(dim=-1, keepdim=True) * math.pi
        ends = [torch.cat([s * turn, x[:, k:]], -1) for s in (1, -1)]
        values = [geometry.wrapped_normal_log_prob(space, e, mean, scale) for e in ends]
        torch.testing.assert_close(*values)
        images = [geometry.embed(space, end) for end in ends]
        torch.testing.assert_close(*images)  # what fields see
        wrapped = geometry.projection(space, torch.cat([1.5 * turn, x[:, k:]], -1))
        torch.testing.assert_close(wrapped, torch.cat([-0.5 * turn, x[:, k:]], -1))


def test_positive_determinants_stay_positive():
    space = GeneralLinear(2, positive_det=True)
    x = torch.tensor([[[1.0, 0], [0, -2]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]])
    assert (geometry.constraint_residual(space, x) > 1e-3).all()
    assert (torch.linalg.det(geometry.projection(space, x)) > 0).all()
    assert (torch.linalg.det(gf.WrappedNormal(space, scale=3.0).sample(500)) > 0).all()
    assert (geometry.constraint_residual(GeneralLinear(2), x)[1:] > 1e-3).all()


@over(MAKE)
def test_gradients_are_finite_and_single_precision_agrees(space, device):
    law = gf.WrappedNormal(space, geometry.origin(space), 0.8).to(device)
    x = torch.cat([law.mean[None], sample(space, 4).to(device)]).requires_grad_()
    value = law.log_prob(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all()
    assert value.device.type == device.type
    single = gf.WrappedNormal(space, geometry.origin(space).float(), 0.8).to(device)
    rounded = single.log_prob(x.detach().float())
    assert rounded.dtype == torch.float32
    # at the mean itself rounding bounds the density's pole
    torch.testing.assert_close(rounded.double()[1:], value.detach()[1:], atol=2e-4, rtol=1e-4)

    def field(y):
        return torch.tanh(y) * y.sum(-1, keepdim=True)

    for dtype in (torch.float32, torch.float64):
        result = divergence(space, field, x.detach().to(dtype))
        assert result.isfinite().all() and result.dtype == dtype


@over(CARRIED)
def test_mixed_derivatives_agree(space):
    """Reverse over forward, which torch gets wrong for slogdet and solve."""
    x, mean = sample(space, 3), sample(space, 1, seed=2).expand(3, *space.shape)
    u, v = tangents(space, x), tangents(space, x, seed=1)
    scale = torch.tensor(0.5, dtype=x.dtype)
    for function in (
        lambda y: geometry.wrapped_normal_log_prob(space, y, mean, scale).sum(),
        lambda y: geometry.retraction(space, 0.3 * (y - mean), mean).sin().sum(),
    ):
        mixed = grad(lambda y: jvp(function, (y,), (u,))[1])(x)  # noqa: B023
        other = grad(lambda y: jvp(function, (y,), (v,))[1])(x)  # noqa: B023
        torch.testing.assert_close((mixed * v).sum(), (other * u).sum())


@over(["St(4,2)", "Gr(4,2)", "pre-shapes"])
def test_divergences_have_mean_zero(space):
    """Stokes' theorem, on which Moser flows rest."""
    x = geometry.random_uniform(space, 4000, torch.Generator().manual_seed(0))
    weight = torch.randn(x[0].numel(), x[0].numel(), dtype=x.dtype)
    field = lambda y: (y.flatten(1) @ weight).sin().reshape(y.shape)  # noqa: E731
    assert_mean(divergence(space, field, x), 0.0)


def test_refusals():
    right = SpecialEuclidean(2, point_type="vector", equip=False)
    right.equip_with_metric(InvariantMetric, left=False)
    for space in (right, SpecialOrthogonal(3, "vector", equip=False)):
        with pytest.raises(TypeError):
            geometry.log_volume_element(space, torch.zeros(1, *space.shape))
        with pytest.raises(TypeError):
            gf.WrappedNormal(space)


@pytest.mark.parametrize("n", [2, 3])
def test_infinitesimal_rigid_motions_are_a_flat_space(n):
    space = SpecialEuclideanMatricesLieAlgebra(n)
    check_space(space)
    law = gf.WrappedNormal(space, scale=0.5, dtype=torch.float64)
    check_distribution(law, n=200)
    x = law.sample(20)
    assert space.belongs(x.numpy()).all()
    # the metric is the Frobenius product of matrices, of all entries
    squared = x.square().sum((-2, -1))
    expected = -0.5 * squared / 0.25 - 0.5 * space.dim * math.log(2 * math.pi * 0.25)
    torch.testing.assert_close(law.log_prob(x), expected)
