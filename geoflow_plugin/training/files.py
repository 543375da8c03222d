"""Paths, and files that are written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["as_path", "write_atomically"]


def as_path(path, name="path"):
    """A pathlib.Path, or an error that names the argument."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {type(path).__name__}.")
    return Path(path)


def write_atomically(path, content):
    """Put bytes into a file that is always either the old one or the new one, whole.

    Parameters
    ----------
    path : pathlib.Path
    content : bytes-like

    Raises
    ------
    OSError
        If it cannot be written; the old file is untouched then.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
