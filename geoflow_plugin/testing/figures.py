"""Figures by which laws are judged."""

import math


def size(x):
    """How large points are, so that errors are relative where a space is unbounded."""
    return 1 + x.detach().flatten(1).norm(dim=1)


def worst(error):
    """Largest entry, as a number."""
    return float(error.detach().abs().max()) if error.numel() else 0.0


def standard_error(values):
    """Of their mean."""
    return float(values.std()) / math.sqrt(len(values))


def standard_errors(values, expected):
    """How many of them a mean is from what is expected."""
    return abs(float(values.mean()) - expected) / max(standard_error(values), 1e-6)


def raise_broken(broken, name):
    """Raise ``AssertionError`` with every law that fails, if any does."""
    if broken:
        raise AssertionError(f"{name} breaks {len(broken)} laws:\n  " + "\n  ".join(broken))
