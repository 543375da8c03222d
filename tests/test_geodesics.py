"""Exponentials and logarithms: against geomstats' own, and against each other."""

import math

import numpy as np
import pytest
import torch
from conftest import points
from geomstats.geometry.general_linear import GeneralLinear
from geomstats.geometry.heisenberg import HeisenbergVectors
from geomstats.geometry.invariant_metric import InvariantMetric
from geomstats.geometry.spd_matrices import LieCholeskyMetric, SPDMatrices
from geomstats.geometry.stiefel import Stiefel
from geomstats.information_geometry.beta import BetaDistributions
from geomstats.information_geometry.binomial import BinomialDistributions
from geomstats.information_geometry.categorical import CategoricalDistributions
from geomstats.information_geometry.dirichlet import DirichletDistributions
from geomstats.information_geometry.gamma import GammaDistributions
from geomstats.information_geometry.geometric import GeometricDistributions
from geomstats.information_geometry.multinomial import MultinomialDistributions
from geomstats.information_geometry.poisson import PoissonDistributions
from torch.func import jacfwd, vmap

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError


def _length(space, vector, point):
    return geometry.inner_product(space, vector, vector, point).sqrt()


def _of_length(space, base_point, length, seed=0):
    generator = torch.Generator(base_point.device).manual_seed(seed)
    vector = geometry.random_tangent_normal(space, base_point, generator)
    size = _length(space, vector, base_point)
    return vector * (length / size).reshape(-1, *[1] * len(space.shape))


# Stiefel manifolds ----------------------------------------------------------------------


def _frames(n, p, size=100, dtype=torch.float64, device="cpu"):
    space = Stiefel(n, p)
    generator = torch.Generator(device).manual_seed(n * p)
    return space, geometry.random_uniform(space, size, generator, dtype=dtype)


@pytest.mark.parametrize(("n", "p"), [(3, 1), (3, 2), (4, 2), (5, 2), (5, 3), (3, 3)])
@pytest.mark.parametrize("length", [0.0, 1e-8, 1.0, 0.88 * math.pi])
def test_stiefel_logarithm_undoes_the_exponential(n, p, length, device):
    space, x = _frames(n, p, device=device)
    vector = _of_length(space, x, length)
    y = geometry.exp(space, vector, x)
    assert torch.allclose(geometry.log(space, y, x), vector, atol=1e-11, rtol=1e-9)
    assert torch.allclose(geometry.dist(space, y, x), torch.full((), length).to(x), atol=1e-11)


def test_stiefel_logarithm_is_that_of_geomstats():
    space, x = _frames(4, 2, 4)
    y = geometry.exp(space, _of_length(space, x, 1.5), x)
    theirs = space.metric.log(y.numpy(), x.numpy())
    assert np.allclose(geometry.log(space, y, x), theirs, atol=1e-6)


@pytest.mark.parametrize(("n", "p"), [(4, 2), (5, 3), (3, 3)])
def test_stiefel_logarithm_says_where_it_fails(n, p):
    """Of any two frames: NaN, or a vector whose exponential is the other one."""
    space, x = _frames(n, p, 400)
    x, y = x.split(200)
    vector = geometry.log(space, y, x)
    found = vector.flatten(1).isfinite().all(1)
    assert found.double().mean() > (0.4 if n == p else 0.9)
    reached = geometry.exp(space, vector[found], x[found])
    assert (reached - y[found]).abs().max() < 1e-7
    if n == p:  # orthogonal matrices of the other sign are out of reach
        assert bool((torch.linalg.det(x.mT @ y) > 0)[found].all())


def test_stiefel_logarithm_in_single_precision():
    space, x = _frames(5, 2, dtype=torch.float32)
    vector = _of_length(space, x, 2.5)
    back = geometry.log(space, geometry.exp(space, vector, x), x)
    assert back.dtype == torch.float32
    assert (back - vector).abs().max() < 1e-4


def test_stiefel_logarithm_has_derivatives():
    space, x = _frames(4, 2, 2)
    y = geometry.exp(space, _of_length(space, x, 1.0), x)

    def log(a, b):
        a, b = (geometry.projection(space, c) for c in (a, b))
        return geometry.log(space, a, b)

    inputs = (y[:1].requires_grad_(), x[:1].requires_grad_())
    assert torch.autograd.gradcheck(log, inputs)
    assert torch.autograd.gradgradcheck(log, inputs)
    x, y = x.detach(), y.detach()
    each = vmap(lambda a, b: geometry.log(space, a, b))(y, x)
    assert torch.allclose(each, geometry.log(space, y, x), atol=1e-12)
    start = x[:1].clone().requires_grad_()
    slope = torch.autograd.grad(geometry.dist(space, start, x[:1]).sum(), start)[0]
    assert slope.isfinite().all()


# Laws with closed forms -------------------------------------------------------------------

CLOSED = {
    "Poisson": PoissonDistributions,
    "geometric": GeometricDistributions,
    "binomial": lambda: BinomialDistributions(5),
    "categorical": lambda: CategoricalDistributions(3),
    "multinomial": lambda: MultinomialDistributions(2, 5),
    "positive determinant": lambda: GeneralLinear(2, positive_det=True),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_agree_with_geomstats(name):
    space = CLOSED[name]()
    x, y = points(space, 20), points(space, 20)
    x, y = geometry.projection(space, x), geometry.projection(space, y)
    vector = geometry.log(space, y, x)
    theirs = np.asarray(space.metric.log(y.numpy(), x.numpy())).reshape(vector.shape)
    assert np.allclose(vector, theirs, atol=1e-7)
    ends = space.metric.exp(vector.numpy(), x.numpy()).reshape(y.shape)
    assert np.allclose(geometry.exp(space, vector, x), ends, atol=1e-7)
    distance = np.reshape(space.metric.dist(x.numpy(), y.numpy()), -1)
    assert np.allclose(geometry.dist(space, x, y), distance)


@pytest.mark.parametrize("name", ["Poisson", "geometric", "binomial", "categorical"])
def test_steps_across_the_edge_come_out_beyond_it(name):
    space = CLOSED[name]()
    x = geometry.projection(space, points(space, 20))
    edge = torch.zeros_like(x)
    edge[:, 0] = 0.0 if name == "Poisson" else 1.0
    out = geometry.exp(space, 1.2 * geometry.log(space, edge, x), x)
    assert out.isfinite().all()
    assert not geometry.belongs(space, out).any()


# The Heisenberg group -------------------------------------------------------------------


def _heisenberg(left):
    space = HeisenbergVectors(equip=False)
    space.equip_with_metric(InvariantMetric, left=left)
    return space


def _integrated(space, vector, point, n_steps=64):
    """The geodesic's end by Christoffel symbols of geomstats' metric."""
    eye = torch.eye(3, dtype=point.dtype)

    def metric(p):
        return geometry.inner_product(space, eye[:, None], eye[None], p.expand(3, 3, 3))

    def rate(p, u):
        slope = jacfwd(metric)(p)
        force = torch.einsum("ijk,k,j->i", slope, u, u)
        force = force - 0.5 * torch.einsum("ijk,i,j->k", slope, u, u)
        return torch.cat([u, -torch.linalg.inv(metric(p)) @ force])

    state, h = torch.cat([point, vector]), 1 / n_steps
    for _ in range(n_steps):
        a = rate(*state.split(3))
        b = rate(*(state + h / 2 * a).split(3))
        c = rate(*(state + h / 2 * b).split(3))
        d = rate(*(state + h * c).split(3))
        state = state + h / 6 * (a + 2 * b + 2 * c + d)
    return state[:3]


@pytest.mark.parametrize("left", [True, False])
def test_heisenberg_geodesics(left, device):
    space = _heisenberg(left)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 3, generator=generator, dtype=torch.float64)
    inner = space.metric.inner_product(y[0].numpy(), x[1].numpy(), x[0].numpy())
    assert np.allclose(geometry.inner_product(space, y[0], x[1], x[0]), inner)
    end = geometry.exp(space, y[0], x[0])
    assert torch.allclose(end, _integrated(space, y[0], x[0]), atol=1e-5)
    x, y = (4 * x).to(device), (4 * y).to(device)
    vector = geometry.log(space, y, x)
    assert torch.allclose(geometry.exp(space, vector, x), y, atol=1e-11)
    # short of a full turn, geodesics are the only shortest ones
    short = _of_length(space, x, 6.0)
    back = geometry.log(space, geometry.exp(space, short, x), x)
    assert torch.allclose(back, short, atol=1e-9)
    assert torch.allclose(geometry.dist(space, x, y), geometry.dist(space, y, x))


def test_heisenberg_cut_locus_and_derivatives():
    space = _heisenberg(True)
    origin = torch.zeros(2, 3, dtype=torch.float64)
    axis = torch.tensor([[0.0, 0.0, 10.0], [0.0, 0.0, -5.0]], dtype=torch.float64)
    vector = geometry.log(space, axis, origin)
    assert torch.allclose(geometry.exp(space, vector, origin), axis, atol=1e-12)
    # the circle that encloses the height, not the vertical line, is shortest
    expected = torch.tensor([math.sqrt(4 * math.pi * (10 - math.pi)), 5.0]).to(vector)
    assert torch.allclose(geometry.dist(space, axis, origin), expected)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: geometry.log(space, a, b), (x, y))
    assert torch.autograd.gradgradcheck(lambda a, b: geometry.log(space, a, b), (x, y))


# Lie-Cholesky ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_lie_cholesky_exponential_agrees_with_geomstats(n):
    space = SPDMatrices(n, equip=False).equip_with_metric(LieCholeskyMetric)
    x = points(SPDMatrices(n), 4)
    vector = _of_length(space, x, 1.0)
    inner = np.squeeze(space.metric.inner_product(vector.numpy(), vector.numpy(), x.numpy()))
    assert np.allclose(inner, 1.0)
    solver = space.metric.image_space.metric.exp_solver
    solver.integrator.options.update(rtol=1e-10, atol=1e-12)
    theirs = space.metric.exp(vector.numpy(), x.numpy()).reshape(x.shape)
    ours = geometry.exp(space, vector, x)
    assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    if n == 2:
        assert torch.allclose(geometry.log(space, ours, x), vector, atol=1e-9)
    if n == 3:
        with pytest.raises(UnsupportedError):
            geometry.log(space, ours, x)


# Laws without closed forms ----------------------------------------------------------------

NUMERIC = {
    "beta": BetaDistributions,
    "gamma": GammaDistributions,
    "Dirichlet": lambda: DirichletDistributions(3),
}


def _parameters(space, size, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(size, space.dim, generator=generator, dtype=dtype)
    return (0.7 * drawn).exp().to(device)


@pytest.mark.parametrize("name", NUMERIC)
def test_geodesics_of_laws_agree_with_geomstats(name):
    space = NUMERIC[name]()
    x = _parameters(space, 3)
    vector = _of_length(space, x, 1.0)
    ours = geometry.exp(space, vector, x)
    space.metric.exp_solver.integrator.options.update(rtol=1e-9, atol=1e-11)
    assert np.allclose(ours, space.metric.exp(vector.numpy(), x.numpy()), rtol=1e-6)


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("length", [0.0, 2.0])
def test_logarithms_of_laws_undo_exponentials(name, length, device):
    space = NUMERIC[name]()
    x = _parameters(space, 20, device=device)
    vector = _of_length(space, x, length)
    back = geometry.log(space, geometry.exp(space, vector, x), x)
    assert torch.allclose(back, vector, rtol=1e-5, atol=1e-8)


def test_logarithms_of_laws_have_derivatives():
    space = BetaDistributions()
    x, y = _parameters(space, 2).split(1)
    inputs = (y.requires_grad_(), x.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: geometry.log(space, a, b), inputs)
    alike = x.detach().clone().requires_grad_()
    slope = torch.autograd.grad(geometry.dist(space, alike, x.detach()).sum(), alike)[0]
    assert slope.isfinite().all()


def test_logarithms_out_of_reach_are_not_numbers():
    space = GammaDistributions()
    x, y = torch.tensor([[1e-3, 1e-3]]).double(), torch.tensor([[1e6, 1e6]]).double()
    vector = geometry.log(space, y, x)
    reached = geometry.exp(space, vector, x)
    assert bool(vector.isnan().all()) or torch.allclose(reached, y, rtol=1e-3)
