"""Potentials under finite groups: exact invariance, and closed forms against autograd."""

import itertools
import math

import numpy as np
import pytest
import torch
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, hessian, jvp, vmap

import geoflow_plugin as gf
from geoflow_plugin.networks.groups import cyclic, generate, permutations, sign_flip
from geoflow_plugin.networks.lattice import LatticePotential, lattice_symmetries
from geoflow_plugin.networks.symmetric import SymmetricPotential

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def icosahedral():
    """The 60 rotations of an icosahedron, by two of them."""
    golden = (1 + math.sqrt(5)) / 2
    turn = np.array(
        [[1, -golden, 1 / golden], [golden, 1 / golden, -1], [1 / golden, 1, golden]]
    )
    return generate([turn / 2, np.eye(3)[[1, 2, 0]]])


GROUPS = {
    "S3": (lambda: permutations(3), 6),
    "two particles in space": (lambda: permutations(2, size=3), 2),
    "C5": (lambda: cyclic(5), 5),
    "Z2": (lambda: sign_flip(4), 2),
    "quarter turns": (lambda: generate([([1, 0, 2], [1, -1, 1])]), 4),
    "hyperoctahedral": (lambda: generate([[1, 2, 0], [1, 0, 2], ([0, 1, 2], [1, 1, -1])]), 48),
    "icosahedral": (icosahedral, 60),
    "S3 and reflections": (lambda: generate([*permutations(3), -np.eye(3)]), 12),
    "square lattice": (lambda: lattice_symmetries(3), 72),
    "cubic lattice of two": (lambda: lattice_symmetries(2, 3), 48),
    "ring": (lambda: lattice_symmetries(5, 1), 10),
}
ALL_GROUPS = pytest.mark.parametrize("name", GROUPS)


class OneHiddenLayer(nn.Module):
    """sum_k a_k softplus(w_k x + b_k), with the closed forms that potentials may have."""

    def __init__(self, shape, dtype, width=7):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        shapes = (width, math.prod(shape)), (width,), (width,)
        for name, size in zip(("weight", "bias", "amplitude"), shapes, strict=True):
            value = torch.randn(size, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(value.to(dtype)))

    def hidden(self, x):
        return x.flatten(1) @ self.weight.mT + self.bias

    def forward(self, x):
        return nn.functional.softplus(self.hidden(x)) @ self.amplitude

    def gradient(self, x):
        slope = torch.sigmoid(self.hidden(x)) * self.amplitude
        return (slope @ self.weight).reshape(x.shape)

    def gradient_and_trace(self, x, basis=None):
        if basis is None:
            basis = torch.eye(x[0].numel()).to(x).reshape(-1, 1, *x.shape[1:])
            basis = basis.expand(-1, *x.shape)
        along = basis.flatten(2) @ self.weight.mT
        slope = torch.sigmoid(self.hidden(x))
        trace = (along.square().sum(0) * slope * (1 - slope)) @ self.amplitude
        return self.gradient(x), trace

    def as_hidden_layer(self):
        return self.weight, self.bias, self.amplitude, "softplus"


def as_matrices(group):
    """Any group as matrices, by the meaning of its elements."""
    matrices = []
    for g in group:
        permutation, signs = g if isinstance(g, tuple) else (g, None)
        permutation = torch.as_tensor(permutation)
        if permutation.ndim == 2:
            matrices.append(permutation.double())
            continue
        matrix = torch.eye(len(permutation), dtype=torch.float64)[permutation]
        matrices.append(matrix if signs is None else matrix * torch.as_tensor(signs)[:, None])
    return torch.stack(matrices)


def acted(matrix, x):
    return (x.flatten(1) @ matrix.to(x).mT).reshape(x.shape)


def draw(*shape, dtype=torch.float64, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)


def assert_close(actual, expected, scale=1.0):
    tolerance = 1e-11 if expected.dtype == torch.float64 else 2e-4
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    worst = float((actual - expected).detach().abs().max())
    assert worst <= tolerance * scale, worst


# The average over a group -------------------------------------------------------------


@ALL_GROUPS
def test_groups_are_groups(name):
    make, order = GROUPS[name]
    matrices = as_matrices(make())
    assert len(matrices) == order
    products = (matrices[:, None] @ matrices).flatten(0, 1)
    found = (products[:, None] - matrices).abs().amax((-2, -1)) < 1e-5
    assert bool((found.sum(1) == 1).all())


@ALL_GROUPS
@DTYPES
def test_average_is_the_sum_over_images(name, dtype, device):
    group = GROUPS[name][0]()
    matrices = as_matrices(group)
    dim = matrices.shape[-1]
    potential = OneHiddenLayer((dim,), dtype).to(device)
    symmetric = SymmetricPotential(potential, group).to(device)
    assert symmetric.order == len(matrices) and symmetric.dim == dim
    x = draw(4, dim, dtype=dtype, device=device)
    expected = torch.stack([potential(acted(g, x)) for g in matrices]).mean(0)
    assert_close(symmetric(x), expected, scale=10)


@ALL_GROUPS
@DTYPES
def test_invariance_and_equivariance(name, dtype, device):
    group = GROUPS[name][0]()
    matrices = as_matrices(group)
    dim = matrices.shape[-1]
    symmetric = SymmetricPotential(OneHiddenLayer((dim,), dtype), group).to(device)
    x, basis = (
        draw(4, dim, dtype=dtype, device=device),
        draw(2, 4, dim, dtype=dtype, device=device),
    )
    value = symmetric(x)
    gradient, laplacian = symmetric.gradient_and_trace(x)
    _, trace = symmetric.gradient_and_trace(x, basis)
    for g in matrices[:: max(1, len(matrices) // 12)]:
        image = acted(g, x)
        assert_close(symmetric(image), value, scale=10)
        moved, moved_laplacian = symmetric.gradient_and_trace(image)
        assert_close(moved, acted(g, gradient), scale=10)
        assert_close(moved_laplacian, laplacian, scale=50)
        moved_basis = torch.stack([acted(g, e) for e in basis])
        assert_close(symmetric.gradient_and_trace(image, moved_basis)[1], trace, scale=50)


@ALL_GROUPS
def test_closed_forms_are_the_derivatives(name, device):
    group = GROUPS[name][0]()
    dim = as_matrices(group).shape[-1]
    inner = OneHiddenLayer((dim,), torch.float64)
    symmetric = SymmetricPotential(inner, group).to(device)
    x, basis = draw(3, dim, device=device), draw(2, 3, dim, device=device)
    gradient, laplacian = symmetric.gradient_and_trace(x)
    assert_close(gradient, grad(lambda x: symmetric(x).sum())(x))
    assert_close(symmetric.gradient(x), gradient)
    matrix = vmap(hessian(lambda y: symmetric(y[None])[0]))(x)
    assert_close(laplacian, matrix.diagonal(dim1=1, dim2=2).sum(-1), scale=10)
    expected = torch.einsum("kni,nij,knj->n", basis, matrix, basis)
    assert_close(symmetric.gradient_and_trace(x, basis)[1], expected, scale=50)


@ALL_GROUPS
def test_hidden_layer_of_the_average(name):
    group = GROUPS[name][0]()
    dim = as_matrices(group).shape[-1]
    symmetric = SymmetricPotential(OneHiddenLayer((dim,), torch.float64), group)
    weight, bias, amplitude, activation = symmetric.as_hidden_layer()
    assert weight.shape == (7 * symmetric.order, dim) and activation == "softplus"
    x = draw(3, dim)
    value = nn.functional.softplus(x @ weight.mT + bias) @ amplitude
    assert_close(value, symmetric(x), scale=10)
    value.sum().backward()
    assert all(bool(p.grad.abs().min() > 0) for p in symmetric.parameters())


def test_single_precision_matrices_are_a_group():
    rounded = icosahedral().float()
    symmetric = SymmetricPotential(OneHiddenLayer((3,), torch.float64), list(rounded))
    exact = SymmetricPotential(OneHiddenLayer((3,), torch.float64), icosahedral())
    x = draw(4, 3)
    assert float((symmetric(x) - exact(x)).detach().abs().max()) < 1e-6
    assert len(generate(rounded[[7, 22]])) in (1, 2, 3, 4, 5, 6, 10, 12, 60)


def test_points_of_any_shape():
    exchange = permutations(2, size=3)  # of the rows of a matrix
    symmetric = SymmetricPotential(OneHiddenLayer((2, 3), torch.float64), exchange)
    x, basis = draw(4, 2, 3), draw(5, 4, 2, 3)
    gradient, trace = symmetric.gradient_and_trace(x, basis)
    swapped, swapped_trace = symmetric.gradient_and_trace(x.flip(1), basis.flip(2))
    assert_close(swapped, gradient.flip(1))
    assert_close(swapped_trace, trace, scale=10)
    assert_close(symmetric(x.flip(1)), symmetric(x))


def test_only_what_the_potential_has():
    symmetric = SymmetricPotential(lambda x: x.prod(-1), cyclic(3))
    for method in ("gradient", "gradient_and_trace", "as_hidden_layer", "at"):
        assert not hasattr(symmetric, method)
        assert hasattr(SymmetricPotential, method)
    assert_close(symmetric(draw(4, 3)), draw(4, 3).prod(-1))  # invariant to begin with


def test_context_and_time():
    class Drifting(nn.Module):
        def at(self, time):
            return lambda x, context: (x[:, 0] - time * context[:, 0]).square()

    symmetric = SymmetricPotential(Drifting(), permutations(3))
    x, context = draw(4, 3), draw(4, 1)
    expected = (x - 2.0 * context).square().mean(1)
    assert_close(symmetric.at(2.0)(x, context), expected, scale=10)
    conditional = SymmetricPotential(Drifting().at(2.0), permutations(3))
    assert_close(conditional(x, context), expected, scale=10)


def test_transforms_and_state():
    symmetric = SymmetricPotential(OneHiddenLayer((3,), torch.float64), icosahedral())
    x, v = draw(4, 3), draw(4, 3, seed=1)
    one_by_one = vmap(lambda y: symmetric(y[None])[0])(x)
    assert_close(one_by_one, symmetric(x), scale=10)
    _, change = jvp(symmetric, (x,), (v,))
    assert_close(change, (symmetric.gradient(x) * v).sum(-1), scale=10)
    other = SymmetricPotential(OneHiddenLayer((3,), torch.float64), permutations(3))
    with pytest.raises(RuntimeError):  # another group is another state
        other.load_state_dict(symmetric.state_dict())


def test_gradients_on_a_sphere():
    space, group = Hypersphere(2), icosahedral()
    symmetric = SymmetricPotential(OneHiddenLayer((3,), torch.float64), group)
    x = nn.functional.normalize(draw(5, 3), dim=-1)
    gradient = gf.gradient(space, symmetric, x)
    laplacian = gf.laplacian(space, symmetric, x)
    for g in group[::7]:
        assert_close(gf.gradient(space, symmetric, acted(g, x)), acted(g, gradient), scale=10)
        assert_close(gf.laplacian(space, symmetric, acted(g, x)), laplacian, scale=50)


@st.composite
def signed_permutations(draw_):
    n = draw_(st.integers(1, 4))
    element = st.tuples(
        st.permutations(range(n)), st.lists(st.sampled_from([1, -1]), min_size=n, max_size=n)
    )
    return n, draw_(st.lists(element, min_size=1, max_size=3))


@given(signed_permutations(), st.data())
def test_generate_makes_groups_and_less_is_refused(case, data):
    n, generators = case
    group = generate(generators)
    assert (2**n * math.factorial(n)) % len(group) == 0  # Lagrange
    matrices = as_matrices(group)
    for g in as_matrices(generators):
        assert bool((matrices == g).all(-1).all(-1).any())
    order = data.draw(st.permutations(range(len(group))))
    shuffled = [group[i] for i in order]
    SymmetricPotential(torch.sum, shuffled)
    assert len(generate(matrices)) == len(group)  # the same as matrices
    if len(group) > 2:
        with pytest.raises(ValueError, match="group"):
            SymmetricPotential(torch.sum, shuffled[1:])
    with pytest.raises(ValueError, match="group.*once"):
        SymmetricPotential(torch.sum, [*shuffled, shuffled[0]])


def quarter_turn(angle=math.pi / 2):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize(
    "group",
    [
        [],
        [[1, 2, 0], [2, 0, 1]],  # no identity
        [[0, 1, 2], [1, 2, 0]],  # no square
        [np.eye(2), quarter_turn()],
        [np.eye(2), np.eye(2)],
        [np.eye(2), 2 * np.eye(2)],
        [np.eye(2), np.ones((2, 2))],
        [[0, 0, 1]],
        [[1, 2, 3]],
        [([0, 1], [1, 2])],
        [([0, 1], [1])],
        [[0.0, 1.0]],
        [[0, 1], [0, 1, 2]],
        [np.eye(2), [0, 1, 2]],
        [torch.zeros(2, 2, 2)],
        [np.full((2, 2), np.nan)],
    ],
)
def test_what_is_no_group_is_refused(group):
    with pytest.raises(ValueError, match="^group: expected"):
        SymmetricPotential(torch.sum, group)


@pytest.mark.parametrize("group", [3, None, [None], ["no"], [[0j, 1]]])
def test_what_is_no_element_is_refused(group):
    with pytest.raises(TypeError, match="^group: expected"):
        SymmetricPotential(torch.sum, group)


def test_other_refusals():
    with pytest.raises(TypeError, match="potential"):
        SymmetricPotential(None, cyclic(3))
    with pytest.raises(ValueError, match="^x: expected points of 3 coordinates"):
        SymmetricPotential(torch.sum, cyclic(3))(draw(2, 4))
    with pytest.raises(ValueError, match="generators.*max_order=100"):
        generate([quarter_turn(1.0)], max_order=100)
    with pytest.raises(ValueError, match="generators"):
        generate([[0, 2]])


# Potentials of fields on a lattice ----------------------------------------------------

LATTICES = {
    "4 x 4": {"side": 4},
    "5 x 5, softplus": {"side": 5, "activation": "softplus"},
    "3 x 3 x 3": {"side": 3, "lattice_dim": 3},
    "ring of 6, softplus": {"side": 6, "lattice_dim": 1, "activation": "softplus"},
    "2 x 2": {"side": 2},
    "one site": {"side": 1, "activation": "softplus"},
}
ALL_LATTICES = pytest.mark.parametrize("name", LATTICES)


def lattice_potential(name, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    potential = LatticePotential(**LATTICES[name], width=3, generator=generator, dtype=dtype)
    for parameter in (potential.amplitude, potential.bias, potential.quadratic):
        if parameter is not None:
            nn.init.normal_(parameter, generator=generator)
    return potential.to(device)


@ALL_LATTICES
@DTYPES
def test_lattice_potential_has_every_symmetry(name, dtype, device):
    potential = lattice_potential(name, dtype, device)
    side, dim = potential.shape[0], len(potential.shape)
    x = draw(3, side**dim, dtype=dtype, device=device)
    value, (gradient, laplacian) = potential(x), potential.gradient_and_trace(x)
    group = lattice_symmetries(side, dim).to(device)
    for g in group[:: max(1, len(group) // 20)]:
        assert_close(potential(x[:, g]), value, scale=30)
        moved, moved_laplacian = potential.gradient_and_trace(x[:, g])
        assert_close(moved, gradient[:, g], scale=30)
        assert_close(moved_laplacian, laplacian, scale=100)
    if potential.activation == "log_cosh":
        assert_close(potential(-x), value, scale=30)
        assert_close(potential.gradient(-x), -gradient, scale=30)


def test_a_lattice_potential_is_no_more_symmetric_than_that():
    potential, x = lattice_potential("4 x 4"), draw(3, 16)
    shuffled = x[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    assert float((potential(shuffled) - potential(x)).detach().abs().min()) > 1e-3


@ALL_LATTICES
@DTYPES
def test_lattice_closed_forms_are_the_derivatives(name, dtype, device):
    potential = lattice_potential(name, dtype, device)
    n_sites = math.prod(potential.shape)
    for x in (
        draw(3, n_sites, dtype=dtype, device=device),
        torch.zeros(3, n_sites).to(device, dtype),
    ):
        basis = draw(2, *x.shape, dtype=dtype, device=device)
        gradient, laplacian = potential.gradient_and_trace(x)
        assert_close(gradient, grad(lambda x: potential(x).sum())(x), scale=10)
        assert_close(potential.gradient(x), gradient)
        matrix = vmap(hessian(lambda y: potential(y[None])[0]))(x)
        assert_close(laplacian, matrix.diagonal(dim1=1, dim2=2).sum(-1), scale=50)
        expected = torch.einsum("kni,nij,knj->n", basis, matrix, basis)
        assert_close(potential.gradient_and_trace(x, basis)[1], expected, scale=100)


@ALL_LATTICES
def test_lattice_potential_is_what_its_definition_says(name):
    potential = lattice_potential(name)
    x = draw(2, *potential.shape)
    bias = potential.bias if potential.bias is not None else torch.zeros(3).double()
    activation = nn.functional.softplus
    if potential.activation == "log_cosh":

        def activation(h):
            return h.cosh().log()

    axes = tuple(range(-len(potential.shape), 0))
    spectra = potential.spectrum[:, potential.orbit].reshape(3, *potential.shape)
    kernels = torch.fft.ifftn(spectra, dim=axes).real
    form = potential.quadratic[potential.orbit].reshape(potential.shape)
    waves = torch.fft.fftn(x, dim=axes, norm="ortho")
    total = (waves.abs().square() * form).flatten(1).sum(1) / 2
    for shift in itertools.product(*[range(s) for s in potential.shape]):
        near = x.roll(shift, axes).flatten(1) @ kernels.flatten(1).mT
        total = total + activation(near + bias) @ potential.amplitude
    assert_close(potential(x), total, scale=30)
    assert_close(potential(x.flatten(1)), total, scale=30)
    assert potential.gradient(x).shape == x.shape


def test_a_lattice_potential_keeps_the_digits_of_a_wider_dtype():
    potential = LatticePotential(5).double()
    nn.init.ones_(potential.amplitude)
    x = draw(2, 25)
    assert_close(potential.gradient(x), grad(lambda x: potential(x).sum())(x), scale=10)
    translated = x.reshape(2, 5, 5).roll(1, -1).flatten(1)
    assert_close(potential(translated), potential(x), scale=30)


def test_average_of_a_softplus_lattice_is_even():
    potential = lattice_potential("5 x 5, softplus")
    symmetric = SymmetricPotential(potential, sign_flip(25))
    x = draw(3, 25)
    assert float((potential(-x) - potential(x)).detach().abs().min()) > 1e-3
    assert_close(symmetric(-x), symmetric(x), scale=30)
    assert_close(symmetric.gradient(-x), -symmetric.gradient(x), scale=10)


def test_a_lattice_potential_starts_small_and_by_its_generator():
    first, second = (
        LatticePotential(4, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first.spectrum, second.spectrum)
    assert float(first.gradient(draw(9, 16, dtype=torch.float32)).detach().abs().mean()) < 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"side": 0},
        {"side": 2.5},
        {"side": True},
        {"lattice_dim": 0},
        {"width": 0},
        {"activation": "relu"},
    ],
)
def test_lattice_refusals(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        LatticePotential(**{"side": 4, **options})


def test_fields_of_another_size_are_refused():
    with pytest.raises(ValueError, match="^x: expected fields"):
        LatticePotential(4)(torch.zeros(2, 15))
    with pytest.raises(ValueError, match="^side: expected"):
        lattice_symmetries(0)


@pytest.mark.parametrize("side", [3, 4])
def test_the_lattice_normal_is_a_normal_law_and_symmetric(side):
    sites = side * side
    law = gf.LatticeNormal(Euclidean(sites), side, dtype=torch.float64)
    with torch.no_grad():
        law.log_scale.copy_(torch.linspace(-0.5, 0.7, len(law.log_scale)))
        eye = torch.eye(sites, dtype=torch.float64)
        root = law._filtered(eye, law.log_scale[law.orbit].exp())
        normal = torch.distributions.MultivariateNormal(0 * eye[0], root.mT @ root)
        x = law.sample(7, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(law.log_prob(x), normal.log_prob(x))
        drawn = law.sample(20_000, generator=torch.Generator().manual_seed(1))
        squares = drawn.square()  # entries of one variance, by symmetry
        gap = (squares.mean(0) - (root.mT @ root).diagonal()).abs()
        assert bool((gap < 5 * squares.std(0) / 20_000**0.5).all())
        for image in lattice_symmetries(side)[::5]:
            torch.testing.assert_close(law.log_prob(x[:, image]), law.log_prob(x))
    with pytest.raises(ValueError, match="space"):
        gf.LatticeNormal(Euclidean(sites + 1), side)
