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
    """Permutations of 300,000 rows take 10 MB; a tensor for each row would take 200."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    options = "--points 300000 --few 40000 --steps 2 --batch-size 256 --json"
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
    assert many["peak"] - few["peak"] < 64
    assert all(row["nll"] < 2.5 for row in (few, many))
    assert not list(tmp_path.iterdir())
