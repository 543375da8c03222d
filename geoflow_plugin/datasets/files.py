"""Find a data file, and read it only if it is the one we know."""

import gzip
import hashlib
import os
from pathlib import Path

from geoflow_plugin.training import as_path

__all__ = ["read"]


def read(folder, file, checksum, source, path=None):
    """Uncompressed content of a file whose SHA-256 is known.

    Parameters
    ----------
    folder, file : str
        Where the file lies in ``GEOFLOW_DATA``, and its name without ``.gz``.
    checksum : str
        SHA-256 of the uncompressed content.
    source : str
        Where the file comes from, for the error message.
    path : str or Path, optional
        The file, gzipped or not, or a folder that holds it.

    Returns
    -------
    content : bytes

    Raises
    ------
    FileNotFoundError
        With what to set, if there is no file.
    ValueError
        For a file of another content.
    """
    found = _find(folder, file, source, path)
    content = found.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"path: {found} is a damaged gzip file ({error}).") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != checksum:
        raise ValueError(
            f"path: {file} has SHA-256 {digest}, expected {checksum}; it is damaged or "
            "another edition of the data."
        )
    return content


def _find(folder, file, source, path):
    if path is None:
        root = os.environ.get("GEOFLOW_DATA")
        if not root:
            raise FileNotFoundError(
                f"path: none given and GEOFLOW_DATA is not set; pass the path of {file} "
                f"or set GEOFLOW_DATA to a folder with {folder}/{file} (or .gz)."
            )
        path = Path(root) / folder
    path = as_path(path)
    candidates = [path / file, path / (file + ".gz")] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"path: found no {file} (or {file}.gz) at {path}; it is part of {source}."
    )
