"""Two processes that train one model: the same model as one process makes of it."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from conftest import rng_untouched
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import geoflow_plugin as gf
from geoflow_plugin.networks import OneHiddenLayerPotential, SourceField

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo here"
)

SPHERE, PLANE = Hypersphere(2), Euclidean(2)
FIT = {"batch_size": 32, "learning_rate": 1e-2, "progress": False}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def sphere_points():
    law = gf.WrappedNormal(SPHERE, scale=0.4, dtype=torch.float64)
    return law.sample(72, generator=generator(0))


def plane_points():
    x = torch.randn(72, 2, generator=generator(0), dtype=torch.float64)
    return x + x[:, :1].square()


def moser(seed=0):
    field = SourceField(SPHERE, 16, generator=generator(seed), dtype=torch.float64)
    return gf.MoserFlow(SPHERE, field=field)


def monge_ampere(seed=0):
    potential = OneHiddenLayerPotential(2, 8, generator=generator(seed), dtype=torch.float64)
    return gf.MongeAmpereFlow(PLANE, potential=potential, n_steps=3, step_size=0.3)


def moser_fit(seed=0, **options):
    return moser(seed).fit(sphere_points(), **FIT, **options)


def monge_ampere_fit(seed=0, **options):
    return monge_ampere(seed).fit(plane_points(), **FIT, **options)


def loader_fit(seed=0, **options):
    loader = DataLoader(TensorDataset(plane_points()), batch_size=32, shuffle=True)
    return monge_ampere(seed).fit(loader, validation=plane_points(), **FIT, **options)


def target_fit(seed=0, **options):
    return monge_ampere(seed).fit_target(_bowl, **FIT, **options)


def _bowl(x):
    return -x.square().sum(1)


CASES = {
    "moser": moser_fit,
    "monge_ampere": monge_ampere_fit,
    "loader": loader_fit,
}


def result(flow):
    """Gradients of the last step, weights and history, as JSON."""
    trained = [p for p in flow.parameters() if p.grad is not None]
    return {
        "gradients": [p.grad.tolist() for p in trained],
        "weights": [p.tolist() for p in flow.parameters()],
        "validation": flow.history_["validation"],
        "loss": flow.history_["loss"][1:],
    }


def program(folder):
    """What each of the processes runs; nothing in it knows of the others."""
    found = {}
    for name, fit in CASES.items():
        found[name] = {
            "one step": result(rng_untouched(lambda fit=fit: fit(max_steps=1))),
            # processes that begin with weights of their own take the first's
            "fit": result(fit(seed=int(os.environ["RANK"]), max_steps=12, patience=12)),
        }
    printed = []
    path = os.path.join(folder, "flow.pt")
    options = {"max_steps": 12, "patience": 12, "checkpoint": path}
    whole = moser_fit(callback=lambda step, _: printed.append(step), **options)
    _stop_at(6, moser_fit, options)
    resumed = moser_fit(seed=1, resume=True, **options)
    found["resumed"] = [result(whole), result(resumed)]
    found["printed"] = printed
    target = target_fit(max_steps=200)
    found["free energy"] = list(target.free_energy_)
    found["target weights"] = [p.tolist() for p in target.parameters()]
    dataset = TensorDataset(plane_points())
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=16, sampler=sampler)
    sampled = monge_ampere().fit(
        loader, validation=plane_points(), max_steps=20, learning_rate=1e-2, progress=True
    )
    found["sampled"] = result(sampled)
    # a step that one process cannot take is taken by none
    flow = monge_ampere()
    broken = _broken(flow)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        flow.fit(plane_points(), **FIT, max_steps=12, patience=12)
    found["broken"] = {**result(flow), "calls": broken, "said": len(said)}
    with open(os.path.join(folder, f"{os.environ['RANK']}.json"), "w") as file:
        json.dump(found, file)


class _Stop(Exception):
    pass


def _stop_at(step, fit, options):
    from geoflow_plugin.training import state

    original = state.State.descend

    def descend(self, *arguments):
        if self.step == step:
            raise _Stop
        return original(self, *arguments)

    state.State.descend = descend
    try:
        fit(**options)
    except _Stop:
        pass
    finally:
        state.State.descend = original


def _broken(flow):
    """The last process finds its Gram matrix singular, once."""
    calls, original = [], flow.training_log_prob

    def training_log_prob(x):
        calls.append(len(x))
        if len(calls) == 5 and os.environ["RANK"] == "1":
            raise ArithmeticError("a singular Gram matrix")
        return original(x)

    flow.training_log_prob = training_log_prob
    return calls


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes under torchrun found, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", __file__, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return found, done, sorted(path.name for path in folder.iterdir())


def close(ours, theirs, tolerance=1e-9):
    for a, b in zip(ours, theirs, strict=True):
        a, b = (torch.tensor(t, dtype=torch.float64) for t in (a, b))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_likelihood_are_those_of_one_process(name, two):
    for options, key in (({"max_steps": 1}, "one step"), ({"max_steps": 12}, "fit")):
        expected = result(CASES[name](patience=12, **options))
        for found in two[0]:
            ours = found[name][key]
            close(ours["gradients"], expected["gradients"])
            close(ours["weights"], expected["weights"])
            close(
                [ours["validation"], ours["loss"]], [expected["validation"], expected["loss"]]
            )


def test_processes_end_with_the_same_weights(two):
    first, second = two[0]
    for name in (*CASES, "sampled", "broken"):
        one, other = ((f[name].get("fit", f[name]))["weights"] for f in (first, second))
        assert one == other
    assert first["target weights"] == second["target weights"]


def test_two_processes_resume_from_the_file_of_one(two):
    for found in two[0]:
        whole, resumed = found["resumed"]
        assert whole == resumed


def test_only_the_first_process_prints_and_writes(two):
    (first, second), done, files = two
    assert first["printed"] == list(range(13)) and second["printed"] == []
    assert files == ["0.json", "1.json", "flow.pt"]
    assert done.stderr.count("20/20") == 1


def test_reverse_kl_of_two_processes_finds_the_free_energy(two):
    value, error = two[0][0]["free energy"][:2]
    expected = -torch.tensor(torch.pi).log().item()
    assert expected - 4 * error < value < expected + 0.02
    assert two[0][0]["free energy"] == two[0][1]["free energy"]


def test_a_step_that_one_process_cannot_take_is_taken_by_none(two):
    for rank, found in enumerate(two[0]):
        assert len(found["broken"]["calls"]) == 13
        assert len(found["broken"]["validation"]) == 13
        assert found["broken"]["said"] == (rank == 0)


def test_a_sampler_that_shares_out_rows_is_left_to_it(two):
    scores = two[0][0]["sampled"]["validation"]
    assert min(scores) < scores[0] - 0.02


if __name__ == "__main__":
    program(sys.argv[1])
