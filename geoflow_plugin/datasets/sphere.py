"""The sphere: large cities, and locations of natural events."""

import numpy as np

from geoflow_plugin.datasets.files import read

__all__ = ["EARTH", "load_cities", "load_earth"]

# name -> (file, SHA-256 of its uncompressed content)
EARTH = {
    "volcano": (
        "volerup.csv",
        "f7bbaf32a412f5fe82350f48e0c55100be260803969c16557343f687fd0593fc",
    ),
    "earthquake": (
        "quakes_all.csv",
        "3e5e1a10fb2faf1899106264289334037d039f00f5265d13dad388a93d8ff2f7",
    ),
    "flood": (
        "flood.csv",
        "ffb1e3182c3053afcdeceec4727c262a29da10255d20747c08144da5b0963486",
    ),
    "fire": (
        "fire.csv",
        "c1fb69d204ab2d743ed0234bb11c1d0692a994ef51788002ad795d1d632516c0",
    ),
}


def load_cities():
    """Fifty large cities as points of Hypersphere(2), from geomstats' own files.

    Returns
    -------
    points : np.ndarray, shape=(50, 3)
        Longitude 0 is at -x: geomstats stores longitude + 180 degrees.
    names : list of str
    """
    from geomstats.datasets.utils import load_cities as load

    points, names = load()
    points = np.array(points.tolist(), dtype=np.float64)
    # geomstats' file is rounded; points are made unit vectors in double precision
    return points / np.linalg.norm(points, axis=-1, keepdims=True), list(names)


def load_earth(name, path=None, *, drop_duplicates=False):
    """Locations of natural events on Hypersphere(2), as in the papers on flows.

    Parameters
    ----------
    name : {"volcano", "earthquake", "flood", "fire"}
    path : str or Path, optional
        The csv file, gzipped or not, or a folder that holds it. Default: the folder
        ``earth`` of the environment variable ``GEOFLOW_DATA``. The file cannot be
        downloaded: it comes with the repository noamroze/moser_flow
        (data/earth_data.zip).
    drop_duplicates : bool
        Keep one row of each location. Most volcano rows repeat another, so that a split
        by rows puts the same point on both sides.

    Returns
    -------
    points : np.ndarray, shape=(n, 3)
        Unit vectors; longitude 0 is at +x, north at +z.

    Raises
    ------
    ValueError
        For an unknown name, or a file of another content.
    FileNotFoundError
        With what to set, if there is no file.
    """
    if not isinstance(name, str) or name not in EARTH:
        raise ValueError(f"name: expected one of {sorted(EARTH)}, got {name!r}.")
    file, checksum = EARTH[name]
    source = "noamroze/moser_flow, data/earth_data.zip"
    content = read("earth", file, checksum, source, path)
    rows = [
        [float(value) for value in line.split(",")[:2]]
        for line in content.decode().splitlines()
        if line[:1] in "-.0123456789" and line
    ]
    degrees = np.array(rows)
    if drop_duplicates:
        degrees = np.unique(degrees, axis=0)
    latitude, longitude = np.radians(degrees).T
    return np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        axis=1,
    )
