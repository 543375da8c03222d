"""The fit loop and its furniture: they know modules, losses and rows, and no flow."""

from geoflow_plugin.training.batches import Batches, shuffled
from geoflow_plugin.training.checkpoint import Checkpoint
from geoflow_plugin.training.data import Data, Rows, Stream, split
from geoflow_plugin.training.files import as_path, write_atomically
from geoflow_plugin.training.loop import minimize
from geoflow_plugin.training.randomness import generator_at, own_stream

__all__ = [
    "Batches",
    "Checkpoint",
    "Data",
    "Rows",
    "Stream",
    "as_path",
    "generator_at",
    "minimize",
    "own_stream",
    "shuffled",
    "split",
    "write_atomically",
]
