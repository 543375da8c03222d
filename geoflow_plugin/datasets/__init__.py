"""Real data sets on manifolds: those inside geomstats, and public ones from a path.

A file is found by ``path=``, or by the environment variable ``GEOFLOW_DATA``, and is used
only if its SHA-256 is the one written here. None is downloaded or written, save the images
where ``download=True`` asks for it.
"""

from geoflow_plugin.datasets.images import dequantize, load_fashion_mnist, load_mnist
from geoflow_plugin.datasets.orthogonal import load_orientations
from geoflow_plugin.datasets.spd import load_eeg
from geoflow_plugin.datasets.sphere import EARTH, load_cities, load_earth
from geoflow_plugin.datasets.splits import split
from geoflow_plugin.datasets.tabular import TABULAR, load_tabular
from geoflow_plugin.datasets.torus import TORSIONS, load_torsions

__all__ = [
    "EARTH",
    "TABULAR",
    "TORSIONS",
    "dequantize",
    "load_cities",
    "load_earth",
    "load_eeg",
    "load_fashion_mnist",
    "load_mnist",
    "load_orientations",
    "load_tabular",
    "load_torsions",
    "split",
]
