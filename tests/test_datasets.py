"""Loaders: points on their spaces, the right file or none, and splits that keep groups."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.spd_matrices import SPDMatrices
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

from geoflow_plugin import datasets, geometry

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("GEOFLOW_DATA", ROOT.parent / "shared" / "data"))
TORUS_FILES = {
    "rna": "rna.tsv",
    "ile": "ile_torsions.csv",
    "dockbench": "dockbench55_phi_psi.csv",
    "top8000": "top8000_torsions.csv",
}
LOADERS = {
    "volerup.csv": lambda path=None: datasets.load_earth("volcano", path),
    "nickel_ebsd.npz": datasets.load_orientations,
    "eeg_erp_covariances.npz": datasets.load_eeg,
} | {
    file: lambda path=None, name=name: datasets.load_torsions(name, path)
    for name, file in TORUS_FILES.items()
}


def needs(folder):
    return pytest.mark.skipif(
        not (DATA / folder).is_dir(), reason=f"no {folder} data; set GEOFLOW_DATA"
    )


def check(space, points):
    for dtype in torch.float64, torch.float32:
        geometry.check_points(space, torch.as_tensor(points, dtype=dtype), "points")


@pytest.fixture(autouse=True)
def _data(monkeypatch):
    monkeypatch.setenv("GEOFLOW_DATA", str(DATA))


@needs("so3")
def test_orientations():
    points, places = datasets.load_orientations()
    assert points.shape == (40_762, 3, 3) and places.shape == (40_762,)
    check(SpecialOrthogonal(3), points)
    first, its_places = datasets.load_orientations(one_per_location=True)
    assert len(first) == len(set(its_places)) == len(set(places)) == 3383
    # scans of a place are near-copies: far closer than places are
    order = np.argsort(its_places)
    rows = np.searchsorted(its_places[order], places)
    same = np.linalg.norm(points - first[order][rows], axis=(1, 2))
    other = np.linalg.norm(points - np.roll(first[order], 7, axis=0)[rows], axis=(1, 2))
    assert np.median(same) < 0.05 < 0.2 < np.median(other)


@needs("so3")
def test_a_split_by_location_has_no_place_on_two_sides():
    points, places = datasets.load_orientations()
    rows = np.arange(len(points))
    parts = datasets.split(rows, 0, groups=places)
    assert sorted(np.concatenate(parts)) == rows.tolist()
    sides = [set(places[part]) for part in parts]
    assert [len(side) for side in sides] == [2706, 338, 339]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


@needs("spd")
@pytest.mark.parametrize("n_channels", [1, 4, 16])
def test_eeg(n_channels):
    points, labels = datasets.load_eeg(n_channels=n_channels)
    assert points.shape == (216, n_channels, n_channels)
    assert np.array_equal(points, points.swapaxes(1, 2))
    if n_channels > 1:
        check(SPDMatrices(n_channels), points)
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    assert counts == {"LA": 57, "LV": 57, "RA": 53, "RV": 49}
    # more channels contain fewer, every entry varies, and units are sensible
    assert np.array_equal(points[:, :1, :1], datasets.load_eeg(n_channels=1)[0])
    assert points.std(0).min() > 1e-2
    assert 0.1 < np.median(np.linalg.eigvalsh(points)) < 10


@needs("spd")
def test_the_block_that_eeg_leaves_out_is_one_matrix():
    with np.load(DATA / "spd" / "eeg_erp_covariances.npz") as arrays:
        matrices = arrays["C"] / 3e-27
    assert np.ptp(matrices[:, :16, :16], axis=0).max() < 1e-10
    assert np.ptp(matrices[:, 16:, 16:], axis=0).min() > 0.1


@needs("spd")
@pytest.mark.parametrize("n_channels", [0, 17, 32, True, 2.5, "4"])
def test_eeg_refuses_channels_without_a_density(n_channels):
    with pytest.raises(ValueError, match="n_channels: expected an integer from 1 to 16"):
        datasets.load_eeg(n_channels=n_channels)


@needs("tabular")
@pytest.mark.parametrize(
    "name, n, k, n_distinct",
    [("protein", 45_730, 9, 43_972), ("parkinsons", 5875, 20, 5875), ("wine", 1599, 11, 1355)],
)
def test_tabular(name, n, k, n_distinct):
    points, target = datasets.load_tabular(name)
    assert points.shape == (n, k) and target.shape == (n,)
    assert np.abs(points.mean(0) / points.std(0)).max() < 1e-3
    distinct, its_target = datasets.load_tabular(name, drop_duplicates=True)
    assert len(distinct) == len(its_target) == len(np.unique(points, axis=0)) == n_distinct


@needs("torus")
@pytest.mark.parametrize(
    "name, group, n, k, n_structures",
    [
        ("rna", None, 9478, 7, 113),
        ("ile", None, 8080, 4, 8080),
        ("dockbench", None, 120_079, 2, None),
        ("dockbench", "Pre-Pro", 6182, 2, None),
        ("top8000", None, 18_748, 4, None),
        ("top8000", "cys", 16_767, 3, None),
        ("top8000", "cispro", 2780, 5, None),
        ("top8000", "arg-1p", 4019, 6, None),
    ],
)
def test_torsions(name, group, n, k, n_structures):
    points, structures = datasets.load_torsions(name, group=group)
    assert points.shape == (n, k, 2) and structures.shape == (n,)
    check(NFoldManifold(Hypersphere(1), k), points)
    if n_structures:
        assert len(set(structures)) == n_structures
    distinct, _ = datasets.load_torsions(name, group=group, drop_duplicates=True)
    assert len(distinct) == len(np.unique(distinct.round(12), axis=0)) <= n
    assert (len(distinct) < n) == (name == "dockbench")


@needs("torus")
def test_angles_are_those_of_the_files():
    angles = {}
    for name in "rna", "ile", "dockbench", "top8000":
        points, _ = datasets.load_torsions(name)
        angles[name] = np.degrees(np.arctan2(points[..., 1], points[..., 0]))
    first = [-69.168933, 173.922722, 51.484039, 80.803534, -62.903735, 10.97263, -167.619661]
    np.testing.assert_allclose(angles["rna"][0], first)
    radians = [4.62906, 2.231188, 5.349101, 2.688625]
    wrapped = np.remainder(np.degrees(radians) + 180, 360) - 180
    np.testing.assert_allclose(angles["ile"][0], wrapped)
    np.testing.assert_allclose(angles["dockbench"][0], [-95.217, 99.474])
    for name in "ile", "dockbench", "top8000":  # phi of an L-residue is negative
        assert np.mean(angles[name][:, 0] < 0) > 0.9


@pytest.mark.parametrize(
    "name, group", [("protein", None), ("rna", "Glycine"), ("top8000", "ala")]
)
def test_unknown_names_are_refused_before_any_file_is_read(name, group, tmp_path):
    with pytest.raises(ValueError, match="(name|group): expected one of"):
        datasets.load_torsions(name, tmp_path, group=group)


@pytest.mark.parametrize("file", LOADERS)
def test_a_missing_file_says_what_to_set(file, tmp_path, monkeypatch):
    for path in tmp_path, tmp_path / "nothing":
        with pytest.raises(FileNotFoundError, match=f"no {file}.*it is part of"):
            LOADERS[file](path)
    monkeypatch.setenv("GEOFLOW_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no {file}.*it is part of"):
        LOADERS[file]()
    monkeypatch.delenv("GEOFLOW_DATA")
    with pytest.raises(FileNotFoundError, match=rf"GEOFLOW_DATA is not set.*{file}"):
        LOADERS[file]()


@pytest.mark.parametrize("file", LOADERS)
def test_a_file_of_another_content_is_refused(file, tmp_path):
    path = tmp_path / file
    path.write_bytes(b"1,2\n")
    for given in path, tmp_path:
        with pytest.raises(ValueError, match="SHA-256.*damaged or another edition"):
            LOADERS[file](given)
    path.write_bytes(gzip.compress(b"1,2\n" * 100)[:-12])
    with pytest.raises(ValueError, match="damaged gzip"):
        LOADERS[file](path)


@needs("torus")
def test_a_plain_file_reads_like_the_gzipped_one_and_nothing_is_written(tmp_path):
    packed = DATA / "torus" / "ile_torsions.csv.gz"
    (tmp_path / "ile_torsions.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    expected, _ = datasets.load_torsions("ile", packed)
    points, _ = datasets.load_torsions("ile", tmp_path)
    assert np.array_equal(points, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["ile_torsions.csv"]


def test_split_by_rows_and_by_groups():
    rows = np.arange(100)
    parts = datasets.split(rows, 3)
    assert [len(part) for part in parts] == [80, 10, 10]
    assert sorted(np.concatenate(parts)) == rows.tolist()
    groups = np.array([f"g{row // 5}" for row in rows])
    parts = datasets.split(rows, 3, groups=groups)
    assert sorted(np.concatenate(parts)) == rows.tolist()
    assert sum(len(set(groups[part])) for part in parts) == 20
    assert not np.array_equal(parts[2], datasets.split(rows, 4, groups=groups)[2])
    with pytest.raises(ValueError, match="groups: expected 100 labels, got 3"):
        datasets.split(rows, 3, groups=groups[:3])


def run_example(*options, data=None):
    environment = {k: v for k, v in os.environ.items() if k != "GEOFLOW_DATA"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if data is not None:
        environment["GEOFLOW_DATA"] = str(data)
    command = [sys.executable, str(ROOT / "examples" / "many_spaces.py"), *options]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600
    )


@needs("torus")
def test_the_table_has_a_row_for_a_set():
    options = ["--names", "phi-psi Proline", "--points", "200", "--steps", "2"]
    result = run_example(*options, data=DATA)
    assert result.returncode == 0, result.stderr
    head, _, row = (line.strip("| ").split(" | ") for line in result.stdout.splitlines())
    cells = dict(zip(head, row, strict=True))
    assert cells["set"] == "phi-psi Proline" and cells["dim"] == "2"
    assert float(cells["test NLL: plain"]) == pytest.approx(2 * np.log(2 * np.pi), abs=1e-3)
    assert float(cells["test NLL: KernelDensity"]) < 2.5
    integral, error = map(float, cells["integral: recipe"].split(" ± "))
    assert abs(integral - 1) < 1e-2 + 4 * error < 0.3


def test_the_table_without_data():
    result = run_example("--names", "rna")
    assert result.returncode == 1
    assert "GEOFLOW_DATA is not set" in result.stderr
    assert "Traceback" not in result.stderr
