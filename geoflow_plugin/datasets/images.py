"""MNIST and Fashion-MNIST: images as they are stored, and as points of [0, 1]^784."""

import math
import os
import struct
import tempfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch

from geoflow_plugin.datasets.files import read
from geoflow_plugin.training import as_path

__all__ = ["dequantize", "load_fashion_mnist", "load_mnist", "parse_idx"]

# folder in GEOFLOW_DATA -> where its files are served, gzipped
_SERVED = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "master/data/fashion/",
}
# folder, split -> (file, SHA-256 of its uncompressed content) of images and of labels
_FILES = {
    ("mnist", "train"): (
        (
            "train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            "train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
    ),
    ("mnist", "test"): (
        (
            "t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        (
            "t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    ("fashion-mnist", "train"): (
        (
            "train-images-idx3-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        (
            "train-labels-idx1-ubyte",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    ("fashion-mnist", "test"): (
        (
            "t10k-images-idx3-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        (
            "t10k-labels-idx1-ubyte",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


def load_mnist(split="train", path=None, download=False):
    """Handwritten digits, 60,000 to train and 10,000 to test (LeCun, Cortes and Burges).

    Parameters
    ----------
    split : {"train", "test"}
        In the order of the files. Papers on flows hold out the last 10,000 of "train".
    path : str or Path, optional
        Folder of the four idx files, gzipped or not. Default: the folder ``mnist`` of
        the environment variable ``GEOFLOW_DATA``.
    download : bool
        Fetch what is missing there first; nothing is ever written otherwise.

    Returns
    -------
    images : torch.Tensor, shape=(n, 28, 28), dtype=torch.uint8
    labels : torch.Tensor, shape=(n,), dtype=torch.int64

    Raises
    ------
    FileNotFoundError
        With what to set, if there is no file.
    ConnectionError
        If a file cannot be downloaded.
    ValueError
        For an unknown split, or a file of another content.
    """
    return _load("mnist", split, path, download)


def load_fashion_mnist(split="train", path=None, download=False):
    """Pictures of clothes in the format of MNIST (Xiao, Rasul and Vollgraf, 2017).

    Parameters, results and errors are those of ``load_mnist``; the folder in
    ``GEOFLOW_DATA`` is ``fashion-mnist``.
    """
    return _load("fashion-mnist", split, path, download)


def _load(folder, split, path, download):
    if not isinstance(split, str) or (folder, split) not in _FILES:
        raise ValueError(f'split: expected "train" or "test", got {split!r}.')
    files = _FILES[folder, split]
    if path is not None and as_path(path).is_file():
        raise ValueError(
            f"path: expected the folder of {files[0][0]} and {files[1][0]}, got the file "
            f"{path}."
        )
    if download:
        _download(folder, files, path)
    source = f"{folder}; download=True fetches it from {_SERVED[folder]}"
    images, labels = (read(folder, *file, source, path) for file in files)
    return parse_idx(images, 3), parse_idx(labels, 1).long()


def parse_idx(content, n_dims):
    """Unsigned bytes of an idx file, the format of MNIST.

    Parameters
    ----------
    content : bytes
        Magic number 0x0800 + n_dims, the dimensions, then the values; big-endian.
    n_dims : int

    Returns
    -------
    values : torch.Tensor of n_dims axes, dtype=torch.uint8

    Raises
    ------
    ValueError
        For another magic number, an empty dimension, or values too few or too many.
    """
    header, magic = 4 + 4 * n_dims, struct.pack(">HBB", 0, 8, n_dims)
    if len(content) < header or content[:4] != magic:
        raise ValueError(
            f"content: expected an idx file of bytes in {n_dims} dimensions, which starts "
            f"with {magic.hex()} and has a header of {header} bytes, got "
            f"{content[:4].hex() or 'nothing'} and {len(content)} bytes."
        )
    shape = struct.unpack_from(f">{n_dims}I", content, 4)
    expected, found = math.prod(shape), len(content) - header
    if expected == 0 or found != expected:
        raise ValueError(
            f"content: the header says {' x '.join(map(str, shape))} bytes, got {found}; "
            "the file is truncated or damaged."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8)[header:].reshape(shape).copy())


def dequantize(images, generator=None, dtype=torch.float64):
    """Points of a continuous law from bytes: (x + u) / 256, u uniform on [0, 1).

    On average over u, a model's log density of these points is at most d log 256 plus its
    log probability of the bytes (Theis, van den Oord and Bethge, 2016). Training twice on
    one draw of the noise is fitting the noise: see examples/mnist.py.

    Parameters
    ----------
    images : torch.Tensor, shape=(n, ...), dtype=torch.uint8
    generator : torch.Generator, optional
        On the device of the images.
    dtype : torch.float64 or torch.float32
        The latter rounds white pixels to multiples of 6e-8, of which a logit near one
        makes as much as 0.04: take it after ``layers.Logit``.

    Returns
    -------
    points : torch.Tensor, shape=(n, d)
        In [0, 1], flattened; in float32 rounding may reach one.
    """
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        got = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"images: expected a tensor of torch.uint8, got {got}.")
    if images.ndim < 2:
        raise ValueError(f"images: expected shape (n, ...), got {tuple(images.shape)}.")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}.")
    pixels = images.flatten(1)
    noise = torch.rand(pixels.shape, generator=generator, dtype=dtype, device=pixels.device)
    return (noise + pixels) / 256


def _download(folder, files, path):
    """Fetch the files that are missing; a file is in its place only if it is the right one."""
    root = os.environ.get("GEOFLOW_DATA")
    if path is None and not root:
        raise FileNotFoundError(
            "path: a download needs a place; pass path= or set GEOFLOW_DATA to a folder."
        )
    place = Path(path) if path is not None else Path(root or "") / folder
    for file, checksum in files:
        name = file + ".gz"
        if (place / file).is_file() or (place / name).is_file():
            continue
        content = _fetch(_SERVED[folder] + name)
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            partial = Path(scratch) / name
            partial.write_bytes(content)
            read(folder, file, checksum, _SERVED[folder], partial)
            partial.replace(place / name)


def _fetch(url):
    try:
        with urlopen(url, timeout=60) as response:
            return response.read()
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"download: could not get {url} ({error}); fetch it by other means and pass "
            "its folder as path=."
        ) from error
