"""Data that stay in their file: the example, and that memory does not grow with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc here")
def test_the_example_fits_points_of_a_file_in_flat_memory(tmp_path):
    """At 250,000 points the permutations take 8 MB; the points themselves would take 35."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    options = "--space torus --points 250000 --few 60000 --steps 3 --batch-size 256 --json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "streaming.py"), *options.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    few, many = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert many["peak"] - few["peak"] < 16
    assert all(row["nll"] < 7 * 1.8379 for row in (few, many))
    assert not list(tmp_path.iterdir())
