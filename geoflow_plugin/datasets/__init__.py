"""Real data sets on manifolds: those inside geomstats, and public ones from a path.

No file is downloaded or written. A file is found by ``path=``, or by the environment
variable ``GEOFLOW_DATA``, and is used only if its SHA-256 is the one written here.
"""

from geoflow_plugin.datasets.orthogonal import load_orientations
from geoflow_plugin.datasets.spd import load_eeg
from geoflow_plugin.datasets.sphere import EARTH, load_cities, load_earth
from geoflow_plugin.datasets.splits import split
from geoflow_plugin.datasets.torus import TORSIONS, load_torsions

__all__ = [
    "EARTH",
    "TORSIONS",
    "load_cities",
    "load_earth",
    "load_eeg",
    "load_orientations",
    "load_torsions",
    "split",
]
