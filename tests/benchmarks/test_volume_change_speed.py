"""The volume change of injective maps, as ratios measured in one run.

pytest tests/benchmarks/test_volume_change_speed.py --benchmark-enable --benchmark-only -s

The decoder is four affine couplings of normflows (RealNVP) after zero padding, in float32.
Contenders take turns, on one thread; what counts is the least processor time of each.
Without --benchmark-enable only the answers are checked, on the smallest case.
"""

import functools
import time
from pathlib import Path

import normflows as nf
import pytest
import torch

from geoflow_plugin.volume_change import value_and_log_volume_change
from tests.conftest import run_under

# dim, ambient dim, width, batch size: tabular sets and MNIST
CASES = {"10 in 21": (10, 21, 64, 100), "21 in 43": (21, 43, 64, 100)}
CASES |= {"20 in 784": (20, 784, 128, 100)}
SPREAD = 10.0  # singular values of the decoder, as those of a fitted one; 1: as initialised


def problem(case, spread=SPREAD, dim=None):
    """A decoder, its parameters and points."""
    d, ambient, width, n = CASES[case]
    d = dim or d
    torch.manual_seed(0)
    layers = []
    for parity in (0, 1, 0, 1):
        mask = ((torch.arange(ambient) + parity) % 2).float()
        nets = [nf.nets.MLP([ambient, width, width, ambient]) for _ in range(2)]
        layers.append(nf.flows.MaskedAffineFlow(mask, *nets))
    layers = torch.nn.ModuleList(layers).float()
    scale = torch.logspace(0, torch.tensor(spread).log10(), d, dtype=torch.float32)

    def decoder(z):
        x = torch.nn.functional.pad(z * scale, (0, ambient - d))
        for layer in layers:
            x, _ = layer(x)
        return x

    return decoder, list(layers.parameters()), torch.randn(n, d, dtype=torch.float32)


def gradients(loss, parameters):
    return torch.autograd.grad(loss.sum(), parameters, materialize_grads=True)


def exact(decoder, parameters, z):
    return gradients(value_and_log_volume_change(decoder, z)[1], parameters)


def column_by_column(decoder, parameters, z):
    """The Jacobian by a loop over its columns, and the same Gram determinant."""
    eye = torch.eye(z.shape[1], dtype=z.dtype)
    columns = [torch.func.jvp(decoder, (z,), (e.expand_as(z),))[1] for e in eye]
    jacobian = torch.stack(columns, dim=-1)
    root = torch.linalg.cholesky(jacobian.mT @ jacobian)
    return gradients(root.diagonal(dim1=-2, dim2=-1).log(), parameters)


def stochastic(decoder, parameters, z, n_probes=4):
    draw = torch.Generator().manual_seed(0)
    _, surrogate = value_and_log_volume_change(decoder, z, None, "hutchinson", n_probes, draw)
    return gradients(surrogate, parameters)


def one_after_another(decoder, parameters, z, n_probes=4):
    """As published: probe by probe, every product by a jvp and a vjp of their own."""
    draw, tolerance = torch.Generator().manual_seed(0), torch.finfo(z.dtype).eps ** 0.5
    bits = torch.randint(0, 2, (*z.shape, n_probes), generator=draw)

    def push(v):
        return torch.func.jvp(decoder, (z,), (v,))[1]

    def product(v):
        return torch.func.vjp(decoder, z)[1](push(v))[0]

    loss = 0.0
    for probe in (2 * bits - 1).to(z).unbind(-1):
        with torch.no_grad():
            solution, residual, direction = torch.zeros_like(z), probe, probe
            square = residual.square().sum(-1, keepdim=True)
            for _ in range(2 * z.shape[1] + 10):
                image = product(direction)
                step = square / (direction * image).sum(-1, keepdim=True)
                solution = solution + step * direction
                residual = residual - step * image
                previous, square = square, residual.square().sum(-1, keepdim=True)
                if bool((square <= tolerance**2 * z.shape[1]).all()):
                    break
                direction = residual + square / previous * direction
        loss = loss + (push(solution).detach() * push(probe)).sum() / n_probes
    return gradients(loss, parameters)


def least_times(contenders, rounds):
    """Least processor time of each; they take turns."""
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: min(measured) for name, measured in times.items()}


def report(benchmark, title, times, ratios):
    benchmark.extra_info.update(times | ratios)
    figures = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    measured = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in times.items())
    print(f"\n{title}: {figures} ({measured})")


def assert_alike(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_the_exact_gradient_beside_a_loop_over_columns(benchmark, case):
    benchmark.group = "exact volume change and its gradient"
    if benchmark.disabled and case != "10 in 21":
        pytest.skip("timed only")
    given = problem(case)
    ours, theirs = (
        functools.partial(exact, *given),
        functools.partial(column_by_column, *given),
    )
    assert_alike(benchmark.pedantic(ours), theirs(), 1e-3)
    if benchmark.disabled:
        return
    times = least_times({"ours": ours, "columns": theirs}, 6)
    ratios = {"columns to ours": times["columns"] / times["ours"]}
    report(benchmark, f"exact, {case}", times, ratios)


@pytest.mark.parametrize("spread", [SPREAD, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_the_stochastic_gradient_beside_probes_one_after_another(benchmark, case, spread):
    benchmark.group = "stochastic gradient of the volume change"
    if benchmark.disabled and case != "10 in 21":
        pytest.skip("timed only")
    given = problem(case, spread)
    four = functools.partial(stochastic, *given)
    one = functools.partial(stochastic, *given, n_probes=1)
    theirs = functools.partial(one_after_another, *given)
    assert_alike(benchmark.pedantic(four), theirs(), 5e-2)
    if benchmark.disabled:
        return
    contenders = {"4 probes": four, "1 probe": one, "one after another": theirs}
    contenders["exact"] = functools.partial(exact, *given)
    times = least_times(contenders, 4)
    ratios = {
        "4 probes to 1": times["4 probes"] / times["1 probe"],
        "one after another to 4 at once": times["one after another"] / times["4 probes"],
        "exact to 4 probes": times["exact"] / times["4 probes"],
    }
    report(benchmark, f"stochastic, {case}, spread {spread:g}", times, ratios)


MEMORY = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, {folder!r})
import test_volume_change_speed as speed

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

torch.set_num_threads(1)
decoder, parameters, z = speed.problem({case!r}, dim={dim})
z = z.repeat({repeats}, 1)
speed.{run}(decoder, parameters, z[:4])
before = peak()
speed.{run}(decoder, parameters, z)
print(json.dumps(peak() - before))
"""


def peak(run, case, dim=None, repeats=1):
    """MB that a process takes at its peak, above what a tiny batch took."""
    folder = str(Path(__file__).parent)
    options = dict(folder=folder, run=run, case=case, dim=dim, repeats=repeats)
    return run_under("numpy", "-c", MEMORY.format(**options))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory, Linux only")
@pytest.mark.parametrize("case", CASES)
def test_peak_memory(benchmark, case, monkeypatch):
    """Memory beside the loop over columns; batches of the small cases are ten times larger."""
    if benchmark.disabled:
        pytest.skip("measured only")
    # the allocator gives back what is freed, so that the peak is that of live tensors
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    benchmark.group = "memory of the volume change's gradient"
    repeats = 1 if case == "20 in 784" else 10
    found = {
        run: peak(run, case, repeats=repeats)
        for run in ("exact", "column_by_column", "stochastic")
    }
    ratio = found["exact"] / found["column_by_column"]
    benchmark.extra_info.update(found)
    figures = ", ".join(f"{run} {size:.0f} MB" for run, size in found.items())
    print(f"\nmemory, {case}: exact to columns {ratio:.2f} ({figures})")
    benchmark.pedantic(lambda: None)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory, Linux only")
def test_memory_of_the_stochastic_gradient_as_the_dimension_grows(benchmark, monkeypatch):
    if benchmark.disabled:
        pytest.skip("measured only")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    benchmark.group = "memory of the volume change's gradient"
    found = {d: peak("stochastic", "20 in 784", d) for d in (5, 20, 100, 400)}
    benchmark.extra_info.update({str(d): size for d, size in found.items()})
    print("\nmemory, d in 784:", ", ".join(f"d = {d}: {m:.0f} MB" for d, m in found.items()))
    benchmark.pedantic(lambda: None)
