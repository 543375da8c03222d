"""One-hidden-layer potentials and their gradient flow."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.func import hessian, jacrev, jvp, vjp, vmap

from geoflow_plugin.integrators import hidden_layer
from geoflow_plugin.integrators.hidden_layer import hidden_layer_flow
from geoflow_plugin.networks.potentials import OneHiddenLayerPotential
from tests.conftest import rng_untouched, run_under

ACTIVATIONS = ["softplus", "log_cosh"]
DTYPES = [torch.float32, torch.float64]
SHAPES = [(3,), (2, 3)]

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def random_potential(shape, activation, dtype=torch.float64, device="cpu", width=7):
    """Of amplitudes and biases that are not small."""
    generator = torch.Generator().manual_seed(0)
    potential = OneHiddenLayerPotential(math.prod(shape), width, activation, generator, dtype)
    for parameter in (potential.bias, potential.amplitude):
        parameter.data.normal_(generator=generator)
    x = torch.randn(5, *shape, generator=generator, dtype=dtype)
    return potential.to(device), x.to(device)


# The potential


@each_activation
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_and_laplacian_are_those_of_the_value(activation, shape, dtype, device):
    potential, x = random_potential(shape, activation, dtype, device)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12

    def value(point):
        return potential(point[None])[0]

    dim = math.prod(shape)
    second = vmap(hessian(value))(x).reshape(len(x), dim, dim)
    gradient, laplacian = potential.gradient_and_trace(x)
    for found in (gradient, potential.gradient(x)):
        torch.testing.assert_close(
            found, vmap(torch.func.grad(value))(x), atol=tolerance, rtol=tolerance
        )
    trace = second.diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(laplacian, trace, atol=tolerance, rtol=tolerance)


@each_activation
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_trace_over_a_basis_is_a_sum_of_forward_mode_products(activation, shape, device):
    potential, x = random_potential(shape, activation, device=device)
    basis = torch.randn(2, *x.shape, dtype=x.dtype, device=device)

    def along(direction):
        return (direction * jvp(potential.gradient, (x,), (direction,))[1]).flatten(1).sum(-1)

    gradient, trace = potential.gradient_and_trace(x, basis)
    torch.testing.assert_close(trace, vmap(along)(basis).sum(0))
    torch.testing.assert_close(gradient, potential.gradient(x))


@each_activation
def test_transforms_of_torch_func(activation):
    potential, x = random_potential((3,), activation)
    direction = torch.randn_like(x)
    slope = jvp(potential, (x,), (direction,))[1]
    torch.testing.assert_close(slope, (potential.gradient(x) * direction).sum(-1))
    (pulled,) = vjp(potential, x)[1](torch.ones(len(x), dtype=x.dtype))
    torch.testing.assert_close(pulled, potential.gradient(x))
    jacobian = jacrev(lambda point: potential.gradient_and_trace(point)[0].sum(0))(x)
    torch.testing.assert_close(jacobian.diagonal(dim1=0, dim2=2).sum(-1),
                               potential.gradient_and_trace(x)[1])  # fmt: skip


@each_activation
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_overflows_far_away_or_cancels_at_zero(activation, dtype):
    potential = OneHiddenLayerPotential(1, 1, activation, dtype=dtype)
    for parameter, value in zip(potential.parameters(), (1.0, 0.0, 1.0), strict=True):
        parameter.data.fill_(value)
    x = torch.tensor([[-3e4], [-50.0], [0.0], [50.0], [3e4]], dtype=dtype)
    even = activation == "log_cosh"
    limits = x.abs().squeeze(-1) - math.log(2) if even else x.clamp_min(0).squeeze(-1)
    limits[2] = 0.0 if even else math.log(2)
    torch.testing.assert_close(potential(x), limits)
    slopes = torch.tensor([-1, -1, 0, 1, 1.0] if even else [0, 0, 0.5, 1, 1], dtype=dtype)
    (slope,) = vjp(potential, x)[1](torch.ones(5, dtype=dtype))
    torch.testing.assert_close(slope.squeeze(-1), slopes)
    gradient, laplacian = potential.gradient_and_trace(x)
    torch.testing.assert_close(gradient.squeeze(-1), slopes)
    bends = jvp(lambda p: vjp(potential, p)[1](torch.ones(5, dtype=dtype))[0], (x,),
                (torch.ones_like(x),))[1].squeeze(-1)  # fmt: skip
    torch.testing.assert_close(laplacian, bends)
    assert laplacian[2].item() == (1.0 if even else 0.25)


def test_a_new_potential():
    generator = torch.Generator().manual_seed(3)
    potential = rng_untouched(lambda: OneHiddenLayerPotential(784, 1024, generator=generator))
    assert sum(p.numel() for p in potential.parameters()) == 804_864  # of the paper
    assert potential.weight.dtype == torch.get_default_dtype()
    x = torch.randn(100, 784)
    y, log_det = hidden_layer_flow(x, *potential.as_hidden_layer(), 0.1, 10)
    assert 0 < (y - x).abs().max().item() < 0.05 and log_det.abs().max().item() < 0.1


@pytest.mark.parametrize(
    "arguments, name",
    [((0,), "dim"), ((3, 2.0), "width"), ((3, True), "width"), ((3, 4, "relu"), "activation")],
)
def test_potentials_of_no_sense_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        OneHiddenLayerPotential(*arguments)


def test_points_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"^x: expected points of 6 entries, got shape"):
        OneHiddenLayerPotential(6)(torch.zeros(2, 3))


# Its flow


def arguments(n, dim, width, dtype=torch.float64):
    """Points, weight, bias and amplitude, all of which require gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, dim), (width, dim), (width,), (width,)]
    drawn = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def plain_flow(x, weight, bias, amplitude, activation, step_size, n_steps):
    """Classical RK4 in x, to be differentiated by autograd."""

    def rate(x):
        h = x @ weight.mT + bias
        if activation == "softplus":
            slope = torch.sigmoid(h)
            curvature = slope * (1 - slope)
        else:
            slope = torch.tanh(h)
            curvature = 1 - slope**2
        return (amplitude * slope) @ weight, curvature @ (amplitude * (weight**2).sum(-1))

    log_det = torch.zeros_like(x[:, 0])
    for _ in range(n_steps):
        k1, l1 = rate(x)
        k2, l2 = rate(x + step_size / 2 * k1)
        k3, l3 = rate(x + step_size / 2 * k2)
        k4, l4 = rate(x + step_size * k3)
        x = x + step_size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        log_det = log_det + step_size / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
    return x, log_det


def gradients(results, tensors):
    """Of fixed cotangents of all results."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in results]
    cotangents = [c.to(t) for c, t in zip(drawn, results, strict=True)]
    return torch.autograd.grad(results, tensors, cotangents)


def with_gradients(flow, tensors, *options):
    """Results and gradients in all tensors."""
    results = flow(*tensors, *options)
    return *results, *gradients(results, tensors)


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * (1 + scale))


@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 5), st.integers(1, 12)),
    activation=st.sampled_from(ACTIVATIONS),
    step_size=st.floats(-0.1, 0.1),
    n_steps=st.integers(1, 30),
    kept=st.sampled_from([0, 5000, 2**23]),
)
def test_it_is_rk4_and_so_are_its_gradients(sizes, activation, step_size, n_steps, kept):
    tensors = arguments(*sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hidden_layer, "_KEPT", kept)  # none, some or all of the tape
        found = with_gradients(hidden_layer_flow, tensors, activation, step_size, n_steps)
    expected = with_gradients(plain_flow, tensors, activation, step_size, n_steps)
    assert_same(found, expected, 1e-11)


@each_activation
@pytest.mark.parametrize("width", [6, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_device(activation, width, dtype, device):
    options = activation, -0.05, 25
    tensors = arguments(40, 6, width, dtype)
    moved = [t.detach().to(device).requires_grad_() for t in tensors]
    found = with_gradients(hidden_layer_flow, moved, *options)
    assert all(t.dtype == dtype and t.device.type == device.type for t in found)
    plain = with_gradients(plain_flow, tensors, *options)
    exact = with_gradients(plain_flow, [t.double() for t in tensors], *options)

    def error(result, truth):
        return ((result.cpu().double() - truth).abs().max() / truth.abs().max()).item()

    for one, other, truth in zip(found, plain, exact, strict=True):
        assert error(one, truth) < 3 * error(other, truth) + 50 * torch.finfo(dtype).eps


@each_activation
@pytest.mark.parametrize("width", [3, 8])
def test_gradcheck(activation, width):
    tensors = arguments(3, 2, width)
    assert torch.autograd.gradcheck(
        lambda *t: hidden_layer_flow(*t, activation, 0.2, 3), tensors
    )


def test_the_flow_of_one_unit_is_known():
    # h' = m tanh h has sinh h(t) = sinh h(0) exp(m t), and dh(t)/dh(0) is the determinant
    x, weight, bias, amplitude = arguments(50, 3, 1)
    y, log_det = hidden_layer_flow(x, weight, bias, amplitude, "log_cosh", 0.01, 100)
    rate = amplitude * weight.square().sum()
    h = x @ weight.mT + bias
    end = torch.asinh(h.sinh() * rate.exp())
    torch.testing.assert_close(y, x + (end - h) * weight / weight.square().sum())
    torch.testing.assert_close(log_det, (h.cosh() * rate.exp() / end.cosh()).log().squeeze(-1))


@each_activation
def test_log_det_is_that_of_the_map_and_the_inverse_comes_back(activation):
    x, *parameters = (t.detach() for t in arguments(6, 3, 5))

    def flow(x, step_size, n_steps):
        return hidden_layer_flow(x, *parameters, activation, step_size, n_steps)

    def errors(n_steps):
        y, log_det = flow(x, 1 / n_steps, n_steps)
        jacobian = vmap(jacrev(lambda p: flow(p[None], 1 / n_steps, n_steps)[0][0]))(x)
        back, log_det_back = flow(y, -1 / n_steps, n_steps)
        differences = jacobian.slogdet().logabsdet - log_det, back - x, log_det + log_det_back
        return [float(difference.abs().max()) for difference in differences]

    for coarse, fine in zip(errors(10), errors(20), strict=True):
        assert fine < coarse / 10 and fine < 1e-3  # fourth order


@each_activation
@pytest.mark.parametrize("width", [4, 20])
@pytest.mark.parametrize("which", range(4))
def test_gradients_for_some_of_the_tensors_only(activation, width, which):
    tensors = arguments(5, 3, width)
    expected = with_gradients(hidden_layer_flow, tensors, activation, 0.1, 5)[2 + which]
    some = [t if i == which else t.detach() for i, t in enumerate(tensors)]
    (found,) = gradients(hidden_layer_flow(*some, activation, 0.1, 5), [tensors[which]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [4, 20])
@pytest.mark.parametrize("kept", [0, 2**23])
def test_backward_twice_gives_the_same_and_double_backward_is_refused(
    width, kept, monkeypatch
):
    monkeypatch.setattr(hidden_layer, "_KEPT", kept)
    tensors = arguments(5, 3, width)
    x, log_det = hidden_layer_flow(*tensors, "softplus", 0.1, 200)
    total = x.sum() + log_det.sum()
    first = torch.autograd.grad(total, tensors, retain_graph=True)
    again = torch.autograd.grad(total, tensors, create_graph=True)
    assert_same(again, first, 0.0)
    with pytest.raises(RuntimeError, match="twice"):
        again[0].sum().backward()


@pytest.mark.parametrize("width", [4, 20])
def test_inputs_are_left_alone_and_may_be_strided(width):
    tensors = [t.detach() for t in arguments(5, 3, width)]
    strided = [torch.stack([t, t], -1)[..., 0].requires_grad_() for t in tensors]
    copies = [t.detach().clone() for t in strided]
    found = with_gradients(hidden_layer_flow, strided, "softplus", 0.1, 5)
    assert_same([t.detach() for t in strided], copies, 0.0)
    dense = [t.requires_grad_() for t in tensors]
    assert_same(found, with_gradients(plain_flow, dense, "softplus", 0.1, 5), 1e-12)


@each_activation
@pytest.mark.parametrize("width", [4, 20])
def test_what_is_kept_grows_like_the_square_root_of_the_steps(activation, width, monkeypatch):
    monkeypatch.setattr(hidden_layer, "_KEPT", 0)

    def count(n_steps, tensors):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
            x, _ = hidden_layer_flow(*tensors, activation, 1e-3, n_steps)
        return sum(t.numel() for t in saved), x

    tensors = arguments(300, 3, width)
    sizes = {n_steps: count(n_steps, tensors)[0] for n_steps in (20, 2000)}
    assert sizes[2000] < 20 * sizes[20]
    with torch.no_grad():
        kept, x = count(20, tensors)
    assert kept == 0 and x.grad_fn is None


PEAK = """
import json
from pathlib import Path
import torch
from geoflow_plugin.integrators.hidden_layer import hidden_layer_flow

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

torch.set_num_threads(1)
tensors = [torch.randn(shape) / 16 for shape in [(256, {dim}), (256, {dim}), (256,), (256,)]]
for tensor in tensors:
    tensor.requires_grad_()
peaks = []
for n_steps in (10, 400):
    x, log_det = hidden_layer_flow(*tensors, "softplus", 0.01, n_steps)
    (x.sum() + log_det.sum()).backward()
    peaks.append(peak())
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's records")
@pytest.mark.parametrize("dim", [16, 128])
def test_peak_memory_hardly_grows_with_the_steps(dim):
    few, many = run_under("numpy", "-c", PEAK.format(dim=dim))
    assert many - few < 100  # MB; s' at every stage takes 400


@each_activation
@pytest.mark.parametrize("width", [4, 20])
def test_transforms_of_torch_func_see_the_same_flow(activation, width):
    x, *parameters = arguments(5, 3, width)
    direction = torch.randn_like(x)

    def flow(x):
        return hidden_layer_flow(x, *parameters, activation, 0.1, 5)

    expected = flow(x)
    values, changes = jvp(flow, (x,), (direction,))
    assert_same(values, expected, 1e-12)
    with forward_ad.dual_level():
        results = [forward_ad.unpack_dual(t) for t in flow(forward_ad.make_dual(x, direction))]
        assert_same([result.primal for result in results], expected, 1e-12)
        assert_same([result.tangent for result in results], changes, 1e-12)
    assert_same(vmap(flow)(x.unsqueeze(1))[1].squeeze(-1), expected[1], 1e-12)
    (pulled,) = torch.autograd.grad(expected[1].sum(), x)
    torch.testing.assert_close((pulled * direction).sum(-1), changes[1])


def test_no_points():
    x, log_det = hidden_layer_flow(*arguments(0, 3, 4), "softplus", 0.1, 2)
    assert x.shape == (0, 3) and log_det.shape == (0,)
    (x.sum() + log_det.sum()).backward()


BAD = {
    "activation": ({"activation": "relu"}, ValueError),
    "step_size": ({"step_size": math.nan}, ValueError),
    "n_steps": ({"n_steps": 0}, ValueError),
    "n_steps: expected an integer": ({"n_steps": 2.5}, ValueError),
    "x, weight": ({"x": torch.zeros(2, 4)}, ValueError),
    "x, weight: expected shapes": ({"x": torch.zeros(3)}, ValueError),
    "bias": ({"bias": torch.zeros(3)}, ValueError),
    "amplitude": ({"amplitude": torch.zeros(4, 1)}, ValueError),
    "weight": ({"weight": torch.zeros(4, 3, dtype=torch.float16)}, TypeError),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused_by_name(message):
    names = ["x", "weight", "bias", "amplitude"]
    good = dict(zip(names, arguments(2, 3, 4, torch.float32), strict=True))
    good |= {"activation": "softplus", "step_size": 0.1, "n_steps": 2}
    changes, error = BAD[message]
    with pytest.raises(error, match=f"^{message}"):
        hidden_layer_flow(**(good | changes))
