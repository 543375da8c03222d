"""Plain values as JSON: what JSON lacks is a dict of one entry, its tag."""

import math

import numpy as np
import torch
from torch.nn import functional

__all__ = ["decode", "encode"]

_MAX_DEPTH = 20
_MAX_INTEGER = 2**31
_MAX_STRING = 2**16
_LONG = 16  # lists of as many numbers go to a tensor
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
# what layers of torch and normflows keep as their activation
_FUNCTIONS = {
    f"{library.__name__}.{name}": function
    for library, names in {
        torch: "cos exp relu sigmoid sin square tanh",
        functional: "celu elu gelu hardtanh leaky_relu logsigmoid mish relu relu6 selu "
        "sigmoid silu softplus softsign tanh",
    }.items()
    for name in names.split()
    if callable(function := getattr(library, name, None))
}


def encode(value, writer, where):
    """A value as JSON; tensors and objects go to the writer.

    Raises
    ------
    TypeError, ValueError
        For what has no place in a file.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise ValueError(f"{where}: no file holds an integer as large as {value}.")
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.nn.Parameter):
        raise TypeError(f"{where}: a parameter outside of its module has no place in a file.")
    if isinstance(value, torch.Tensor):
        return {"tensor": writer.tensor(value, where)}
    if isinstance(value, np.ndarray):
        return {"array": writer.tensor(torch.from_numpy(np.ascontiguousarray(value)), where)}
    if type(value) in (list, tuple, torch.Size):
        return _encode_sequence(value, writer, where)
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {k: encode(v, writer, f"{where}.{k}") for k, v in value.items()}}
    for name, function in _FUNCTIONS.items():
        if value is function:
            return {"function": name}
    return {"object": writer.object(value, where)}


def _encode_sequence(value, writer, where):
    if type(value) is list and len(value) > _LONG and len(set(map(type, value))) == 1:
        dtype = {float: torch.float64, int: torch.int64}.get(type(value[0]))
        if dtype is not None:
            return {"numbers": writer.tensor(torch.tensor(value, dtype=dtype), where)}
    items = [encode(v, writer, f"{where}.{i}") for i, v in enumerate(value)]
    if type(value) is list:
        return items
    return {"tuple" if type(value) is tuple else "size": items}


def decode(value, reader, depth=0):
    """The value that ``encode`` was given.

    Raises
    ------
    ValueError
        For JSON that it never wrote.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"values are nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise ValueError(f"{value} is too large a number for an argument")
        return value
    if isinstance(value, float):
        return value
    if isinstance(value, str):
        if len(value) > _MAX_STRING:
            raise ValueError(f"a string has {len(value)} letters")
        return value
    if isinstance(value, list):
        return [decode(v, reader, depth + 1) for v in value]
    tag, content = (
        next(iter(value.items()), ("", None)) if isinstance(value, dict) else ("", 0)
    )
    if tag not in _DECODERS or len(value) != 1:
        raise ValueError(f"no value is described by {str(value)[:80]}")
    return _DECODERS[tag](content, reader, depth + 1)


def _one_of(table, what):
    def decode_name(content, reader, depth):
        if not isinstance(content, str) or content not in table:
            raise ValueError(f"{str(content)[:80]!r} is no {what} that a file may name")
        return table[content]

    return decode_name


def _items(content, reader, depth):
    if not isinstance(content, list):
        raise ValueError(f"expected a list, got {str(content)[:80]}")
    return [decode(v, reader, depth) for v in content]


def _decode_dict(content, reader, depth):
    if not isinstance(content, dict):
        raise ValueError(f"expected a dict, got {str(content)[:80]}")
    return {key: decode(v, reader, depth) for key, v in content.items()}


_DECODERS = {
    "float": _one_of(_FLOATS, "float"),
    "dtype": _one_of(_DTYPES, "dtype"),
    "function": _one_of(_FUNCTIONS, "function"),
    "tensor": lambda content, reader, depth: reader.argument(content),
    "array": lambda content, reader, depth: reader.argument(content).numpy(),
    "numbers": lambda content, reader, depth: reader.argument(content).tolist(),
    "tuple": lambda content, reader, depth: tuple(_items(content, reader, depth)),
    "size": lambda content, reader, depth: torch.Size(_items(content, reader, depth)),
    "dict": _decode_dict,
    "object": lambda content, reader, depth: reader.object(content),
}
