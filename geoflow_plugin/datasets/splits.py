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
    if np.ndim(points) < 1:
        raise TypeError(f"points: expected an array of points, got {points!r}.")
    if groups is not None and (np.ndim(groups) < 1 or len(groups) != len(points)):
        got = len(groups) if np.ndim(groups) else repr(groups)
        raise ValueError(f"groups: expected {len(points)} labels, got {got}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed: expected an integer >= 0, got {seed!r}.")
    numbers = isinstance(shares, (tuple, list)) and len(shares) == 2
    if not numbers or not all(isinstance(s, (int, float)) and s >= 0 for s in shares):
        raise ValueError(f"shares: expected two numbers >= 0, got {shares!r}.")
    if sum(shares) > 1 + 1e-9:
        raise ValueError(f"shares: expected a sum of one at most, got {shares!r}.")
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
