"""Two spaces whose dimension geomstats has wrong: PSD matrices of rank k, unit-row ones."""

import numpy as np
import pytest
import torch
from conftest import assert_mean, points
from geomstats.geometry.positive_lower_triangular_matrices import UnitNormedRowsPLTMatrices
from geomstats.geometry.rank_k_psd_matrices import PSDBuresWassersteinMetric, PSDMatrices
from geomstats.geometry.spd_matrices import SPDBuresWassersteinMetric, SPDMatrices
from torch.func import jvp

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.testing import check_distribution, check_space

CASES = [(2, 1), (3, 1), (3, 2), (4, 2), (4, 3)]


def _quotient(n, k):
    return PSDMatrices(n, k, equip=False).equip_with_metric(PSDBuresWassersteinMetric)


def _factors(n, k, size=50, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(n + 10 * k)
    return torch.randn(size, n, k, generator=generator, dtype=dtype).to(device)


def _product(factor):
    return factor @ factor.mT


MAKE = {
    "rank 1 of 3": lambda: PSDMatrices(3, 1),
    "rank 2 of 3": lambda: PSDMatrices(3, 2),
    "rank 2 of 3, doubled": lambda: _doubled(PSDMatrices(3, 2)),
    "rank 2 of 4, Bures-Wasserstein": lambda: _quotient(4, 2),
    "unit rows 2": lambda: UnitNormedRowsPLTMatrices(2),
    "unit rows 4": lambda: UnitNormedRowsPLTMatrices(4),
    "unit rows 3, unequipped": lambda: UnitNormedRowsPLTMatrices(3, equip=False),
}


def _doubled(space):
    space.metric = 2.0 * space.metric
    return space


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MAKE)
def test_conformance(name, dtype, device):
    check_space(MAKE[name](), dtype=dtype, device=device)


@pytest.mark.parametrize("name", ["rank 2 of 3", "unit rows 4"])
def test_kernel_densities_are_normalised(name):
    space = MAKE[name]()
    law = gf.WrappedNormal(space, scale=0.4, dtype=torch.float64)
    x = law.sample(20, generator=torch.Generator().manual_seed(1))
    check_distribution(gf.KernelDensity(space, bandwidth=0.3).fit(x), n=500)
    check_distribution(law, n=500)


# Rank k -------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), CASES)
def test_dimension_is_the_rank_of_the_map_from_factors(n, k):
    factor = _factors(n, k, 1)[0]
    jacobian = torch.func.jacfwd(_product)(factor).reshape(n * n, n * k)
    space = PSDMatrices(n, k)
    assert geometry.dim(space) == int(torch.linalg.matrix_rank(jacobian))
    basis = geometry.tangent_basis(space, _product(factor)).flatten(1)
    assert basis.shape[0] == geometry.dim(space)
    # and the tangent space is the range of that map
    left = jacobian - basis.mT @ (basis @ jacobian)
    assert left.abs().max() < 1e-12 * jacobian.abs().max()


@pytest.mark.parametrize(("n", "k"), CASES)
def test_projection_is_nearest_and_the_identity_on_the_space(n, k):
    space = PSDMatrices(n, k)
    x = _product(_factors(n, k))
    assert (geometry.projection(space, x) - x).abs().max() < 1e-13 * x.abs().max()
    noise = torch.randn(x.shape, dtype=x.dtype)
    noise = (noise + noise.mT) / noise.flatten(1).norm(dim=1)[:, None, None]
    moved = x + 0.1 * torch.linalg.eigvalsh(x)[:, -k, None, None] * noise
    near = geometry.projection(space, moved)
    assert geometry.belongs(space, near).all()
    # what is left is orthogonal to the tangent space
    left = geometry.to_tangent(space, moved - near, near)
    assert left.abs().max() < 1e-12 * x.abs().max()
    # matrices of too few positive eigenvalues come out on the space as well
    assert geometry.belongs(space, geometry.projection(space, -x)).all()


def test_derivative_of_the_projection_is_the_tangent_projector():
    space = PSDMatrices(4, 2)
    x, noise = _product(_factors(4, 2)), torch.randn(50, 4, 4, dtype=torch.float64)
    _, slope = jvp(lambda y: geometry.projection(space, y), (x,), (noise,))
    assert torch.allclose(slope, geometry.to_tangent(space, noise, x), atol=1e-10)


def test_what_is_off_the_space_is_seen():
    space = PSDMatrices(3, 2)
    x = _product(_factors(3, 2))
    eye = torch.eye(3, dtype=x.dtype)
    full, low = x + 0.01 * eye * x.abs().amax((1, 2), True), _product(_factors(3, 1))
    for off in (full, low, -x, x + torch.triu(0.1 * torch.ones_like(x), 1)):
        assert (geometry.constraint_residual(space, off) > 1e-3).all()
    assert geometry.belongs(space, points(space, 20)).all()


def test_the_flat_metric_has_no_exponential():
    space = PSDMatrices(3, 2)
    x = _product(_factors(3, 2))
    with pytest.raises(UnsupportedError):
        geometry.exp(space, torch.zeros_like(x), x)


@pytest.mark.parametrize(("n", "k"), [(3, 2), (4, 2)])
def test_bures_wasserstein_is_the_quotient_of_factors(n, k):
    """Horizontal vectors of factors have the length of their images."""
    space = _quotient(n, k)
    factor = _factors(n, k)
    half = torch.randn(50, n, n, dtype=torch.float64)
    lift = (half + half.mT) @ factor * 0.05  # horizontal
    x, vector = jvp(_product, (factor,), (lift,))
    ours = geometry.inner_product(space, vector, vector, x)
    assert torch.allclose(ours, lift.square().sum((1, 2)), rtol=1e-8)
    theirs = space.metric.inner_product(vector.numpy(), vector.numpy(), x.numpy())
    assert np.allclose(ours.numpy(), theirs, rtol=1e-6)
    end = geometry.exp(space, vector, x)
    assert torch.allclose(end, _product(factor + lift), atol=1e-10)
    back = geometry.log(space, end, x)
    assert torch.allclose(back, vector, atol=1e-8)


def test_bures_wasserstein_is_the_limit_of_that_on_full_rank():
    space, full = _quotient(3, 2), SPDMatrices(3, equip=False)
    full.equip_with_metric(SPDBuresWassersteinMetric)
    x, y = _product(_factors(3, 2)), _product(_factors(3, 2).flip(0))
    eye = 1e-10 * torch.eye(3, dtype=x.dtype)
    expected = geometry.dist(full, x + eye, y + eye)
    assert torch.allclose(geometry.dist(space, x, y), expected, atol=1e-4)
    assert torch.allclose(geometry.dist(space, x, y), geometry.dist(space, y, x))


def test_laws_carry_the_volume_of_the_metric():
    """A normal law's mean of the volume ratio is that of the other metric's law."""
    flat, quotient = PSDMatrices(3, 1), _quotient(4, 2)
    for space in (flat, quotient):
        law = gf.WrappedNormal(space, scale=0.5, dtype=torch.float64)
        other = gf.WrappedNormal(space, scale=0.6, dtype=torch.float64)
        x = other.sample(20000, generator=torch.Generator().manual_seed(2))
        assert_mean((law.log_prob(x) - other.log_prob(x)).exp(), 1.0)


def test_derivatives_exist_to_second_order():
    space = _quotient(3, 2)
    x, y = _product(_factors(3, 2, 2)), _product(_factors(3, 2, 4)[2:])

    def squared(a):
        return geometry.dist(space, geometry.projection(space, a), y).square()

    assert torch.autograd.gradcheck(squared, x.requires_grad_())
    slope = torch.autograd.grad(geometry.dist(space, x, x.detach()).sum(), x)[0]
    assert slope.isfinite().all()


# Unit rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4])
def test_unit_rows_agree_with_geomstats(n):
    space = UnitNormedRowsPLTMatrices(n)
    assert geometry.dim(space) == n * (n - 1) // 2
    law = gf.WrappedNormal(space, scale=0.7, dtype=torch.float64)
    x, y = law.sample(20, generator=torch.Generator().manual_seed(3)).split(10)
    assert space.belongs(x.numpy()).all()
    vector = geometry.log(space, y, x)
    assert space.is_tangent(vector.numpy(), x.numpy(), atol=1e-8).all()
    assert np.allclose(vector, space.metric.log(y.numpy(), x.numpy()))
    assert np.allclose(y, space.metric.exp(vector.numpy(), x.numpy()))
    assert np.allclose(geometry.dist(space, x, y), space.metric.dist(x.numpy(), y.numpy()))
    inner = space.metric.inner_product(vector.numpy(), vector.numpy(), x.numpy())
    assert np.allclose(geometry.inner_product(space, vector, vector, x), inner)
