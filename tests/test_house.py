"""Imports run one way, and a room keeps to its size."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "geoflow_plugin"

# A room may import from rooms of a lower level only; siblings share none.
LEVELS = {
    "geometry": 0,
    "training": 0,
    "persistence": 0.5,
    "spaces": 1,
    "calculus": 1,
    "volume_change": 1,
    "networks": 2,
    "integrators": 2,
    "layers": 3,
    "distributions": 4,
    "calibration": 5,
    "diagnostics": 5,
    "two_sample": 5,
    "outliers": 5,
    "datasets": 5,
    "plotting": 5,
    "targets": 5,
    "equip": 5,
    "saved_classes": 5,
    "findings": 5.5,
    "estimator": 6,
    "report": 6,
    "testing": 6,
    "__init__": 7,
}
GEOMSTATS = {"spaces", "equip", "datasets", "plotting"}  # who may say geomstats
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "geoflow_plugin":
                yield from (f"geoflow_plugin.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "geomstats":
            assert here in GEOMSTATS, f"{path} says geomstats"
        if parts[0] != "geoflow_plugin" or len(parts) == 1:
            continue
        assert parts[1] == here or LEVELS[parts[1]] < LEVELS[here], (
            f"{path} imports {name} from a room above or beside it"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_outside_spaces_calls_the_backend_or_asks_the_space(path):
    source = path.read_text()
    assert "geomstats.backend" not in source
    if room(path) != "spaces":
        tree = ast.parse(source)
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        asked = [
            ast.unparse(call)
            for call in calls
            if isinstance(call.func, ast.Name)
            and call.func.id == "isinstance"
            and ast.unparse(call.args[0]).split(".")[-1] == "space"
        ]
        assert not asked, asked
