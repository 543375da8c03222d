"""Targets: exact partition functions, and densities that they normalise."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from normflows.distributions import Target
from torch.func import grad, jvp, vmap

from geoflow_plugin.networks.symmetric import SymmetricPotential
from geoflow_plugin.targets import IsingTarget, Phi4Target, exact_log_partition
from geoflow_plugin.targets.ising import CRITICAL_TEMPERATURE

# -log Z / N at the critical point as Zhang, E and Wang (2018) have it, from values of log Z
# of six digits (https://github.com/wangleiphy/MongeAmpereFlow)
PUBLISHED = {
    4: -2.336044764,
    8: -2.322734956,
    16: -2.315919856,
    32: -2.314049816,
    64: -2.313580579,
}


def all_spins(side):
    spins = itertools.product([1.0, -1.0], repeat=side**2)
    return torch.tensor(list(spins), dtype=torch.float64)


def couplings(side, temperature):
    """Adjacency matrix over the temperature, bond by bond."""
    matrix = torch.zeros(side**2, side**2, dtype=torch.float64)
    for i, j in itertools.product(range(side), repeat=2):
        for near in ((i + 1) % side * side + j, i * side + (j + 1) % side):
            matrix[i * side + j, near] += 1 / temperature
            matrix[near, i * side + j] += 1 / temperature
    return matrix


def log_weights(side, temperature):
    spins = all_spins(side)
    return ((spins @ couplings(side, temperature)) * spins).sum(1) / 2


def draw(*shape, dtype=torch.float64, device="cpu", scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (scale * x).to(device, dtype)


# The Ising model ----------------------------------------------------------------------


@pytest.mark.parametrize("side", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.0, CRITICAL_TEMPERATURE, 2.5, 5.0, 1e3])
def test_kaufman_is_the_sum_over_spins(side, temperature):
    expected = float(log_weights(side, temperature).logsumexp(0))
    assert exact_log_partition(side, temperature) == pytest.approx(expected, rel=1e-14)


def test_extreme_temperatures_and_sides():
    for side in (2, 5, 16):
        cold = exact_log_partition(side, 1e-4)  # two ground states
        assert cold == pytest.approx(2e4 * side**2 + math.log(2), rel=1e-15)
        hot = exact_log_partition(side, 1e8)
        assert hot == pytest.approx(side**2 * math.log(2), rel=1e-14)
    # Onsager's free energy, log(2)/2 + 2 Catalan / pi at the critical point
    infinite = math.log(2) / 2 + 2 * 0.915965594177219 / math.pi
    assert exact_log_partition(1000) / 1000**2 == pytest.approx(infinite, abs=1e-6)


@given(st.integers(2, 40), st.floats(0.3, 30.0))
def test_energy_decreases_with_coupling(side, temperature):
    """log Z is convex in 1 / T, with slope the mean number of satisfied bonds."""
    coupling = 1 / temperature
    values = [exact_log_partition(side, 1 / (coupling * s)) for s in (0.99, 1.0, 1.01)]
    slopes = np.diff(values) / (0.01 * coupling)
    assert 0 <= slopes[0] <= slopes[1] + 1e-8 * side**2 <= 2 * side**2 * (1 + 1e-8)


@pytest.mark.parametrize("side", PUBLISHED)
def test_published_free_energies(side):
    target = IsingTarget(side)
    assert -target.log_partition / target.n_dims == pytest.approx(PUBLISHED[side], abs=1.1e-6)


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("temperature", [1.5, CRITICAL_TEMPERATURE, 4.0])
@pytest.mark.parametrize("smallest_eigenvalue", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ising_density_is_a_mixture_over_spins(
    side, temperature, smallest_eigenvalue, dtype, device
):
    """exp(log_prob - log_partition) is sum_s p(s) N(x; C s, C), C = K + shift."""
    target = IsingTarget(side, temperature, smallest_eigenvalue).to(device)
    x = draw(20, side**2, dtype=dtype, device=device, scale=3.0)
    log_prob = target.log_prob(x) - target.log_partition
    assert log_prob.dtype == dtype and log_prob.device.type == device.type

    covariance = couplings(side, temperature)
    lowest = torch.linalg.eigvalsh(covariance)[0]
    covariance += (smallest_eigenvalue - lowest) * torch.eye(side**2).double()
    assert float(smallest_eigenvalue - lowest) == pytest.approx(target.shift)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_weights(side, temperature)),
        torch.distributions.MultivariateNormal(all_spins(side) @ covariance, covariance),
    )
    expected = mixture.log_prob(x.cpu().double())
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        log_prob.cpu().double(), expected, rtol=tolerance, atol=tolerance
    )


def test_ising_integral_by_quadrature():
    target = IsingTarget(2)
    covariance = couplings(2, CRITICAL_TEMPERATURE) + target.shift * torch.eye(4).double()
    values, vectors = torch.linalg.eigh(covariance)
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    grid = torch.cartesian_prod(*[torch.from_numpy(nodes)] * 4)
    weight = torch.cartesian_prod(*[torch.from_numpy(weights)] * 4).log().sum(1)
    x = (grid * values.sqrt()) @ vectors.mT
    terms = weight + grid.square().sum(1) / 2 + target.log_prob(x)
    integral = terms.logsumexp(0) + values.log().sum() / 2
    assert float(integral) == pytest.approx(target.log_partition, abs=1e-9)


def test_spins_of_exact_fields_have_the_law_of_the_model():
    side, temperature, n = 2, 3.0, 200_000
    generator = torch.Generator().manual_seed(0)
    target, logits = IsingTarget(side, temperature), log_weights(side, temperature)
    chosen = all_spins(side)[torch.multinomial(logits.exp(), n, True, generator=generator)]
    covariance = couplings(side, temperature) + target.shift * torch.eye(4).double()
    root = torch.linalg.cholesky(covariance)
    x = chosen @ covariance + torch.randn(n, 4, generator=generator).double() @ root.mT
    spins = target.spins(x, generator)
    assert spins.shape == x.shape and spins.dtype == x.dtype
    powers = 2 ** torch.arange(3, -1, -1)
    counts = torch.bincount(((1 - spins) / 2).long() @ powers, minlength=16)
    error = (logits.softmax(0) * (1 - logits.softmax(0)) / n).sqrt()
    assert float(((counts / n - logits.softmax(0)).abs() / error).max()) < 4.5


# Both fields --------------------------------------------------------------------------

TARGETS = {
    "Ising": lambda: IsingTarget(4),
    "Ising, odd": lambda: IsingTarget(3, 1.5),
    "Ising, hot": lambda: IsingTarget(2, 100.0),
    "free": lambda: Phi4Target(4, 0.5, 0.0),
    "one phase": lambda: Phi4Target(3, 1.0, 2.0),
    "two phases": lambda: Phi4Target(4, -1.0, 3.0),
    "cubic": lambda: Phi4Target(3, -0.5, 1.0, lattice_dim=3),
    "ring": lambda: Phi4Target(5, 0.3, 1.0, lattice_dim=1),
}
ALL_TARGETS = pytest.mark.parametrize("name", TARGETS)


@ALL_TARGETS
def test_targets_have_their_symmetries(name):
    target = TARGETS[name]()
    group = target.symmetries()
    x = draw(4, target.n_dims)
    value = target.log_prob(x)
    for permutation, signs in group[:: max(1, len(group) // 30)]:
        torch.testing.assert_close(target.log_prob(x[:, permutation] * signs), value)
    assert float((target.log_prob(x.roll(1, 0)) - value).abs().min()) > 1e-6
    if len(group) < 300:
        symmetric = SymmetricPotential(target.log_prob, group)
        torch.testing.assert_close(symmetric(x), value)


@ALL_TARGETS
def test_largest_log_prob(name):
    target = TARGETS[name]()
    x = draw(6, target.n_dims).requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -target.log_prob(x).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = float(target.log_prob(x).detach().max())
    assert found == pytest.approx(target.max_log_prob, abs=1e-6)
    spread = draw(2000, target.n_dims, scale=3.0)
    assert float(target.log_prob(spread).max()) <= target.max_log_prob


@ALL_TARGETS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_normflows_contract(name, dtype, device):
    target = TARGETS[name]().to(device)
    assert isinstance(target, Target)
    x = draw(3, target.n_dims, dtype=dtype, device=device)
    value = target.log_prob(x)
    assert (value.shape, value.dtype) == ((3,), dtype)
    fields = x.reshape(3, *target.lattice)
    torch.testing.assert_close(target.log_prob(fields), value)
    slope = grad(lambda x: target.log_prob(x).sum())(x)
    _, change = jvp(target.log_prob, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(change, slope.sum(1))
    torch.testing.assert_close(vmap(lambda y: target.log_prob(y[None])[0])(x), value)
    with pytest.raises(NotImplementedError, match="sample"):
        target.sample(3)


@ALL_TARGETS
def test_targets_refuse_what_is_no_field(name):
    target = TARGETS[name]()
    for bad in (torch.zeros(2, target.n_dims + 1), torch.zeros(target.n_dims)):
        with pytest.raises(ValueError, match="^z: expected"):
            target.log_prob(bad)
    for bad in (np.zeros((2, target.n_dims)), torch.zeros(2, target.n_dims).long()):
        with pytest.raises(TypeError, match="^z: expected"):
            target.log_prob(bad)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: IsingTarget(1), "side"),
        (lambda: IsingTarget(4.0), "side"),
        (lambda: IsingTarget(4, 0.0), "temperature"),
        (lambda: IsingTarget(4, math.inf), "temperature"),
        (lambda: IsingTarget(4, 2.0, -0.1), "smallest_eigenvalue"),
        (lambda: exact_log_partition(1), "side"),
        (lambda: exact_log_partition(4, -1.0), "temperature"),
        (lambda: exact_log_partition(4, math.nan), "temperature"),
        (lambda: Phi4Target(0, 1.0, 1.0), "side"),
        (lambda: Phi4Target(4, 1.0, -1.0), "coupling"),
        (lambda: Phi4Target(4, math.nan, 1.0), "mass_squared"),
        (lambda: Phi4Target(4, -1.0, 0.0), "mass_squared"),
        (lambda: Phi4Target(4, 1.0, 1.0, lattice_dim=0), "lattice_dim"),
    ],
)
def test_targets_refuse_bad_numbers(make, name):
    with pytest.raises(ValueError, match=f"{name}.*: expected"):
        make()


# Scalar fields ------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "dim"), [(4, 2), (5, 2), (3, 3), (6, 1), (2, 2), (1, 2)])
def test_action(side, dim):
    mass_squared, coupling = -0.7, 1.3
    target = Phi4Target(side, mass_squared, coupling, lattice_dim=dim)
    x = draw(5, *[side] * dim)
    action = (mass_squared * x**2 / 2 + coupling * x**4 / 24).flatten(1).sum(1)
    for axis in range(1, dim + 1):
        action = action + (x.roll(-1, axis) - x).square().flatten(1).sum(1) / 2
    torch.testing.assert_close(target.log_prob(x), -action)
    # Albergo, Kanwar and Shanahan (2019): no halves, coupling without factorial
    x = x / math.sqrt(2)
    theirs = (mass_squared * x**2 + coupling / 6 * x**4).flatten(1).sum(1)
    for axis in range(1, dim + 1):
        theirs = theirs + (x.roll(-1, axis) - x).square().flatten(1).sum(1)
    torch.testing.assert_close(theirs, action)


@pytest.mark.parametrize(("side", "dim"), [(4, 2), (5, 2), (3, 3), (6, 1), (2, 2)])
def test_free_theory(side, dim):
    target = Phi4Target(side, 0.4, 0.0, lattice_dim=dim)
    precision = -torch.func.hessian(lambda x: target.log_prob(x[None])[0])(draw(side**dim))
    expected = (side**dim * math.log(2 * math.pi) - torch.logdet(precision)) / 2
    assert target.log_partition == pytest.approx(float(expected), rel=1e-12)
    assert Phi4Target(side, 0.4, 1.0, lattice_dim=dim).log_partition is None


def test_weak_coupling():
    """d log Z / d coupling = -N G(0)^2 / 8 at zero, G the free propagator."""
    nodes = torch.linspace(-9, 9, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(nodes, nodes)

    def log_integral(coupling):
        log_prob = Phi4Target(2, 1.0, coupling, lattice_dim=1).log_prob(grid)
        return float(log_prob.logsumexp(0)) + 2 * math.log(18 / 360)

    free = Phi4Target(2, 1.0, 0.0, lattice_dim=1)
    assert log_integral(0.0) == pytest.approx(free.log_partition, abs=1e-10)
    propagator = (1 + 1 / 5) / 2
    slope = (log_integral(1e-4) - log_integral(0.0)) / 1e-4
    assert slope == pytest.approx(-2 * propagator**2 / 8, rel=1e-3)
