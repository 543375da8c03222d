"""Symmetric positive definite matrices: covariances of brain signals."""

import io

import numpy as np

from geoflow_plugin.datasets.files import read

__all__ = ["load_eeg"]

_CHECKSUM = "fda8771f79e760fe602dbf9cf36d8a4e77eb9f5195c9627b7b97254a3d7445ba"
_UNIT = 3e-27  # about the median variance of a channel
_N_EVENTS, _N_FILTERS = 4, 4


def load_eeg(path=None, *, n_channels=4):
    """Covariances of 216 trials of event-related potentials, for SPDMatrices(n_channels).

    The file's 32 rows are 16 signals of a trial (last) below 16 prototypes (first),
    whose block is the same in every matrix: the 32 x 32 matrices lie on a subspace and
    have no density on SPDMatrices(32). This loader takes a principal block of the
    trial's own 16 rows: the first spatial filter of each of the four groups of four,
    then the second of each, and so on. The order follows the file's layout alone, no
    value is looked at. Everything is divided by the constant 3e-27, under the affine
    and the log-Euclidean metrics an isometry: likelihoods do not depend on it.

    Parameters
    ----------
    path : str or Path, optional
        The file ``eeg_erp_covariances.npz`` or a folder that holds it. Default: the
        folder ``spd`` of the environment variable ``GEOFLOW_DATA``. The arrays are those
        of the R package ``Riemann`` (``ERP``), from the MNE sample data.
    n_channels : int
        From 1 to 16. There are only 216 rows for n_channels (n_channels + 1) / 2
        dimensions.

    Returns
    -------
    points : np.ndarray, shape=(216, n_channels, n_channels)
    labels : np.ndarray of str, shape=(216,)
        The stimulus: left or right (L, R), auditory or visual (A, V).

    Raises
    ------
    ValueError
        For another number of channels, or a file of another content.
    FileNotFoundError
        With what to set, if there is no file.
    """
    most = _N_EVENTS * _N_FILTERS
    if isinstance(n_channels, bool) or n_channels not in range(1, most + 1):
        raise ValueError(
            f"n_channels: expected an integer from 1 to {most} (the other {most} rows are "
            f"the same in every matrix), got {n_channels!r}."
        )
    source = "the R package Riemann (ERP.rda), saved as npz"
    content = read("spd", "eeg_erp_covariances.npz", _CHECKSUM, source, path)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        matrices, labels = arrays["C"], arrays["label"]
    order = most + np.arange(most).reshape(_N_EVENTS, _N_FILTERS).T.ravel()
    rows = order[:n_channels]
    points = matrices[:, rows[:, None], rows] / _UNIT
    return (points + points.swapaxes(1, 2)) / 2, labels
