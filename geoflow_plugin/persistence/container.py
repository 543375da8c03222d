"""One file of tensors and a description of what they belong to, in the safetensors format.

The description is JSON in the header's ``__metadata__``, beside a digest of it and of every
tensor, so that a damaged file is not taken for another model.
"""

import hashlib
import json
import os

import safetensors
import safetensors.torch
import torch

from geoflow_plugin.training import as_path, write_atomically

__all__ = ["from_bytes", "read", "to_bytes", "write"]

_MAX_HEADER = 2**24  # bytes; as Python objects it takes some ten times that


def to_bytes(description, tensors):
    """The file, of a JSON-able description and tensors by name."""
    # copies: the format has no place for tensors that share memory, or have gaps
    tensors = {
        name: torch.empty_like(t, device="cpu", memory_format=torch.contiguous_format).copy_(t)
        for name, t in tensors.items()
    }
    description = {**description, "digest": _digest(description, tensors)}
    # one entry, since the format keeps no order among several
    content = safetensors.torch.save(tensors, {"geoflow_plugin": _text(description)})
    if int.from_bytes(content[:8], "little") > _MAX_HEADER:
        raise ValueError(f"its description takes more than {_MAX_HEADER >> 20} MiB")
    return content


def from_bytes(content):
    """Description and tensors of a file.

    Raises
    ------
    ValueError
        For anything that is no such file, whole and undamaged.
    """
    length = _header_length(content[:9], len(content))
    try:
        header = json.loads(content[8 : 8 + length])
        text = header["__metadata__"]["geoflow_plugin"]
        description = dict(json.loads(text, parse_constant=_no_constant))
        digest = description.pop("digest")
    except (KeyError, TypeError, ValueError, RecursionError, UnicodeError) as error:
        raise ValueError("its header is none of a saved flow, or damaged") from error
    try:
        tensors = safetensors.torch.load(bytes(content))
    except Exception as error:  # SafetensorError, and what torch says of odd shapes
        raise ValueError(f"no valid safetensors file, or cut short ({error})") from error
    if digest != _digest(description, tensors):
        raise ValueError("damaged: what it holds is not what was written (digest)")
    return description, tensors


def _header_length(start, size):
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(_MAX_HEADER, size - 8) or start[8:] != b"{":
        raise ValueError(
            "no whole safetensors file; if it is a pickle or comes from torch.save, which "
            "could run code, make the model anew and use load_state_dict"
        )
    return length


def _no_constant(name):
    raise ValueError(f"{name} is no JSON")


def _text(description):
    return json.dumps(description, allow_nan=False, separators=(",", ":"))


def _digest(description, tensors):
    digest = hashlib.blake2b(_text(description).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read(path):
    """Bytes of the file at a path, if it begins like a safetensors file.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no regular file, or begins otherwise.
    """
    path = as_path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a file, got a folder or a device.")
    with open(path, "rb") as file:
        start = file.read(9)
        try:
            _header_length(start, os.fstat(file.fileno()).st_size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}.") from error
        return start + file.read()


def write(path, content):
    """Put the bytes of a file in its place, whole or not at all.

    Raises
    ------
    OSError
        With the path, if it cannot be written; an old file is untouched then.
    """
    path = as_path(path)
    try:
        write_atomically(path.resolve(), content)  # through links, which stay
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
