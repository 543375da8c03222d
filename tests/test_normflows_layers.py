"""Every layer of normflows through the volume change; docs/normflows_layers.md says so."""

import inspect
from importlib.metadata import version

import pytest
import torch
from conftest import make_space, points
from layers_table import COLUMNS, LAYERS, PAGE, RANDOM, ROWS, inputs, make, row
from normflows import flows

from geoflow_plugin import geometry
from geoflow_plugin.volume_change import exact, log_volume_change

# maps with forward mode, on vectors of four numbers
VECTORS = [
    name
    for name in LAYERS
    if name not in ("BatchNorm", "PeriodicShift", "PeriodicWrap", "Radial", "Planar")
    and not name.startswith(("Residual", "Circular", "Glow", "Invertible1x1", "Squeeze"))
]


def page():
    """Rows of the page, by layer and direction."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == COLUMNS
    return {tuple(cells[:2]): cells for cells in rows[2:]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, direction", ROWS)
def test_the_page_says_what_the_layer_does(name, direction):
    if version("normflows") not in PAGE.read_text():
        pytest.skip("the page is of another version of normflows")
    *found, on_gpu = row(name, direction)
    assert found == page()[name, direction][:-1]
    assert on_gpu in ("–", page()[name, direction][-1])


def test_no_layer_is_missing():
    exported = {
        name
        for name, kind in vars(flows).items()
        if inspect.isclass(kind) and issubclass(kind, flows.Flow) and kind is not flows.Flow
    }
    assert {name.split(" ")[0] for name in LAYERS} | set(RANDOM) == exported
    assert {name for name, _ in page()} == set(LAYERS) | set(RANDOM)


def test_every_layer_that_is_a_map_serves():
    refused = {key for key, cells in page().items() if cells[6] not in ("yes", "reverse", "✗")}
    assert refused == {
        ("BatchNorm", "forward"),
        ("Residual (reduce_memory)", "inverse"),
        *((name, "both") for name in RANDOM),
    }


@pytest.mark.parametrize("name", [None, "S2", "T2"])
def test_all_of_them_one_after_another(name):
    # a chain of every layer, its tangents by vmap alone, against reverse mode
    chain = [make(layer) for layer in VECTORS]

    def mapping(z):
        x = torch.nn.functional.pad(z.flatten(1), (0, 4 - z[0].numel()))
        for layer in chain:
            x, _ = layer(x)
        return x

    space = make_space(name) if name else None
    z = points(space, 5) if name else inputs(chain[0])[:5, :3].contiguous()
    basis = geometry.tangent_basis(space, z) if name else torch.eye(3).double().expand(5, 3, 3)
    rows = []
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(mapping, z[i : i + 1]).reshape(4, -1)
        rows.append(jacobian @ basis[i].flatten(1).mT)
    pushed = torch.stack(rows)
    expected = 0.5 * torch.linalg.slogdet(pushed.mT @ pushed)[1]
    found = log_volume_change(mapping, z, space=space)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    directions = basis.movedim(1, 0).contiguous()
    exact.forward_mode(mapping, z, directions)  # raises where reverse mode is needed
