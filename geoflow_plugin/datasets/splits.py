"""Shuffled cuts of a data set, by rows or by groups of rows."""

import numpy as np

__all__ = ["split"]


def split(points, seed, shares=(0.8, 0.1), groups=None):
    """Shuffle and cut into training, validation and test points.

    Parameters
    ----------
    points : np.ndarray, shape=(n, ...)
    seed : int
    shares : (float, float)
        Of training and validation; the rest is for the test.
    groups : np.ndarray, shape=(n,), optional
        Rows of one group stay together; shares are then those of the groups.

    Returns
    -------
    train, validation, test : np.ndarray
    """
    if groups is not None and len(groups) != len(points):
        raise ValueError(f"groups: expected {len(points)} labels, got {len(groups)}.")
    count, member = len(points), None
    if groups is not None:
        names, member = np.unique(groups, return_inverse=True)
        count = len(names)
    order = np.random.default_rng(seed).permutation(count)
    first, second = (int(round(b * count, 6)) for b in np.cumsum(shares))
    parts = order[:first], order[first:second], order[second:]
    if member is None:
        return tuple(points[part] for part in parts)
    return tuple(points[np.isin(member, part)] for part in parts)
