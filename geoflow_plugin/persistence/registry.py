"""Which classes a file may name, and how an object of each is described and made again."""

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

__all__ = [
    "Kind",
    "arguments_of",
    "class_named",
    "kind_of",
    "name_of",
    "named_arguments",
    "register_arguments",
    "register_kind",
    "register_library",
    "register_saved",
]


class Kind(NamedTuple):
    """How objects of a class, and of those below it, go into a file and come back.

    Attributes
    ----------
    describe : callable
        An object, a ``Writer`` and where the object is, to a dict for JSON.
    rebuild : callable
        A class, the dict and a ``Reader``, to an object.
    """

    describe: Callable[[Any, Any, str], dict]
    rebuild: Callable[[type, dict, Any], Any]


_KINDS: dict[type, Kind] = {}
_CLASSES: dict[str, type] = {}
_LIBRARIES: dict[str, tuple[type, ...]] = {}
_ARGUMENTS: dict[type, Callable[[Any], dict]] = {}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+", re.ASCII)


def register_kind(cls, kind):
    """Let a kind serve a class and those below it that have none of their own."""
    _KINDS[cls] = kind


def register_library(package, *bases):
    """Let files name the classes of a package, by their modules, that are below a base."""
    _LIBRARIES[package] = bases


def register_arguments(cls, arguments):
    """Say by a function of an object which constructor arguments make it again."""
    _ARGUMENTS[cls] = arguments


def register_saved(cls=None, *, arguments=None):
    """Let files name a class of yours: a decorator, with or without arguments.

    A network (``nn.Module``) is saved as its attributes and tensors, and comes back without
    its constructor being called. A distribution, a space or a metric comes back through its
    constructor, whose arguments are the attributes of the same names.

    Parameters
    ----------
    cls : type
    arguments : callable, optional
        An object to a dict of the constructor arguments that make it again, where
        attributes do not say them; networks then come back through the constructor, too.

    Returns
    -------
    cls : type

    Raises
    ------
    TypeError
        For anything but a class that is importable by name.

    Examples
    --------
    >>> import geoflow_plugin as gf, torch
    >>> @gf.register_saved
    ... class Field(torch.nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.hidden, self.out = torch.nn.Linear(3, width), torch.nn.Linear(width, 3)
    ...     def forward(self, x):
    ...         return self.out(self.hidden(x).sin())
    """
    if arguments is not None and not callable(arguments):
        raise TypeError(f"arguments: expected a callable, got {arguments!r}.")
    if cls is None:
        return lambda cls: register_saved(cls, arguments=arguments)
    if not isinstance(cls, type):
        raise TypeError(f"register_saved: expected a class as cls, got {cls!r}.")
    if arguments is not None:
        register_arguments(cls, arguments)
        if issubclass(cls, nn.Module):
            register_kind(cls, _KINDS[object])
    _CLASSES[_own_name(cls)] = cls
    return cls


def _own_name(cls):
    # our own classes are called by their public names, so that a file may move
    package, _, _ = cls.__module__.partition(".")
    here, _, _ = __name__.partition(".")
    return f"{here if package == here else cls.__module__}.{cls.__qualname__}"


def kind_of(cls):
    """The kind that serves a class."""
    return next(_KINDS[c] for c in cls.__mro__ if c in _KINDS)


def arguments_of(thing):
    """The constructor arguments that make an object again.

    Raises
    ------
    TypeError
        If an argument cannot be read off the object.
    """
    for cls in type(thing).__mro__:
        if cls in _ARGUMENTS:
            return _ARGUMENTS[cls](thing)
    return named_arguments(thing)


def named_arguments(thing, *, without=()):
    """Constructor arguments that an object keeps as attributes, of their names or _names."""
    found = {}
    for name, parameter in inspect.signature(type(thing).__init__).parameters.items():
        if name in ("self", "equip", "generator", *without):
            continue
        kept = next((n for n in ("_" + name, name, name + "_") if n in vars(thing)), name)
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        is_method = callable(getattr(type(thing), kept, None))
        if variable or is_method or not hasattr(thing, kept):
            raise TypeError(
                f"a {type(thing).__qualname__} does not keep its argument {name!r} as an "
                "attribute; say what made it with register_saved(cls, arguments=...)"
            )
        found[name] = getattr(thing, kept)
    return found


def name_of(cls):
    """What a file calls a class, or None if it may not be in one."""
    for name in (_own_name(cls), f"{cls.__module__}.{cls.__qualname__}"):
        if class_named(name) is cls:
            return name
    return None


def class_named(name):
    """The class that a file calls so, or None. Nothing is imported for a file's sake."""
    if not isinstance(name, str) or len(name) > 200 or not _NAME.fullmatch(name):
        return None
    if name in _CLASSES:
        return _CLASSES[name]
    path, _, name = name.rpartition(".")
    bases = next((b for p, b in _LIBRARIES.items() if f"{path}.".startswith(f"{p}.")), ())
    cls = vars(sys.modules[path]).get(name) if bases and path in sys.modules else None
    # a class that is defined there, not one that happens to be in the namespace
    if isinstance(cls, type) and cls.__module__ == path and issubclass(cls, bases):
        return None if inspect.isabstract(cls) else cls
    return None
