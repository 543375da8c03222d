"""The fit loop: what is learned, and what interruptions, bad numbers and full disks do to it.

``GEOFLOW_KILLS`` sets how many times a process in training is killed (default 20).
"""

import copy
import errno
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from conftest import rng_untouched
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import geoflow_plugin as gf
from geoflow_plugin.networks import (
    FourierField,
    FourierPotential,
    OneHiddenLayerPotential,
    SourceField,
)
from geoflow_plugin.training import (
    Checkpoint,
    Data,
    generator_at,
    minimize,
    own_stream,
    shuffled,
    split,
    write_atomically,
)
from geoflow_plugin.training.state import State

KILLS = int(os.environ.get("GEOFLOW_KILLS", 20))
SPHERE, PLANE = Hypersphere(2), Euclidean(2)


@pytest.fixture(autouse=True)
def _write_at_every_check(monkeypatch):
    monkeypatch.setattr("geoflow_plugin.training.checkpoint._COST", 0)


class Killed(BaseException):
    """What no handler of errors sees."""


# A problem of a few microseconds a step ---------------------------------------------------

INPUT = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OUTPUT = INPUT.sin().sum(1, keepdim=True)


def network(seed=0, dropout=0.0, width=8):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = nn.Linear(3, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1)
        return nn.Sequential(*layers).double()


def regression(
    module, max_steps=60, *, path=None, resume=False, disturb=None, seed=0, size=60, **options
):
    """Least squares with noise that is drawn at every step; the history."""

    def loss(rows, step):
        noise = torch.randn(len(rows), 1, generator=generator_at("cpu", seed, step)).double()
        value = (module(INPUT[rows]) - OUTPUT[rows] - 0.1 * noise).square().mean()
        return value if disturb is None else disturb(value, step)

    @torch.no_grad()
    def validate():
        return float((module(INPUT) - OUTPUT).square().mean())

    batches = options.pop("batches", None) or shuffled(size, 7, seed)
    options = {"learning_rate": 3e-2, "check_every": 5, "progress": False, **options}
    with own_stream(torch.device("cpu"), seed):
        return minimize(
            module,
            loss,
            validate,
            batches,
            max_steps=max_steps,
            seed=seed,
            checkpoint=Checkpoint(path, resume, module, {"seed": seed, "size": size}),
            **options,
        )


def assert_same_weights(one, other):
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


def error_of(module):
    with torch.no_grad():
        return float((module(INPUT) - OUTPUT).square().mean())


# Batches ----------------------------------------------------------------------------------


@given(n=st.integers(1, 30), size=st.integers(1, 40), taken=st.integers(0, 60))
def test_an_epoch_has_every_row_once_and_a_place_is_found_again(n, size, taken):
    batches = shuffled(n, size, seed=3)
    stream = iter(batches)
    per_epoch = -(-n // size)
    epochs = [[next(stream)[0] for _ in range(per_epoch)] for _ in range(2)]
    for epoch in epochs:
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(n))
    again = shuffled(n, size, seed=3)
    stream = iter(again)
    for _ in range(taken):
        next(stream)
    elsewhere = shuffled(n, size, seed=3)
    elsewhere.place = again.place
    for _, (rows, count), (others, _) in zip(range(5), stream, elsewhere, strict=False):
        assert torch.equal(rows, others) and count == len(rows)


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        return torch.cat([rows for rows, _ in shuffled(50, 7, seed).read(epoch)])

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])


# Interruptions ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted():
    module = network(dropout=0.2)
    history = regression(module)
    assert history["validation"][-1] < 0.5 * history["validation"][0]
    return module, history


def _die(at):
    """Whatever is called, the process is dead after so many calls."""
    left = [at]

    def tick(*_):
        left[0] -= 1
        if left[0] <= 0:
            raise Killed

    return tick


def test_a_run_killed_anywhere_ends_with_the_same_weights(
    uninterrupted, tmp_path, monkeypatch
):
    draw = random.Random(0)
    path = tmp_path / "run.pt"
    kills = 0
    while kills < KILLS:
        path.unlink(missing_ok=True)
        finished = False
        while not finished:
            tick = _die(draw.randrange(1, 60))
            with monkeypatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name in ("fsync", "replace"):  # within the writing of a file as well
                    function = getattr(os, name)
                    patch.setattr(os, name, lambda *a, f=function, t=tick: (t(), f(*a))[1])
                module = network(seed=5, dropout=0.2)  # not the weights it began with
                try:
                    first = not path.exists()
                    history = regression(
                        network(dropout=0.2) if first else module,
                        path=path,
                        resume=True,
                        disturb=lambda value, step, tick=tick: (tick(), value)[1],
                    )
                    finished = not first
                except Killed:
                    kills += 1
        assert_same_weights(module, uninterrupted[0])
        assert repr(history) == repr(uninterrupted[1])


def _in_a_fork(function):
    """Process id of a copy of this process that runs a function, and exits."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_killed_at_random_times_loses_nothing(uninterrupted, tmp_path, monkeypatch):
    draw = random.Random(1)
    path, result = tmp_path / "run.pt", tmp_path / "weights.pt"

    def train():
        module = network(dropout=0.2)
        regression(module, path=path, resume=True)
        write_atomically(result, pickle.dumps([p.tolist() for p in module.parameters()]))

    began = time.monotonic()
    os.waitpid(_in_a_fork(train), 0)
    whole, kills = time.monotonic() - began, 0
    while kills < KILLS:
        path.unlink(missing_ok=True)
        result.unlink(missing_ok=True)
        while not result.exists():
            anew, child = not path.exists(), _in_a_fork(train)
            time.sleep(draw.uniform(0, whole))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            assert killed or status == 0
            kills += killed
            if anew and not killed:  # the machine was busier when it was measured
                whole *= 0.9
        weights = pickle.loads(result.read_bytes())
        assert weights == [p.tolist() for p in uninterrupted[0].parameters()]


SCRIPT = """
import sys, warnings, torch
import geoflow_plugin as gf
from geomstats.geometry.hypersphere import Hypersphere
from geoflow_plugin.networks import SourceField
torch.set_num_threads(1)
warnings.simplefilter("ignore")
space = Hypersphere(2)
X = gf.WrappedNormal(space, scale=0.4).sample(80, generator=torch.Generator().manual_seed(0))
torch.manual_seed(int(10 * float(sys.argv[2])))
base = gf.WrappedNormal(space, scale=float(sys.argv[2]))
flow = gf.MoserFlow(space, base=base, field=SourceField(space, 16))
def show(step, metrics):
    print("step", step, flush=True)
flow.fit(X, max_steps=40, patience=40, batch_size=32, progress=False, callback=show,
         checkpoint=sys.argv[1], resume=True)
x = X[:5]
print("done", flow.log_prob(x).tolist(), flow.history_["validation"], flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_script_killed_and_started_again_prints_what_it_would_have(tmp_path):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))

    def run(path, scale, kill_at=None):
        command = [sys.executable, "-c", SCRIPT, str(path), str(scale)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            for line in process.stdout:
                if line.startswith("done"):
                    return line
                if kill_at is not None and int(line.split()[1]) >= kill_at:
                    process.kill()
        return None

    expected = run(tmp_path / "whole.pt", 0.5)
    path = tmp_path / "killed.pt"
    assert run(path, 0.5, kill_at=15) is None
    # one that begins with other weights and another base takes those of the checkpoint
    assert run(path, 0.3) == expected


def test_ctrl_c_keeps_the_best_and_what_it_wrote_goes_on(uninterrupted, tmp_path):
    def interrupt(value, step):
        if step == 33:
            raise KeyboardInterrupt
        return value

    module, path = network(dropout=0.2), tmp_path / "run.pt"
    with pytest.warns(UserWarning, match="interrupted.*step 30"):
        history = regression(module, path=path, disturb=interrupt)
    assert history["step"][-1] == 30
    assert error_of(module.eval()) < history["validation"][0]
    again = network(dropout=0.2)
    assert repr(regression(again, path=path, resume=True)) == repr(uninterrupted[1])
    assert_same_weights(again, uninterrupted[0])
    # once finished, there is nothing left to do
    regression(again, path=path, resume=True, disturb=lambda *_: pytest.fail("a step"))


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    module, path = network(), tmp_path / "run.pt"
    first = regression(module, path=path)
    longer = regression(network(seed=1), 120, path=path, resume=True)
    assert longer["validation"][:13] == first["validation"]
    assert longer["step"][-1] == 120
    assert min(longer["validation"]) < min(first["validation"])


# Files that cannot be written, or read ----------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_costs_a_warning_and_nothing_else(
    code, function, uninterrupted, tmp_path, monkeypatch
):
    path = tmp_path / "run.pt"
    regression(network(dropout=0.2), 20, path=path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, fail)
    module = network(dropout=0.2)
    with pytest.warns(UserWarning, match=f"written.*{os.strerror(code)}"):
        regression(module, path=path)
    assert_same_weights(module, uninterrupted[0])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_disk_that_fills_in_the_middle_of_a_file(tmp_path):
    import resource

    path = tmp_path / "run.pt"
    regression(network(), 10, path=path)
    before = path.read_bytes()

    def train():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
        module = network()
        history = regression(module, path=path)
        assert error_of(module) == min(history["validation"])

    _, status = os.waitpid(_in_a_fork(train), 0)
    assert status == 0
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_resuming_without_a_file_starts_anew_and_says_so(uninterrupted, tmp_path):
    module, path = network(dropout=0.2), tmp_path / "run.pt"
    with pytest.warns(UserWarning, match=r"no checkpoint at .*run\.pt"):
        regression(module, path=path, resume=True)
    assert_same_weights(module, uninterrupted[0])
    assert path.exists()


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "seed"),
        ({"size": 59}, "size"),
        ({"module": network(width=9)}, "weights"),
        ({"module": network().float()}, "weights"),
    ],
    ids=["seed", "size", "width", "dtype"],
)
def test_checkpoints_of_another_fit_are_refused(change, named, tmp_path):
    path = tmp_path / "run.pt"
    regression(network(), 10, path=path)
    before = path.read_bytes()
    module = change.pop("module", network(seed=3))
    weights = [p.clone() for p in module.parameters()]
    with pytest.raises(ValueError, match=f"checkpoint: .* other {named}: expected .* got"):
        regression(module, path=path, resume=True, **change)
    for p, q in zip(module.parameters(), weights, strict=True):
        assert torch.equal(p, q)
    assert path.read_bytes() == before


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def _hostile(path):
    torch.save({"identity": {}, "owner": {}, "snapshot": Exploit()}, path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a checkpoint"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(pickle.dumps(Exploit())),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"identity": 3}, path),
        _hostile,
    ],
    ids=["empty", "text", "truncated", "pickle", "list", "keys", "code"],
)
def test_damaged_and_hostile_checkpoints_are_refused(spoil, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.pt"
    regression(network(), 5, path=path)
    spoil(path)
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.pt is no checkpoint"):
        regression(network(), path=path, resume=True)
    assert not (tmp_path / "executed").exists()


def test_a_damaged_snapshot_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    regression(network(), 5, path=path)
    content = torch.load(path, weights_only=True)
    for name in content["snapshot"]["state"]:
        spoiled = {**content, "snapshot": {**content["snapshot"]}}
        spoiled["snapshot"]["state"] = dict(content["snapshot"]["state"])
        del spoiled["snapshot"]["state"][name]
        torch.save(spoiled, path)
        with pytest.raises(ValueError, match="checkpoint: .* damaged"):
            regression(network(), path=path, resume=True)


@pytest.mark.parametrize(
    "options, error, named",
    [
        ({"resume": True}, ValueError, "checkpoint"),
        ({"checkpoint": 3}, TypeError, "checkpoint"),
        ({"checkpoint": b"run"}, TypeError, "checkpoint"),
        ({"checkpoint": "."}, ValueError, "checkpoint"),
        ({"checkpoint": os.devnull}, ValueError, "checkpoint"),
        ({"checkpoint": "no such folder/run.pt"}, ValueError, "checkpoint"),
        ({"checkpoint": "run.pt", "resume": 1}, TypeError, "resume"),
        ({"checkpoint": "run.pt", "resume": "yes"}, TypeError, "resume"),
    ],
)
def test_bad_checkpoints_are_refused_and_nothing_written(
    options, error, named, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flow, X = moser(), sphere_points(20)
    with pytest.raises(error, match=named):
        flow.fit(X, max_steps=2, progress=False, **options)
    assert not list(tmp_path.iterdir())


@given(crash=st.sampled_from(["open", "fsync", "replace", None]), old=st.booleans())
def test_a_file_is_the_old_one_or_the_new_one(tmp_path_factory, crash, old):
    path = tmp_path_factory.mktemp("atomic") / "file"
    if old:
        path.write_bytes(b"old")
    with pytest.MonkeyPatch.context() as patch:

        def die(*_):
            raise Killed

        if crash == "open":
            patch.setattr("builtins.open", die)
        elif crash:
            patch.setattr(os, crash, die)
        try:
            write_atomically(path, b"new content")
        except Killed:
            assert crash
    found = path.read_bytes() if path.exists() else None
    assert found == (b"new content" if crash is None else b"old" if old else None)


# Bad numerics -----------------------------------------------------------------------------


def _root_of_zero(value):
    """Finite, with an infinite gradient."""
    return value + (value - value.detach()).sqrt()


def _raise(error):
    def spoil(value):
        raise error

    return spoil


SPOILED = {
    "nan": lambda value: value * float("nan"),
    "infinity": lambda value: value * float("inf"),
    "gradient": _root_of_zero,
    "singular": _raise(torch.linalg.LinAlgError("the matrix is singular")),
    "division": _raise(ZeroDivisionError("division by zero")),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_step_gone_wrong_is_taken_back_and_training_goes_on(kind, tmp_path):
    calls = []

    def disturb(value, step):
        calls.append(step)
        return SPOILED[kind](value) if len(calls) in (23, 24, 41) else value

    module, rates = network(), []
    with pytest.warns(UserWarning, match="step 23 failed.*of step 20 at a quarter"):
        history = regression(
            module,
            disturb=disturb,
            callback=lambda step, metrics: rates.append(metrics["learning_rate"]),
        )
    assert calls[20:26] == [21, 22, 23, 23, 23, 24]  # the step is taken with other rows
    assert history["step"][-1] == 60
    plain_rates = []
    regression(network(), callback=lambda s, m: plain_rates.append(m["learning_rate"]))
    assert rates[:5] == plain_rates[:5]  # steps 0, 5, ... 20
    assert rates[5] == pytest.approx(plain_rates[5] / 16)
    assert rates[-1] == pytest.approx(plain_rates[-1] / 64)
    assert error_of(module) == min(history["validation"]) < history["validation"][0]


def test_what_a_bad_step_goes_back_to_is_the_last_check():
    """A jump of the weights that shows one step later is undone."""
    module, seen = network(), {}

    def disturb(value, step):
        if step == 21:
            seen.update({n: p.detach().clone() for n, p in module.named_parameters()})
        if step == 23 and "jumped" not in seen:
            seen["jumped"] = True
            with torch.no_grad():
                for p in module.parameters():
                    p.mul_(1e200)
            return value * float("nan")
        if step == 23:
            for name, p in module.named_parameters():
                assert torch.equal(p, seen[name])
        return value

    with pytest.warns(UserWarning, match="step 23 failed"):
        regression(module, disturb=disturb)


def test_what_is_gone_back_to_is_not_changed_by_what_follows():
    module = network()
    state = State(module, 0.98, 0)

    def step():
        def loss(rows, step):
            return (module(INPUT) - OUTPUT).square().mean()

        state.descend(loss, torch.arange(60), 60, 1e-2)

    for _ in range(3):
        step()
    snapshot = state.snapshot()
    before = copy.deepcopy(snapshot)
    ends = []
    for _ in range(2):
        state.retreat(snapshot)
        state.step = 3
        step()
        ends.append([p.detach().clone() for p in module.parameters()])
    assert repr(snapshot) == repr(before)
    for p, q in zip(*ends, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", SPOILED)
def test_after_some_tries_it_raises_with_good_weights_in_place(kind):
    calls, module = [], network()

    def disturb(value, step):
        calls.append(step)
        return SPOILED[kind](value) if step > 22 else value

    with pytest.warns(UserWarning), pytest.raises(FloatingPointError) as raised:
        regression(module, disturb=disturb)
    assert calls.count(23) == 9
    assert "step 23" in str(raised.value) and "best weights so far" in str(raised.value)
    assert error_of(module) < error_of(network())
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_every_second_step_wrong_is_too_many():
    calls = []

    def disturb(value, step):
        calls.append(step)
        return value * float("nan") if len(calls) % 2 else value

    with pytest.warns(UserWarning), pytest.raises(FloatingPointError, match="8 others"):
        regression(network(), check_every=20, disturb=disturb)


def test_a_score_that_cannot_be_had_is_a_bad_step_too():
    module, calls = network(), []

    def validate():
        calls.append(None)
        if len(calls) in (4, 5):
            raise ArithmeticError("a singular Gram matrix")
        return error_of(module)

    def loss(rows, step):
        return (module(INPUT[rows]) - OUTPUT[rows]).square().mean()

    with own_stream(torch.device("cpu"), 0), pytest.warns(UserWarning, match="Gram"):
        history = minimize(
            module,
            loss,
            validate,
            shuffled(60, 7, 0),
            max_steps=60,
            learning_rate=3e-2,
            check_every=5,
            progress=False,
        )
    assert history["step"] == [0, 5, 10, 25, 30, 35, 40, 45, 50, 55, 60]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_one_gradient_out_of_all_measure_is_cut(scale):
    """What it does to the weights does not depend on the loss's unit."""

    def run(spike):
        module, seen = network(), []

        def disturb(value, step):
            return scale * value * (spike if step == 100 else 1.0)

        options = {"disturb": disturb, "callback": lambda _, metrics: seen.append(metrics)}
        regression(module, 300, check_every=25, **options)
        return error_of(module), [m["gradient_norm"] for m in seen]

    calm, norms = run(1.0)
    cut, spiked = run(1e8)
    assert spiked[4] > 1e6 * norms[4]  # at step 100: the norm before the cut
    assert cut < 1.2 * calm  # uncut, Adam hardly moves any more: five times


def test_what_is_usual_is_remembered_over_an_interruption(tmp_path):
    def disturb(value, step):
        return 1e8 * value if step == 30 else value

    def die(step, _):
        if step == 30:
            raise Killed

    whole, path = network(), tmp_path / "run.pt"
    regression(whole, disturb=disturb)
    with pytest.raises(Killed):
        regression(network(), disturb=disturb, path=path, callback=die)
    resumed = network()
    regression(resumed, disturb=disturb, path=path, resume=True)
    assert_same_weights(resumed, whole)


@pytest.mark.parametrize("family", ["moser", "monge_ampere"])
def test_ordinary_gradients_are_left_alone(family, monkeypatch):
    shares = []
    original = torch.nn.utils.clip_grad_norm_

    def spy(parameters, bound):
        norm = original(parameters, bound)
        shares.append(float(norm) / bound)
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    make, points = FAMILIES[family]
    make().fit(points(200), max_steps=60, patience=60, batch_size=32, progress=False)
    assert len(shares) == 60 and max(shares) < 1


# Randomness -------------------------------------------------------------------------------


def test_the_global_stream_is_used_by_nobody_and_the_seed_by_everybody():
    runs = []
    for seed, stirred in ((0, 1), (0, 2), (1, 1)):
        module = network(dropout=0.5)
        torch.manual_seed(stirred)
        rng_untouched(lambda module=module, seed=seed: regression(module, seed=seed))
        runs.append(module)
    assert_same_weights(*runs[:2])
    assert any(
        not torch.equal(p, q)
        for p, q in zip(runs[0].parameters(), runs[2].parameters(), strict=True)
    )


# Flows ------------------------------------------------------------------------------------


def sphere_points(n, dtype=torch.float32, seed=0):
    law = gf.WrappedNormal(SPHERE, scale=0.4, dtype=dtype)
    return law.sample(n, generator=torch.Generator().manual_seed(seed))


def moser(seed=0, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(seed)
    background = FourierField((3,), 8, 16, 1, generator=generator, dtype=dtype)
    field = SourceField(SPHERE, 16, background, generator, dtype=dtype)
    return gf.MoserFlow(SPHERE, field=field, **options)


def monge_ampere(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    potential = OneHiddenLayerPotential(2, 8, generator=generator, dtype=dtype)
    return gf.MongeAmpereFlow(PLANE, potential=potential, n_steps=3, step_size=0.3)


def plane_points(n, dtype=torch.float32, seed=0):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x + x[:, :1].square()


FAMILIES = {"moser": (moser, sphere_points), "monge_ampere": (monge_ampere, plane_points)}
families = pytest.mark.parametrize("family", FAMILIES)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_resumed_is_the_flow_uninterrupted(family, dtype, device, tmp_path):
    make, points = FAMILIES[family]
    X, path = points(90, dtype), tmp_path / "flow.pt"
    options = {"max_steps": 24, "patience": 24, "batch_size": 32, "progress": False}

    def fit(seed, **more):
        flow = make(seed, dtype).to(device)
        return rng_untouched(lambda: flow.fit(X, **options, **more))

    def die(step, _):
        if step == 15:
            raise Killed

    whole = fit(0)
    with pytest.raises(Killed):
        fit(0, checkpoint=path, callback=die)
    resumed = fit(1, checkpoint=str(path), resume=True)  # from other initial weights
    assert_same_weights(resumed, whole)
    assert repr(resumed.history_) == repr(whole.history_)
    x = X[:5].to(device)
    assert torch.equal(resumed.log_prob(x), whole.log_prob(x))


def test_fit_target_resumed_is_the_flow_uninterrupted(tmp_path):
    path = tmp_path / "flow.pt"

    def target(x):
        return -x.square().sum(1)

    def fit(flow, **more):
        return flow.fit_target(target, max_steps=16, batch_size=32, progress=False, **more)

    def die(step, _):
        if step == 10:
            raise Killed

    whole = fit(monge_ampere())
    with pytest.raises(Killed):
        fit(monge_ampere(), checkpoint=path, callback=die)
    resumed = fit(monge_ampere(1), checkpoint=path, resume=True)
    assert_same_weights(resumed, whole)
    assert resumed.free_energy_ == whole.free_energy_
    with pytest.raises(ValueError, match="checkpoint: .* other task"):
        monge_ampere().fit(plane_points(20), batch_size=32, checkpoint=path, resume=True)


def test_history_goes_on_over_fits_and_resumptions(tmp_path):
    X, path = plane_points(40), tmp_path / "flow.pt"
    flow = monge_ampere().fit(X, max_steps=8, patience=8, progress=False)
    assert flow.history_["step"] == list(range(9))

    def die(step, _):
        if step == 12:
            raise Killed

    other = copy.deepcopy(flow)
    flow.fit(X, max_steps=8, patience=8, progress=False)
    assert flow.history_["step"] == [*range(9), *range(8, 17)]
    with pytest.raises(Killed):
        other.fit(X, max_steps=8, patience=8, progress=False, checkpoint=path, callback=die)
    other.fit(X, max_steps=8, patience=8, progress=False, checkpoint=path, resume=True)
    assert repr(other.history_) == repr(flow.history_)


def test_a_callback_sees_the_history_as_it_grows(capsys):
    seen = []
    flow = monge_ampere().fit(
        plane_points(40), max_steps=16, callback=lambda *entry: seen.append(entry)
    )
    history = flow.history_
    assert [step for step, _ in seen] == history["step"]
    for name in ("loss", "validation"):
        assert [m[name] for _, m in seen] == pytest.approx(history[name], nan_ok=True)
    assert all(m["learning_rate"] > 0 for _, m in seen)
    # a bar in a file is a line or two
    assert len(re.split("[\r\n]+", capsys.readouterr().err.strip())) <= 3


def test_an_error_of_a_callback_is_passed_on():
    def fail(step, _):
        if step:
            raise ZeroDivisionError("of the user's own")

    with pytest.raises(ZeroDivisionError, match="own"):
        monge_ampere().fit(plane_points(40), max_steps=4, progress=False, callback=fail)


# Datasets and streams ---------------------------------------------------------------------


class Counted(Dataset):
    """As many rows as asked for, counting how many were fetched, and at most at once."""

    def __init__(self, n, points):
        self.n, self.points = n, points(1000)
        self.total, self.most = 0, 0

    def __len__(self):
        return self.n

    def __getitems__(self, rows):
        self.total += len(rows)
        self.most = max(self.most, len(rows))
        return list(self.points[torch.tensor(rows) % 1000])


class Endless(IterableDataset):
    """Points with their first coordinate as context, without end."""

    def __iter__(self):
        while True:
            x = nn.functional.normalize(torch.randn(3), dim=0)
            yield x, x[:1]


class Finite(IterableDataset):
    def __init__(self, X):
        self.X = X

    def __iter__(self):
        return iter(self.X)


def test_a_loss_is_the_same_of_arrays_and_of_rows_fetched():
    X = sphere_points(50)
    context = X[:, :1].contiguous()

    def read(points, given, name):
        return Data(points.double(), None if given is None else given.double())

    dataset = TensorDataset(X, context)
    generator = torch.Generator().manual_seed(0)
    options = {"read": read, "batch_size": 8, "generator": generator}
    train, held_out = split(dataset, None, 0.2, **options)
    assert (len(train), len(held_out)) == (40, 10)
    whole = torch.cat([train.points, held_out.points])
    assert torch.equal(whole.sort(0).values, X.double().sort(0).values)
    in_memory = Data(train.points, train.context)
    for rows in (torch.tensor([3, 0, 39]), slice(5), torch.arange(40)):
        points, given = train.rows(rows)
        expected, expected_given = in_memory.rows(rows)
        assert torch.equal(points, expected)
        assert torch.equal(given["context"], expected_given["context"])
        assert torch.equal(given["context"], points[:, :1])
    double = train.map(lambda x, context: 2 * x + context)
    assert torch.equal(
        double.rows(rows)[0], in_memory.map(lambda x, context: 2 * x + context)[0]
    )
    index = torch.tensor([4, 39, 4])
    pairs = train.coincidences(torch.tensor([39, 7, 4]), None, index)
    assert [p.tolist() for p in pairs] == [[0, 2, 2], [1, 0, 2]]


def test_leaving_sources_out_of_a_stream_is_leaving_them_out_of_its_rows():
    X = sphere_points(40, torch.float64)

    def read(points, given, name):
        return Data(points)

    options = {"read": read, "batch_size": 8, "generator": torch.Generator()}
    stream, _ = split(DataLoader(X, batch_size=8), None, None, **options)
    index = torch.tensor([4, 39, 4])
    batch = Data(X[[39, 7, 4]])
    at, row = stream.coincidences(batch, stream.rows(batch)[0], index)
    assert [at.tolist(), row.tolist()] == [[0, 2, 2], [1, 0, 2]]


@families
@pytest.mark.parametrize("kind", ["dataset", "loader", "iterable"])
def test_flows_learn_from_what_is_not_in_memory(family, kind):
    make, points = FAMILIES[family]
    X, held_out = points(300), points(100, seed=1).double()
    streams = {
        "dataset": TensorDataset(X),
        "loader": DataLoader(X.numpy().astype("float64"), batch_size=64, shuffle=True),
        "iterable": Finite(X),
    }
    flow = make()
    options = {"max_steps": 30, "batch_size": 64, "learning_rate": 2e-2, "progress": False}
    rng_untouched(lambda: flow.fit(streams[kind], validation=held_out, **options))
    plain = make().fit(X, validation=held_out, **options)
    gain = flow.history_["validation"][0] - min(flow.history_["validation"])
    expected = plain.history_["validation"][0] - min(plain.history_["validation"])
    assert gain > 0.7 * expected > 0.02


def test_contexts_stream_with_their_points():
    potential = FourierPotential((3,), 4, 8, context_dim=1)
    flow = gf.MongeAmpereFlow(SPHERE, potential=potential, n_steps=1)
    loader = DataLoader(Endless(), batch_size=32)
    held_out = next(iter(loader))
    flow.fit(loader, validation=tuple(held_out), max_steps=4, patience=4, progress=False)
    assert len(flow.history_["step"]) == 5
    with pytest.raises(TypeError, match="context"):
        moser().fit(loader, validation=None, max_steps=2, progress=False)


@families
def test_what_is_held_in_memory_does_not_grow_with_the_data(family, monkeypatch):
    monkeypatch.setattr("geoflow_plugin.training.data.BOUND", 300)
    make, points = FAMILIES[family]
    asked = []
    for n in (10_000, 1_000_000):
        dataset = Counted(n, points)
        make().fit(dataset, validation=0.1, max_steps=4, batch_size=64, progress=False)
        asked.append((dataset.total, dataset.most))
    assert asked[0] == asked[1]
    assert asked[0] == (2 * 300 + 4 * 64, 300)  # two samples, and the batches


def test_a_validation_set_may_be_a_dataset_or_a_loader():
    X, held_out = plane_points(60), plane_points(30, seed=1)
    scores = []
    for validation in (held_out, TensorDataset(held_out), DataLoader(held_out, batch_size=7)):
        flow = monge_ampere().fit(X, validation=validation, max_steps=2, progress=False)
        scores.append(flow.history_["validation"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    assert scores[2] == pytest.approx(scores[0], rel=1e-5)


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


class Jittered(Items):
    """Augmented by noise from torch's global stream."""

    def __getitem__(self, row):
        return self.items[row] + 0.1 * torch.randn(2)


@pytest.mark.parametrize("generator", [None, 3], ids=["no generator", "generator"])
@pytest.mark.parametrize("at", [3, 9, 14])
def test_a_stream_resumed_is_the_stream_uninterrupted(generator, at, tmp_path):
    X, path = plane_points(50), tmp_path / "flow.pt"

    def fit(**more):
        own = None if generator is None else torch.Generator().manual_seed(generator)
        loader = DataLoader(Jittered(X), batch_size=8, shuffle=True, generator=own)
        return monge_ampere().fit(
            loader, validation=X[:10], max_steps=15, patience=15, progress=False, **more
        )

    def die(step, _):
        if step == at:
            raise Killed

    whole = fit()
    with pytest.raises(Killed):
        fit(checkpoint=path, callback=die)
    assert_same_weights(fit(checkpoint=path, resume=True), whole)


class Once(IterableDataset):
    """What can be read once only."""

    def __init__(self, n):
        self.points = iter(sphere_points(n))

    def __iter__(self):
        return self.points


X20 = sphere_points(20)
BAD = {
    "a share of a stream": (DataLoader(X20), {}, ValueError, "validation: a stream"),
    "a share of an iterable": (
        Endless(),
        {"validation": 0.2},
        ValueError,
        "validation: a str",
    ),
    "context beside a dataset": (
        TensorDataset(X20),
        {"context": X20},
        TypeError,
        "context: .* Dataset",
    ),
    "dicts": ([{"x": x} for x in X20], {}, TypeError, "X: expected a dataset of points"),
    "triples": (TensorDataset(X20, X20, X20), {}, TypeError, "X: expected a dataset"),
    "points off the space": (TensorDataset(2 * X20), {}, ValueError, "X: "),
    "points of another shape": (TensorDataset(X20[:, :2]), {}, ValueError, "X: "),
    "integers": (TensorDataset(X20.long()), {}, TypeError, "X: "),
    "no rows": (TensorDataset(X20[:0]), {}, ValueError, "X: .* length"),
    "one row": (TensorDataset(X20[:1]), {}, ValueError, "X: .* two"),
    "an empty loader": (
        DataLoader(Finite(X20[:0])),
        {"validation": X20},
        ValueError,
        "X: .* nothing",
    ),
    "no second epoch": (Once(20), {"validation": X20}, ValueError, "X: it gave no points"),
    "a loader of validation off the space": (
        X20,
        {"validation": DataLoader(2 * X20)},
        ValueError,
        "validation: ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_streams_are_refused_by_name(case):
    X, options, error, match = BAD[case]
    X = Items(X) if isinstance(X, list) else X
    with pytest.raises(error, match=match):
        moser().fit(X, max_steps=2, progress=False, **options)


def test_a_bad_row_that_comes_late_leaves_the_best_weights_in_place(monkeypatch):
    monkeypatch.setattr("geoflow_plugin.training.data.BOUND", 30)
    X = plane_points(20)
    spoiled = X.clone()
    spoiled[13] = float("nan")
    flow, scores = monge_ampere(), []
    with pytest.raises(ValueError, match="X: .*finite"):
        flow.fit(
            DataLoader(Items([*X, *X, *spoiled]), batch_size=2),
            validation=X,
            max_steps=40,
            learning_rate=2e-2,
            progress=False,
            callback=lambda _, metrics: scores.append(metrics["validation"]),
        )
    assert -float(flow.log_prob(X).detach().mean()) == pytest.approx(min(scores), rel=1e-5)
    assert min(scores) < scores[0]
