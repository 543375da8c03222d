"""Complex spaces through their real view, against geomstats, calculus and each other."""

import copy
import pickle

import numpy as np
import pytest
import torch
from geomstats.geometry import hpd_matrices as hpd
from geomstats.geometry.complex_matrices import ComplexMatrices
from geomstats.geometry.complex_poincare_disk import ComplexPoincareDisk
from geomstats.geometry.hermitian import Hermitian
from geomstats.geometry.hermitian_matrices import HermitianMatrices
from geomstats.geometry.hyperboloid import Hyperboloid
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.product_hpd_and_siegel_disks import ProductHPDMatricesAndSiegelDisks
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.product_positive_reals_and_poincare_disks import (
    ProductPositiveRealsAndComplexPoincareDisks,
)
from geomstats.geometry.siegel import Siegel
from torch.func import grad, hessian, jvp, vmap

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.networks import SourceField
from geoflow_plugin.spaces.real_view import RealView, narrow, widen


def _hpd(n, metric="Affine", scale=None):
    space = hpd.HPDMatrices(n)
    space.equip_with_metric(getattr(hpd, f"HPD{metric}Metric"))
    if scale is not None:
        space.metric = scale * space.metric
    return space


# name -> complex space, real dimension
MAKE = {
    "ComplexMatrices(2, 1)": (lambda: ComplexMatrices(2, 1), 4),
    "Hermitian(2)": (lambda: Hermitian(2), 4),
    "HermitianMatrices(2)": (lambda: HermitianMatrices(2), 4),
    "HPD(1)": (lambda: _hpd(1), 1),
    "HPD(2)": (lambda: _hpd(2), 4),
    "HPD(2) tripled": (lambda: _hpd(2, scale=3.0), 4),
    "HPD(3)": (lambda: _hpd(3), 9),
    "HPD(2) log-Euclidean": (lambda: _hpd(2, "LogEuclidean", 3.0), 4),
    "HPD(3) log-Euclidean": (lambda: _hpd(3, "LogEuclidean"), 9),
    "HPD(2) Euclidean": (lambda: _hpd(2, "Euclidean"), 4),
    "HPD(2) Bures-Wasserstein": (lambda: _hpd(2, "BuresWasserstein", 3.0), 4),
    "disk": (lambda: ComplexPoincareDisk(), 2),
    "Siegel(1)": (lambda: Siegel(1), 2),
    "Siegel(2)": (lambda: Siegel(2), 8),
    "Siegel(2) symmetric": (lambda: Siegel(2, symmetric=True), 6),
    "Siegel(3)": (lambda: Siegel(3), 18),
    "HPD x Siegel": (lambda: ProductHPDMatricesAndSiegelDisks(2, 2), 12),
    "R+ x disks": (lambda: ProductPositiveRealsAndComplexPoincareDisks(3), 5),
}
# as their kin, but for seconds
SLOW = {"HPD(3) log-Euclidean", "Siegel(3)", "HPD x Siegel", "Siegel(2)"}
SINGLE = ["HPD(2) tripled", "HPD(2) log-Euclidean", "disk", "Siegel(2) symmetric"]
NORMAL = ["HPD(2) tripled", "HPD(2) Bures-Wasserstein", "Siegel(1)", "R+ x disks"]


def over(names):
    return pytest.mark.parametrize("name", list(names))


def _view(name):
    return RealView(MAKE[name][0]())


def _law(space, dtype=torch.float64, scale=0.5):
    return gf.WrappedNormal(space, scale=scale, dtype=dtype)


def _sample(space, n, dtype=torch.float64, seed=0, scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    return _law(space, dtype, scale).sample(n, generator=generator)


def _complex(array):
    return RealView.to_complex(array.numpy())


def _geomstats_gram(space, basis, x):
    """Real parts of geomstats' own inner products, one pair at a time."""
    basis, x = _complex(basis), _complex(x)
    product = space.complex_space.metric.inner_product
    return np.array(
        [
            [[np.real(product(a, b, point)).item() for b in frame] for a in frame]
            for frame, point in zip(basis, x, strict=True)
        ]
    )


# geomstats fails on 1 x 1 matrices, and takes vectors of C^n in batches for matrices
WITNESSED = sorted(set(MAKE) - {"Siegel(1)", "Hermitian(2)"})


@over(WITNESSED)
def test_metric_and_volume_are_those_of_geomstats(name):
    space, dim = _view(name), MAKE[name][1]
    assert space.dim == dim and space.shape == (*space.complex_space.shape, 2)
    x = _sample(space, 2)
    assert np.all(space.belongs(x.numpy(), atol=1e-9))
    drawn = torch.as_tensor(space.random_point(3))
    assert drawn.shape == (3, *space.shape) and bool(geometry.belongs(space, drawn).all())
    basis = geometry.tangent_basis(space, x)
    assert basis.shape[1] == dim
    assert np.all(space.is_tangent(basis[:, 0].numpy(), x.numpy()))
    expected = torch.tensor(_geomstats_gram(space, basis, x))
    torch.testing.assert_close(geometry.gram(space, x), expected)
    volume = 0.5 * torch.linalg.slogdet(expected)[1]
    torch.testing.assert_close(geometry.log_volume_element(space, x), volume)


@over(sorted(set(WITNESSED) - {"HPD(1)"}))
def test_exp_log_and_dist_are_those_of_geomstats(name):
    space = _view(name)
    x, y = _sample(space, 2), _sample(space, 2, seed=1)
    vector = 0.3 * geometry.log(space, y, x)
    metric = space.complex_space.metric
    ours = (
        geometry.exp(space, vector, x),
        geometry.log(space, y, x),
        geometry.dist(space, x, y),
    )
    for k in range(2):
        a, b, v = _complex(x[k]), _complex(y[k]), _complex(vector[k])
        theirs = RealView.to_real(np.asarray(metric.exp(v, a))).reshape(space.shape)
        np.testing.assert_allclose(ours[0][k], theirs, atol=1e-8)
        theirs = RealView.to_real(np.asarray(metric.log(b, a))).reshape(space.shape)
        np.testing.assert_allclose(ours[1][k], theirs, atol=1e-8)
        length = np.sqrt(np.real(metric.squared_norm(_complex(ours[1][k]), a)))
        np.testing.assert_allclose(ours[2][k], length, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in MAKE if name not in SLOW]
    + [(name, torch.float32) for name in SINGLE],
)
def test_laws_of_a_space(name, dtype, device):
    space = _view(name)
    figures = gf.testing.check_space(space, n=8, n_samples=2000, dtype=dtype, device=device)
    assert None not in figures.values()


@over(NORMAL)
def test_laws_of_distributions(name):
    space = _view(name)
    gf.testing.check_distribution(_law(space), n=200)
    kernels = gf.KernelDensity(space, bandwidth=0.4).fit(_sample(space, 10))
    gf.testing.check_distribution(kernels, n=200)


@over(
    ["HPD(2) tripled", "HPD(3)", "Siegel(1)", "Siegel(2)", "Siegel(2) symmetric", "Siegel(3)"]
)
def test_volume_change_is_the_jacobian_of_the_exponential(name):
    # two forms of it, by singular values or eigenvalues and by a determinant
    space = _view(name)
    x, y = _sample(space, 3, scale=1.0), _sample(space, 3, seed=1, scale=1.0)
    squared, change = (t.diagonal() for t in geometry.kernel_separation(space, y, x))
    scale = torch.tensor(0.7, dtype=x.dtype)
    normalizer = geometry.log_kernel_normalizer(space, scale)
    smooth = -geometry.wrapped_normal_log_prob(space, y, x, scale) - normalizer
    torch.testing.assert_close(squared / (2 * scale**2) + change, smooth)
    torch.testing.assert_close(squared.sqrt(), geometry.dist(space, x, y))
    vector, basis = geometry.log(space, y, x), geometry.tangent_basis(space, x)
    frame = vmap(
        lambda b: jvp(lambda v: geometry.exp(space, v, x), (vector,), (b,))[1],
        in_dims=1,
        out_dims=1,
    )(basis).flatten(2)
    there = geometry.tangent_basis(space, y).flatten(2)
    jacobian = torch.linalg.slogdet(frame @ there.mT)[1]
    jacobian = jacobian + geometry.log_volume_element(space, y)
    torch.testing.assert_close(jacobian - geometry.log_volume_element(space, x), change)
    assert bool((geometry.kernel_separation(space, x, x)[0].diagonal() == 0).all())


def test_2x2_matrices_are_the_line_times_hyperbolic_space():
    space, hyperboloid = _view("HPD(2)"), Hyperboloid(3)
    x, y = _sample(space, 5, scale=1.5), _sample(space, 5, seed=1, scale=1.5)

    def split(x):  # X = e^s (t + x sigma), t^2 - x^2 = 1
        half = torch.linalg.slogdet(widen(x))[1] / 4
        x = x * (-half).exp()[:, None, None, None]
        a, d, (b, c) = x[:, 0, 0, 0], x[:, 1, 1, 0], x[:, 1, 0].unbind(-1)
        return half, torch.stack([(a + d) / 2, b, c, (a - d) / 2], dim=-1)

    (s, p), (t, q) = split(x), split(y)
    expected = 2 * ((s - t).square() + geometry.dist(hyperboloid, p, q).square())
    torch.testing.assert_close(geometry.dist(space, x, y).square(), expected)
    _, change = geometry.kernel_separation(space, x, y)
    torch.testing.assert_close(change, geometry.kernel_separation(hyperboloid, p, q)[1])


def test_the_disk_is_the_smallest_siegel_disk():
    disk, siegel = _view("disk"), _view("Siegel(1)")
    x, y = _sample(disk, 5, scale=1.5), _sample(disk, 5, seed=1, scale=1.5)
    scale = torch.tensor(0.8, dtype=x.dtype)
    for function in (
        lambda s, x, y: geometry.dist(s, x, y),
        lambda s, x, y: geometry.kernel_separation(s, x, y)[1],
        lambda s, x, y: geometry.wrapped_normal_log_prob(s, x, y, scale),
    ):
        expected = function(siegel, x.unsqueeze(-2), y.unsqueeze(-2))
        torch.testing.assert_close(function(disk, x, y), expected)


@over(["HPD(2)", "HPD(3)"])
def test_the_affine_law_is_invariant_under_congruence(name):
    space = _view(name)
    x, mean = _sample(space, 4), _sample(space, 4, seed=1)
    matrix = torch.randn(space.shape, dtype=x.dtype)
    scale = torch.tensor(0.6, dtype=x.dtype)

    def move(x):  # by the matrix as it is then
        return narrow(widen(matrix) @ widen(x) @ widen(matrix).mT)

    moved = geometry.wrapped_normal_log_prob(space, move(x), move(mean), scale)
    torch.testing.assert_close(geometry.wrapped_normal_log_prob(space, x, mean, scale), moved)
    unitary = torch.linalg.qr(RealView.to_complex(matrix))[0]
    matrix = RealView.to_real(unitary)
    torch.testing.assert_close(_law(space).log_prob(x), _law(space).log_prob(move(x)))


@over(["HPD(2)", "HPD(3)", "HPD(2) log-Euclidean", "Siegel(2) symmetric"])
def test_second_derivatives_at_repeated_eigenvalues(name):
    space = _view(name)
    origin = geometry.origin(space)
    scale = torch.tensor(0.5, dtype=origin.dtype)
    basis = geometry.tangent_basis(space, origin)

    def log_prob(coordinates):
        x = origin + (coordinates[:, None, None, None] * basis).sum(0)
        return geometry.wrapped_normal_log_prob(space, x[None], origin[None], scale)[0]

    zero = torch.zeros(space.dim, dtype=origin.dtype)
    step = 1e-5 * torch.eye(space.dim, dtype=origin.dtype)
    numeric = (vmap(grad(log_prob))(step) - vmap(grad(log_prob))(-step)) / 2e-5
    torch.testing.assert_close(hessian(log_prob)(zero), numeric, atol=1e-5, rtol=1e-5)


def test_far_out_in_single_precision():
    for name in ("Siegel(1)", "Siegel(2)"):
        space = _view(name)
        vector = 3 * geometry.tangent_basis(space, geometry.origin(space))
        x = geometry.exp(space, vector, torch.zeros_like(vector))
        length = geometry.dist(space, x.float(), torch.zeros_like(x).float())
        torch.testing.assert_close(length, torch.full_like(length, 3.0), rtol=1e-3, atol=0)
        back = geometry.log(space, x.float(), torch.zeros_like(x).float())
        torch.testing.assert_close(back, vector.float(), rtol=1e-3, atol=1e-3)


def test_a_moser_flow_on_hpd():
    space = _view("HPD(2)")
    x = _sample(space, 200)
    mean = geometry.exp(space, 0.5 * geometry.tangent_basis(space, x)[:, 0], x)
    field = SourceField(space, n_sources=16, dtype=torch.float64)
    space.equip_with_distribution("moser", field=field)
    flow = space.distribution.fit(mean, max_steps=20, progress=False)
    value = flow.log_prob(x)
    assert value.shape == (200,) and bool(value.isfinite().all())
    assert bool(geometry.belongs(space, flow.sample(20)).all())


def test_a_view_follows_its_space():
    space = _hpd(2)
    view = RealView(space)
    view.equip_with_distribution("wrapped_normal", dtype=torch.float64)
    law, x = view.distribution, _sample(view, 3)
    value = law.log_prob(x)
    for twin in (copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
        torch.testing.assert_close(twin.log_prob(x), value)
        assert type(twin.space) is type(view) and twin.space.complex_space is not space
    space.equip_with_metric(hpd.HPDEuclideanMetric)
    with pytest.raises(ValueError, match="metric changed"):
        law.log_prob(x)
    assert view.equip_with_metric(hpd.HPDAffineMetric) is view
    assert isinstance(space.metric, hpd.HPDAffineMetric)
    for array in (x, x.float(), x.numpy(), x.float().numpy()):
        back = RealView.to_real(RealView.to_complex(array))
        assert type(back) is type(array) and back.dtype == array.dtype
        assert np.array_equal(back, array)


def test_views_are_factors_like_any_other():
    space = ProductManifold([_view("HPD(2)"), Hypersphere(2), _view("Siegel(2)")])
    assert gf.WrappedNormal(space).log_prob(gf.WrappedNormal(space).sample(3)).shape == (3,)
    space = NFoldManifold(_view("disk"), 2)
    assert space.shape == (2, 1, 2) and space.dim == 4
    mixed = RealView(ProductManifold([_hpd(2), Hypersphere(2)]))  # one complex vector
    assert mixed.dim == 6 and mixed.shape == (7, 2)
    gf.testing.check_space(mixed, n=8, n_samples=500)


def test_refusals():
    class Unknown(Siegel.__bases__[0]):
        belongs = None

    with pytest.raises(TypeError, match="Hypersphere is no complex space"):
        RealView(Hypersphere(2))
    with pytest.raises(TypeError, match="no factor is complex"):
        RealView(ProductManifold([Hypersphere(2), Hypersphere(1)]))
    with pytest.raises(TypeError, match="no real view of Unknown"):
        RealView(object.__new__(type("Unknown", (Unknown,), {"random_point": None})))
    with pytest.raises(TypeError):
        gf.WrappedNormal(_hpd(2))
