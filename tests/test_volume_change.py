"""The volume change of injective maps: Gram determinants, unbiased gradients, solves."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from conftest import assert_mean, make_space, points, rng_untouched, rows
from geomstats.geometry.poincare_ball import PoincareBall
from geomstats.geometry.spd_matrices import SPDMatrices
from geomstats.geometry.stiefel import Stiefel
from hypothesis import given
from hypothesis import strategies as st

from geoflow_plugin import geometry
from geoflow_plugin.volume_change import (
    VolumeChangeError,
    exact,
    log_volume_change,
    log_volume_change_and_error,
    stochastic,
    value_and_log_volume_change,
)
from geoflow_plugin.volume_change.block_cg import block_conjugate_gradient, log_quadrature

SPACES = {
    "S2": lambda: make_space("S2"),
    "SO3": lambda: make_space("SO3"),
    "T2": lambda: make_space("T2"),
    "T2 scales 1, 2": lambda: make_space("T2 scales 1, 2"),
    "SPD(2)": lambda: SPDMatrices(2),
    "PoincareBall(2)": lambda: PoincareBall(2),
    "Stiefel(4, 2)": lambda: Stiefel(4, 2),
}
domains = pytest.mark.parametrize("name", SPACES)
methods = pytest.mark.parametrize("method", ["exact", "hutchinson"])
seeds = st.integers(0, 2**20)


class Decoder(torch.nn.Module):
    """A random smooth immersion: a linear one, bent."""

    def __init__(self, size, out, seed=0, dtype=torch.float64, device="cpu"):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def weight(*shape):
            drawn = torch.randn(*shape, generator=draw, dtype=torch.float64)
            return torch.nn.Parameter(drawn.to(device, dtype))

        self.linear, self.inner = weight(size, out), weight(size, 16)
        self.outer = weight(16, out)

    def forward(self, z):
        z = z.flatten(1)
        return z @ self.linear + 0.2 * (z @ self.inner).tanh() @ self.outer


def brute_force(mapping, z):
    """Half the log determinant of every Gram matrix, one sample and one output at a time."""
    values = []
    for row in z.detach():
        jacobian = torch.autograd.functional.jacobian(lambda y: mapping(y[None])[0], row)
        jacobian = jacobian.reshape(-1, row.numel())
        values.append(0.5 * torch.linalg.slogdet(jacobian.mT @ jacobian)[1])
    return torch.stack(values)


def normals(*shape, seed=0, dtype=torch.float64, device="cpu"):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(device, dtype)


def gradients(log_volume, inputs):
    return torch.autograd.grad(log_volume.sum(), inputs, allow_unused=True)


def all_signs(n, dim, dtype=torch.float64):
    """Every vector of signs, as probes of every sample: their mean is an expectation."""
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dim)), dtype=dtype)
    return signs.mT.expand(n, dim, -1).contiguous()


# Exact --------------------------------------------------------------------------------


@given(seed=seeds, size=st.integers(1, 6), codimension=st.integers(0, 7))
def test_exact_is_the_gram_determinant(seed, size, codimension, device):
    mapping = Decoder(size, size + codimension, seed, device=device)
    z = normals(5, size, seed=seed, device=device)
    found = log_volume_change(mapping, z)
    torch.testing.assert_close(found, brute_force(mapping, z), atol=1e-10, rtol=0)
    value, again = value_and_log_volume_change(mapping, z)
    torch.testing.assert_close(value, mapping(z))
    assert torch.equal(found, again)


def test_in_as_many_dimensions_it_is_the_log_determinant():
    mapping, z = Decoder(4, 4), normals(6, 4)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: mapping(y[None])[0]))(z)
    expected = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(log_volume_change(mapping, z), expected, atol=1e-10, rtol=0)


def geomstats_volume(mapping, space, x):
    """From any tangent frame: its Gram matrix there, over geomstats' own here."""
    dim, n = geometry.dim(space), len(x)
    draw = np.random.default_rng(0)
    frame = [
        space.to_tangent(draw.normal(size=x.shape), x.numpy()).reshape(x.shape)
        for _ in range(dim)
    ]
    metric = np.empty((n, dim, dim))
    for i, j in itertools.product(range(dim), repeat=2):
        metric[:, i, j] = np.reshape(
            space.metric.inner_product(frame[i], frame[j], x.numpy()), n
        )
    jacobian = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda y: mapping(y[None])[0], row).flatten(1)
            for row in x
        ]
    )
    pushed = jacobian @ torch.stack([rows(torch.tensor(v)) for v in frame], dim=-1)
    image = torch.linalg.slogdet(pushed.mT @ pushed)[1]
    return 0.5 * (image - torch.linalg.slogdet(torch.tensor(metric))[1])


@domains
def test_exact_on_a_space_is_relative_to_its_metric(name):
    space = SPACES[name]()
    x = points(space, 5)
    mapping = Decoder(math.prod(space.shape), 11)
    found = log_volume_change(mapping, x, space=space).detach()
    expected = geomstats_volume(mapping, space, x).detach()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_isometric_inclusions_change_no_volume(device):
    for name, expected in (("S2", 0.0), ("T2", 0.0), ("SO3", 1.5 * math.log(2))):
        space = make_space(name)  # geomstats' metric of SO(n) is half of Frobenius'
        x = points(space, 4, device=device)
        found = log_volume_change(lambda y: y, x, space=space)
        torch.testing.assert_close(found, torch.full_like(found, expected))


@methods
def test_euclidean_space_is_r_k_but_for_the_scale_of_its_metric(method):
    mapping, z, space = Decoder(3, 6), normals(4, 3), make_space("R3")

    def volume(space):
        draw = torch.Generator().manual_seed(0)
        return log_volume_change(mapping, z, method, space, n_probes=2, generator=draw)

    plain = volume(None)
    torch.testing.assert_close(volume(space), plain)
    space.metric = 4.0 * space.metric
    torch.testing.assert_close(volume(space), plain - 3 * math.log(2))


@given(seed=seeds)
def test_isometries_of_the_image_and_changes_of_coordinates(seed):
    mapping, inner, z = Decoder(3, 6, seed), Decoder(3, 3, seed + 1), normals(4, 3, seed=seed)
    rotation = torch.linalg.qr(normals(6, 6, seed=seed))[0]
    volume = log_volume_change(mapping, z)
    turned = log_volume_change(lambda y: 3 * mapping(y) @ rotation + 1, z)
    torch.testing.assert_close(turned, volume + 3 * math.log(3))
    chained = log_volume_change(lambda y: mapping(inner(y)), z)
    parts = log_volume_change(mapping, inner(z)) + log_volume_change(inner, z)
    torch.testing.assert_close(chained, parts)


@pytest.mark.parametrize("name", [None, "S2", "SPD(2)"])
def test_derivatives_in_points_and_parameters(name):
    space = SPACES[name]() if name else None
    x = points(space, 2) if space else normals(2, 2)
    mapping = Decoder(math.prod(x.shape[1:]), 5)
    basis = (
        geometry.tangent_basis(space, x) if space else torch.eye(2).double().expand(2, 2, 2)
    )
    step = 0.1 * normals(2, basis.shape[1])

    def volume(step, *weights):
        v = (step[:, None, :] @ basis.flatten(2)).reshape(x.shape)
        at = geometry.exp(space, v, x) if space else x + v
        parameters = dict(zip(("linear", "inner", "outer"), weights, strict=True))

        def moved(y):
            return torch.func.functional_call(mapping, parameters, (y,))

        return log_volume_change(moved, at, space=space)

    inputs = [step, *mapping.parameters()]
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(volume, inputs)


def test_making_half_of_a_large_graph_again_changes_nothing(monkeypatch):
    mapping, z = Decoder(5, 9), normals(7, 5).requires_grad_()
    inputs = [z, *mapping.parameters()]
    value, volume = value_and_log_volume_change(mapping, z)
    expected = gradients(volume + value.sum(-1), inputs)
    monkeypatch.setattr(exact, "NUMBERS", 0)
    again, volume_again = value_and_log_volume_change(mapping, z)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(volume_again, volume)
    for a, b in zip(gradients(volume_again + again.sum(-1), inputs), expected, strict=True):
        torch.testing.assert_close(a, b)
    eye = torch.eye(5, dtype=z.dtype)[:, None].expand(-1, 7, -1).contiguous()
    in_order = exact.forward_mode(mapping, z, eye)[1]
    torch.testing.assert_close(exact.pushforward(mapping, z, eye)[1], in_order)
    torch.func.grad(lambda y: log_volume_change(mapping, y).sum())(z.detach())


# What cannot be had ---------------------------------------------------------------------


class NoForwardMode(torch.autograd.Function):
    """A cube that reverse mode alone can differentiate, twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangent


@pytest.mark.parametrize("large", [False, True])
def test_what_has_no_forward_mode_is_taken_by_reverse_mode_and_said(large, monkeypatch):
    if large:
        monkeypatch.setattr(exact, "NUMBERS", 0)
    decoder, z = Decoder(3, 6), normals(4, 3).requires_grad_()
    inputs = [z, *decoder.parameters()]
    expected = log_volume_change(lambda y: decoder(y**3 + y), z)
    with pytest.warns(UserWarning, match="no forward-mode derivative"):
        found = log_volume_change(lambda y: decoder(NoForwardMode.apply(y) + y), z)
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad(), pytest.warns(UserWarning):
        assert not log_volume_change(NoForwardMode.apply, z).requires_grad


@methods
@pytest.mark.parametrize("mistake", ["nan", "flat"])
def test_where_there_is_no_volume_the_sample_is_named(method, mistake, device):
    factor = torch.ones(6, 1, dtype=torch.float64, device=device)
    factor[4] = math.nan if mistake == "nan" else 0.0
    mapping = Decoder(2, 5, device=device)
    with pytest.raises(VolumeChangeError, match=r"mapping: .* at sample 4 of 6"):
        log_volume_change(
            lambda y: factor * mapping(y), normals(6, 2, device=device), method, n_probes=2
        )
    assert issubclass(VolumeChangeError, FloatingPointError)


def conditioned(n, rows, columns, condition, seed=0):
    """Random matrices with singular values from 1 to 1 / condition."""
    left = torch.linalg.qr(normals(n, rows, columns, seed=seed))[0]
    right = torch.linalg.qr(normals(n, columns, columns, seed=seed + 1))[0]
    values = torch.logspace(0, -math.log10(condition), columns, dtype=torch.float64)
    return (left * values) @ right, values.log().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 5, 20])
def test_a_bad_condition_costs_its_digits_and_not_twice_as_many(size, dtype):
    eps = torch.finfo(dtype).eps
    for exponent in (0.2, 0.4, 0.6, 0.7):
        matrix, expected = conditioned(50, 2 * size, size, eps**-exponent)
        z = normals(50, size, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            w = matrix.to(dtype).requires_grad_()
            found = log_volume_change(lambda y, w=w: (w @ y.unsqueeze(-1)).squeeze(-1), z)
        error = float((found.detach().double() - expected).abs().max())
        # half of the digits are left by the Gram matrix, and QR takes over
        assert error < max(20 * eps**0.5, 50 * eps ** (1 - exponent)), (exponent, error)
        (gradient,) = gradients(found, [w])
        pseudo_inverse = torch.linalg.pinv(matrix, rtol=0).mT
        off = (gradient - pseudo_inverse).flatten(1).norm(dim=1)
        off = off.detach() / pseudo_inverse.flatten(1).norm(dim=1)
        assert float(off.max()) < max(20 * eps**0.5, 100 * eps ** (1 - exponent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "out"), [(2, 3), (5, 10), (20, 40)])
def test_a_lost_rank_is_an_error_for_every_sample(size, out, dtype):
    for seed in range(20):
        thin = normals(out, size - 1, seed=seed) @ normals(size - 1, size, seed=seed + 1)
        thin = thin.to(dtype)
        with pytest.raises(VolumeChangeError, match="at samples 0, 1 of 2"):
            log_volume_change(lambda z, thin=thin: z @ thin.mT, normals(2, size, dtype=dtype))
    with pytest.raises(VolumeChangeError, match="at samples 0, 1 of 2"):  # one column is zero
        log_volume_change(
            lambda z: z * torch.eye(size, dtype=dtype)[0], normals(2, size, dtype=dtype)
        )


def test_few_digits_are_said_and_at_which_samples():
    stretch = torch.zeros(5, 2)
    stretch[3] = 1 - 1e-5  # nearly parallel columns, in single precision
    with pytest.warns(UserWarning, match="nearly singular .* at sample 3 of 5") as caught:
        found = log_volume_change(lambda y: y + y.roll(1, 1) * stretch, normals(5, 2).float())
    assert len(caught) == 1
    assert float(found[3]) == pytest.approx(math.log(2e-5), abs=0.1)
    torch.testing.assert_close(found[[0, 1, 2, 4]], torch.zeros(4))


def test_one_sample_of_poor_condition_leaves_the_others_as_they_are():
    mapping, z = Decoder(3, 6), normals(6, 3)
    turn = torch.linalg.qr(normals(3, 3))[0]
    factor = torch.ones(6, 1, 3, dtype=torch.float64)
    factor[2, 0, 2] = 1e-6

    def squeeze(y):
        return (y.unsqueeze(1) @ turn * factor @ turn.mT).squeeze(1)

    expected = log_volume_change(mapping, squeeze(z))
    expected[2] = expected[2] + math.log(1e-6)
    found = log_volume_change(lambda y: mapping(squeeze(y)), z)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_the_scales_of_columns_cost_no_digits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = normals(5, 2)
        volume = log_volume_change(lambda y: y * y.new_tensor([1.0, 1e-5]), z)
    torch.testing.assert_close(
        volume, torch.full_like(volume, math.log(1e-5)), rtol=1e-12, atol=0
    )


@methods
def test_bad_input_is_refused(method):
    mapping, z = Decoder(3, 5), normals(4, 3)
    for wrong in (z[0, 0], z[:0], z * math.nan):
        with pytest.raises(ValueError, match="points: "):
            log_volume_change(mapping, wrong, method)
    for wrong in (z.long(), z.numpy(), None):
        with pytest.raises(TypeError, match="points: "):
            log_volume_change(mapping, wrong, method)
    for wrong in (lambda y: y[:, :2], lambda y: y.sum(), lambda y: y[:2], lambda y: (y, 0)):
        with pytest.raises(ValueError, match="mapping: "):
            log_volume_change(wrong, z, method)
    with pytest.raises(ValueError, match="points: "):
        log_volume_change(mapping, 2 * z, method, space=make_space("S2"))


def test_maps_without_derivatives_are_refused():
    mapping, z = Decoder(3, 5), normals(4, 3)
    for constant in (torch.ones_like, lambda y: mapping(z), lambda y: mapping(y.detach())):
        with pytest.raises(VolumeChangeError, match="mapping: "):
            log_volume_change(constant, z)
        with pytest.raises(ValueError, match="mapping: .*twice"):
            log_volume_change(constant, z, "hutchinson")


def test_bad_methods_and_numbers_of_probes_are_refused():
    mapping, z = Decoder(3, 5), normals(4, 3)
    for method in ("Exact", None, 1):
        with pytest.raises(ValueError, match="method: .*exact"):
            log_volume_change(mapping, z, method)
    for n_probes in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="n_probes: "):
            log_volume_change(mapping, z, "hutchinson", n_probes=n_probes)


# Stochastic ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "S2", "SO3", "SPD(2)", "Stiefel(4, 2)"])
def test_the_mean_over_all_signs_is_exact(name):
    # an expectation without sampling error: the mean of e e^T is the identity
    space = SPACES[name]() if name else None
    x = (points(space, 3) if space else normals(3, 4)).requires_grad_()
    mapping = Decoder(math.prod(x.shape[1:]), 11)
    inputs = [x, *mapping.parameters()]
    basis = geometry.tangent_basis(space, x) if space else None
    operator = stochastic.NormalOperator(mapping, x, basis)
    signs = all_signs(3, operator.dim)
    solved = stochastic.solve(operator, signs)
    estimate, _ = stochastic.estimate(operator, signs, solved)
    found = gradients(stochastic.surrogate(operator, signs, solved), inputs)
    expected = log_volume_change(mapping, x, space=space)
    if space:
        expected = expected + geometry.log_volume_element(space, x)
    torch.testing.assert_close(estimate, expected.detach(), atol=1e-9, rtol=0)
    for a, b in zip(found, gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@domains
@pytest.mark.parametrize("n_probes", [1, 3])
def test_values_and_gradients_are_unbiased(name, n_probes, device):
    space, draws = SPACES[name](), 400
    x = points(space, 1, device=device)
    x = x.repeat(draws, *[1] * len(space.shape)).requires_grad_()
    mapping = Decoder(math.prod(space.shape), 11, device=device)
    generator = torch.Generator(device).manual_seed(0)
    exact_volume = log_volume_change(mapping, x, space=space)
    found = log_volume_change(
        mapping, x, "hutchinson", space, n_probes=n_probes, generator=generator
    )
    assert found.detach().std() > 0
    assert_mean(found.detach(), exact_volume[0].detach(), floor=1e-9)
    (expected,), (gradient,) = gradients(exact_volume, [x]), gradients(found, [x])
    assert_mean(gradient, expected[0], floor=1e-7)
    # the gradient of the parameters, one draw at a time
    x = x.detach()[:1]
    parameter = mapping.outer
    expected = gradients(log_volume_change(mapping, x, space=space), [parameter])[0]
    drawn = [
        value_and_log_volume_change(mapping, x, space, "hutchinson", n_probes, generator)[1]
        for _ in range(100)
    ]
    drawn = torch.stack([gradients(volume, [parameter])[0] for volume in drawn])
    assert_mean(drawn.flatten(1).sum(1), expected.sum(), floor=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_of_the_value_is_what_it_says(dtype):
    mapping, z = Decoder(9, 15, dtype=dtype), normals(200, 9, dtype=dtype)
    truth = log_volume_change(mapping, z).detach()
    estimate, error = log_volume_change_and_error(mapping, z, n_probes=20)
    assert estimate.dtype == error.dtype == dtype and not estimate.requires_grad
    score = (estimate - truth) / error
    assert 0.8 < float(score.square().mean().sqrt()) < 1.3
    more = log_volume_change_and_error(mapping, z, n_probes=320)[1]
    assert 3 < float((error / more).mean()) < 5
    assert log_volume_change_and_error(mapping, z, n_probes=1)[1].isinf().all()


def test_what_training_takes_has_the_value_as_well():
    mapping, z = Decoder(3, 6), normals(400, 3)
    exact_volume = log_volume_change(mapping, z).detach()
    draw = torch.Generator().manual_seed(0)
    value, found = value_and_log_volume_change(mapping, z, method="hutchinson", generator=draw)
    torch.testing.assert_close(value, mapping(z))
    assert found.requires_grad
    assert_mean(found.detach() - exact_volume, torch.zeros(()).double(), floor=1e-9)
    with torch.no_grad():  # no gradient is wanted, so that there is nothing to spare
        value, found = value_and_log_volume_change(mapping, z, method="hutchinson")
        assert not value.requires_grad
        torch.testing.assert_close(found, exact_volume)
        assert not log_volume_change(mapping, z, "hutchinson").requires_grad


def test_probes_in_inference_mode_are_those_outside():
    mapping, z = Decoder(3, 6), normals(4, 3)

    def volume():
        draw = torch.Generator().manual_seed(0)
        found = log_volume_change(mapping, z, "hutchinson", generator=draw)
        return [found.detach(), *log_volume_change_and_error(mapping, z, generator=draw)]

    expected = volume()
    with torch.inference_mode():
        z = normals(4, 3)
        found = volume()
        with pytest.raises(TypeError, match="generator: expected a torch.Generator, got int"):
            log_volume_change(mapping, z, "hutchinson", generator=3)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_mapping_is_evaluated_once_whatever_the_number_of_probes():
    decoder, calls = Decoder(6, 9), []

    def mapping(z):
        calls.append(len(z))
        return decoder(z)

    value_and_log_volume_change(mapping, normals(5, 6), method="hutchinson", n_probes=4)
    assert calls == [5]


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_devices_and_strides(method, dtype, device):
    space = make_space("S2")
    mapping = Decoder(3, 7, dtype=dtype, device=device)
    x = points(space, 6, dtype, device)
    generator = torch.Generator(device)

    def volume(at):
        generator.manual_seed(0)
        return log_volume_change(mapping, at, method, space, generator=generator)

    expected = volume(x)
    assert expected.dtype == dtype and expected.device == x.device and expected.shape == (6,)
    torch.testing.assert_close(volume(x.mT.contiguous().mT), expected)
    alike = volume(x[:1].expand(6, 3)).detach()
    if method == "exact":
        torch.testing.assert_close(alike, alike[:1].expand(6))
        truth = log_volume_change(mapping.double(), x.double(), space=space)
        torch.testing.assert_close(expected.double(), truth, atol=1e-4, rtol=0)


def test_draws_follow_the_generator_alone():
    mapping, z = Decoder(5, 8), normals(4, 5)

    def estimate(seed):
        draw = torch.Generator().manual_seed(seed)
        return log_volume_change(mapping, z, "hutchinson", generator=draw)

    assert torch.equal(rng_untouched(lambda: estimate(1)), estimate(1))
    assert not torch.equal(estimate(1), estimate(2))
    rng_untouched(lambda: log_volume_change(mapping, z))


# Conjugate gradients --------------------------------------------------------------------


def matrices(n, dim, condition, dtype=torch.float64, seed=0):
    """Symmetric positive definite, of a given condition number."""
    turn = torch.linalg.qr(normals(n, dim, dim, seed=seed))[0]
    value = torch.logspace(0, math.log10(condition), dim, dtype=torch.float64)
    return (turn * value @ turn.mT).to(dtype)


@given(seed=seeds, dim=st.integers(1, 12), k=st.integers(1, 15))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_gradients_reach_their_tolerance(seed, dim, k, dtype):
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    matrix, right = (
        matrices(3, dim, 50.0, dtype, seed),
        normals(3, dim, k, seed=seed, dtype=dtype),
    )
    solved = block_conjugate_gradient(lambda p: matrix @ p, right, tolerance, 2 * dim + 10)
    true = (matrix @ solved.solution - right).norm(dim=1) / right.norm(dim=1)
    assert float(true.max()) < 1.01 * tolerance
    assert solved.residual.max() <= tolerance
    quadrature = log_quadrature(solved).double()
    value, vector = torch.linalg.eigh(matrix.double())
    coefficient = (vector.mT @ right.double()).square()
    expected = (coefficient * value.log().unsqueeze(-1)).sum(1)
    off = (quadrature - expected).abs() / coefficient.sum(1)
    assert float(off.max()) < (1e-3 if dtype == torch.float32 else 1e-7)


def test_right_hand_sides_share_their_krylov_space():
    matrix = matrices(4, 20, 100.0)
    steps = {
        k: len(
            block_conjugate_gradient(
                lambda p: matrix @ p, normals(4, 20, k), 1e-8, 100
            ).diagonal
        )
        for k in (1, 4, 10, 40)
    }
    assert steps[1] >= 20 and steps[4] <= 7 and steps[10] <= 3 and steps[40] == 1, steps


def test_matrices_that_have_converged_are_frozen():
    matrix = matrices(2, 12, 1e4)
    matrix[0] = torch.eye(12)
    right = normals(2, 12, 2)
    alone = block_conjugate_gradient(lambda p: matrix[:1] @ p, right[:1], 1e-10, 50)
    both = block_conjugate_gradient(lambda p: matrix @ p, right, 1e-10, 50)
    assert len(alone.diagonal) == 1 < len(both.diagonal)
    assert torch.equal(both.solution[0], alone.solution[0])
    torch.testing.assert_close(matrix @ both.solution, right, atol=1e-8, rtol=0)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_steps_end_with_the_dimension_in_single_precision(condition, k):
    dim = 20
    matrix = matrices(20, dim, condition, torch.float32)
    right = normals(20, dim, k, dtype=torch.float32)
    solved = block_conjugate_gradient(lambda p: matrix @ p, right, 3e-4, 100)
    assert len(solved.diagonal) <= -(-dim // k)
    basis = solved.basis[..., : dim // k * k]  # the last block may find no more directions
    gram = basis.mT @ basis
    torch.testing.assert_close(
        gram, torch.eye(len(gram[0])).expand_as(gram), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("k", [1, 4])
def test_the_stochastic_gradient_of_ill_conditioned_maps_in_single_precision(k):
    scale = torch.logspace(0, 3, 20, dtype=torch.float64)  # 1e6 in J^T J
    turn, axes = (torch.linalg.qr(normals(m, m))[0] for m in (30, 20))
    weight = axes * scale @ turn[:20]
    z, found = normals(5, 20), []
    for dtype in (torch.float32, torch.float64):
        w = weight.to(dtype).requires_grad_()
        operator = stochastic.NormalOperator(lambda y, w=w: y @ w, z.to(dtype))
        signs = stochastic.random_signs(z, 20, k, torch.Generator().manual_seed(0)).to(dtype)
        value = stochastic.surrogate(operator, signs, stochastic.solve(operator, signs))
        found += gradients(value, [w])
    error = (found[0] - found[1]).norm() / found[1].norm()
    assert float(error) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_conjugate_gradients_miss_is_said(dtype):
    # singular values over more decades than this precision has digits for
    scale = torch.logspace(0, 7 if dtype == torch.float32 else 12, 12, dtype=dtype)
    turn = torch.linalg.qr(normals(20, 20))[0][:12].to(dtype)
    weight = turn.clone().requires_grad_()
    z = normals(3, 12, dtype=dtype)

    def mapping(y):
        return (y @ torch.linalg.qr(normals(12, 12))[0].to(dtype) * scale) @ weight

    with pytest.warns(UserWarning, match=r"residual .* after \d+ steps at sample"):
        log_volume_change(mapping, z, "hutchinson")
    with pytest.warns(UserWarning, match="gradient of the volume change is biased"):
        value_and_log_volume_change(mapping, z, method="hutchinson")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_volume_change(lambda y: y @ weight, z, "hutchinson")
