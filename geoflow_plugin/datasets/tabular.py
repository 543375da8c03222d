"""Tables of the UCI repository: points of a Euclidean space."""

import io

import numpy as np

from geoflow_plugin.datasets.files import read

__all__ = ["TABULAR", "load_tabular"]

_SOURCE = "treforevans/uci_datasets"

# name -> (file, SHA-256 of its uncompressed content, where it comes from)
TABULAR = {
    "protein": (
        "uci_protein.csv",
        "6ccb1a6bf7e7ba40febe2b8226779cb62e4ca2fa4d193bdec8538c6b5f991ec5",
        _SOURCE,
    ),
    "parkinsons": (
        "uci_parkinsons.csv",
        "514813c9ae91ea070cb6eafcac612db990ea26cf631eb29e9457fbdd4a75f4bd",
        _SOURCE,
    ),
    "wine": (
        "uci_wine.csv",
        "573b29b56f82ee37960b87e0125cdc4da684611eb98536f8228ba12ed16fddf4",
        _SOURCE,
    ),
}


def load_tabular(name, path=None, *, drop_duplicates=False):
    """A UCI table as points of Euclidean(k), its columns centred, in their own units.

    Parameters
    ----------
    name : {"protein", "parkinsons", "wine"}
        Physicochemical properties of proteins (k = 9), telemonitoring (k = 20), red wine
        (k = 11).
    path : str or Path, optional
        The file, gzipped or not, or a folder that holds it. Default: the folder
        ``tabular`` of the environment variable ``GEOFLOW_DATA``.
    drop_duplicates : bool
        Keep one of each row.

    Returns
    -------
    points : np.ndarray, shape=(n, k)
    target : np.ndarray, shape=(n,)
        What the table was made to predict.

    Raises
    ------
    ValueError
        For an unknown name, or a file of another content.
    FileNotFoundError
        With what to set, if there is no file.
    """
    if not isinstance(name, str) or name not in TABULAR:
        raise ValueError(f"name: expected one of {sorted(TABULAR)}, got {name!r}.")
    content = read("tabular", *TABULAR[name], path)
    rows = np.loadtxt(io.BytesIO(content), delimiter=",")
    points, target = rows[:, :-1], rows[:, -1]
    if drop_duplicates:
        kept = np.sort(np.unique(points, axis=0, return_index=True)[1])
        points, target = points[kept], target[kept]
    return points, target
