"""Rotations: crystal orientations by electron backscatter diffraction."""

import io

import numpy as np

from geoflow_plugin.datasets.files import read

__all__ = ["load_orientations"]

_CHECKSUM = "71114864c42878f2041a9e4423c32d95d68171222169047a2c31eba012a2d663"


def load_orientations(path=None, *, one_per_location=False):
    """Crystal orientations of a nickel surface, as points of SpecialOrthogonal(3).

    Fourteen scans of 3,449 places (Bingham, Nordman, Vardeman 2009), less the rows that
    hold no rotation. Scans of one place are near-copies, and a grain spans many places:
    keep a place on one side of a split (``split(..., groups=locations)``). A cubic
    crystal's orientation is known up to 24 rotations of the cube; these are the ones
    that the instrument wrote.

    Parameters
    ----------
    path : str or Path, optional
        The file ``nickel_ebsd.npz`` or a folder that holds it. Default: the folder
        ``so3`` of the environment variable ``GEOFLOW_DATA``. The arrays are those of
        the R package ``rotations`` (``nickel``).
    one_per_location : bool
        Keep the first valid scan of each place: 3,383 rows instead of 40,762.

    Returns
    -------
    points : np.ndarray, shape=(n, 3, 3)
    locations : np.ndarray of int, shape=(n,)
        The place of each row.

    Raises
    ------
    ValueError
        For a file of another content.
    FileNotFoundError
        With what to set, if there is no file.
    """
    source = "the R package rotations (nickel.rda), saved as npz"
    content = read("so3", "nickel_ebsd.npz", _CHECKSUM, source, path)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        valid = arrays["valid"]
        points, locations = arrays["R"][valid], arrays["location"][valid]
    if one_per_location:
        _, first = np.unique(locations, return_index=True)
        points, locations = points[first], locations[first]
    return points, locations
