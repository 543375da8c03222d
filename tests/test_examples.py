"""The examples run, print what they should and write their pictures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("GEOFLOW_DATA", ROOT.parent / "shared" / "data"))


def run(tmp_path, script, *options, data=None):
    environment = {k: v for k, v in os.environ.items() if k != "GEOFLOW_DATA"}
    environment |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    path = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    if data is not None:
        environment["GEOFLOW_DATA"] = str(data)
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def check_picture(path):
    picture = imread(path)
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.1


def test_cities(tmp_path):
    result = run(tmp_path, "cities.py", "--steps", "2", "--folds", "3")
    assert result.returncode == 0, result.stderr
    rows = dict(re.findall(r"^(\w+) +(-?\d+\.\d+) ± ", result.stdout, re.M))
    assert float(rows["Uniform"]) == pytest.approx(2.531, abs=1e-3)
    assert float(rows["KernelDensity"]) < 2 and float(rows["MoserFlow"]) < 2
    quadrature = float(re.search(r"(\d\.\d+) by quadrature", result.stdout)[1])
    assert quadrature == pytest.approx(1, abs=1e-2)
    found = re.search(r"(\d\.\d+) ± (\d\.\d+) by importance", result.stdout)
    assert abs(float(found[1]) - 1) < 1e-2 + 3 * float(found[2])
    assert "negative mass" in result.stdout and "proposals each" in result.stdout
    check_picture(tmp_path / "cities.png")


@pytest.mark.skipif(not (DATA / "earth").is_dir(), reason="no Earth data; set GEOFLOW_DATA")
def test_earth(tmp_path):
    options = ["--name", "volcano", "--steps", "2"]
    result = run(tmp_path, "earth.py", *options, data=DATA)
    assert result.returncode == 0, result.stderr
    number = r"(-?\d+\.\d+)"
    row = rf"^(\w+) +{number} ± {number} +{number} ± {number}"
    rows = {name: map(float, values) for name, *values in re.findall(row, result.stdout, re.M)}
    assert list(rows) == ["Uniform", "KernelDensity", "MoserFlow", "Mixture"]
    for _, _, integral, error in rows.values():
        assert abs(integral - 1) < 1e-2 + 3 * error
        assert error < 5e-2
    check_picture(tmp_path / "earth_volcano.png")


def test_earth_without_data(tmp_path):
    result = run(tmp_path, "earth.py")
    assert result.returncode == 1
    assert "GEOFLOW_DATA is not set" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_torus_flow(tmp_path):
    result = run(tmp_path, "torus_flow.py", "--steps", "4")
    assert result.returncode == 0, result.stderr
    losses = [float(x) for x in re.findall(r"^ +\d+ +(\d\.\d+)$", result.stdout, re.M)]
    assert len(losses) == 5
    assert losses[-1] < 3.676  # uniform
    integral = float(re.search(r"integral +(\d\.\d+)", result.stdout)[1])
    assert integral == pytest.approx(1, abs=1e-2)
    check_picture(tmp_path / "torus_flow.png")


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="no images; set GEOFLOW_DATA")
def test_out_of_distribution(tmp_path):
    options = ["--points", "200", "--stump-points", "100", "--steps", "2"]
    options += ["--method", "free-form"]
    result = run(tmp_path, "out_of_distribution.py", *options, data=DATA)
    assert result.returncode == 0, result.stderr
    row = r"^(principal plane|InjectiveFlow) +" + r" +".join([r"(-?\d+\.\d+)"] * 5) + "$"
    rows = {
        name: list(map(float, values))
        for name, *values in re.findall(row, result.stdout, re.M)
    }
    assert list(rows) == ["principal plane", "InjectiveFlow"]
    for on_log_prob, on_error, on_both, _, _ in rows.values():
        assert 50 < min(on_log_prob, on_error) and on_both in (on_log_prob, on_error)
    assert 0 < rows["principal plane"][4] < rows["InjectiveFlow"][4]  # after two steps
    check_picture(tmp_path / "out_of_distribution.png")


@pytest.mark.skipif(not (DATA / "tabular").is_dir(), reason="no tables; set GEOFLOW_DATA")
def test_tabular(tmp_path):
    result = run(tmp_path, "tabular.py", "--names", "wine", "--steps", "2", data=DATA)
    assert result.returncode == 0, result.stderr
    row = r"^  (plane|two steps|joint|free-form) +(\d+\.\d+) +(-?\d+\.\d+) +(\d+\.\d+) +\d+$"
    rows = {name: list(map(float, v)) for name, *v in re.findall(row, result.stdout, re.M)}
    assert list(rows) == ["plane", "two steps", "joint", "free-form"]
    # no surface through the mean leaves out more than the data vary
    assert 0 < rows["plane"][0] < 11 and all(v[0] < 22 for v in rows.values())


@pytest.mark.skipif(not (DATA / "torus").is_dir(), reason="no torsions; set GEOFLOW_DATA")
def test_conditional(tmp_path):
    options = ["--name", "rotamers", "--points", "300", "--steps", "2"]
    options += ["--checks", "1", "--check-size", "200"]
    result = run(tmp_path, "conditional.py", *options, data=DATA)
    assert result.returncode == 0, result.stderr
    row = r"^([a-z ]*\w+) +(-?\d\.\d+) ± \d\.\d+ +(-?\d\.\d+) ± (\d\.\d+)$"
    rows = {name: list(map(float, v)) for name, *v in re.findall(row, result.stdout, re.M)}
    assert len(rows) == 5 and rows["KernelDensity"][1] == 0
    # the backbone says something of the side chain, and kernels hear it at once
    gain, error = rows["conditional KernelDensity"][1:]
    assert gain > 2 * error > 0
    for nll, difference, _ in rows.values():
        assert nll + difference == pytest.approx(rows["KernelDensity"][0], abs=2e-3)
    check_picture(tmp_path / "conditional_rotamers.png")
