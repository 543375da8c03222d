"""Open functions: one name, an implementation for each kind of space and metric."""

import functools
from collections.abc import Callable
from typing import Any

__all__ = [
    "FlatMetric",
    "UnsupportedError",
    "bare_metric",
    "frobenius_scale",
    "open_function",
    "required_function",
    "unsupported",
]


class UnsupportedError(TypeError):
    """A space, or its metric, on which nobody registered what was asked for."""


class FlatMetric:
    """Stands for every metric that ``frobenius_scale`` knows, and for none at all.

    ``function.register(Space, FlatMetric)`` serves a space as long as its metric is a
    constant times the product of arrays.
    """


def unsupported(space, what):
    """The error for a space on which nobody registered ``what``."""
    metric = getattr(space, "metric", None)
    equipped = "no metric" if metric is None else f"metric {type(metric).__name__}"
    return UnsupportedError(
        f"space: geoflow_plugin has no torch-native {what} for "
        f"{type(space).__module__}.{type(space).__qualname__} with {equipped}; "
        "docs/spaces.md lists what is supported "
        f"(register your own on geoflow_plugin.geometry.{what})."
    )


def open_function(function):
    """Make a function open: dispatched on the nearest class of its first argument.

    ``function.register(Space)`` serves a class and those below it;
    ``function.register(Space, Metric)`` serves it under one class of metrics, which
    goes first, and ``function.register(Space, FlatMetric)`` under the flat ones. The
    metric under a ``ScalarProductMetric`` counts, so that an implementation has to heed
    ``geometry.outer_scale``. The body serves every class
    without an implementation of its own; ``function.find(space)`` is what serves a
    space. A dictionary and a walk along the MRO instead of ``functools.singledispatch``,
    whose cache ``torch.compile`` cannot trace.
    """
    implementations: dict[type, dict[type | None, Callable]] = {}

    def find(space):
        for cls in type(space).__mro__:
            if cls in implementations:
                by_metric = implementations[cls]
                if len(by_metric) > 1 or None not in by_metric:
                    for metric_class in _metric_classes(space):
                        if metric_class in by_metric:
                            return by_metric[metric_class]
                    if FlatMetric in by_metric and _is_flat(space):
                        return by_metric[FlatMetric]
                if None in by_metric:
                    return by_metric[None]
        return function

    @functools.wraps(function)
    def dispatch(space, *args, **kwargs):
        return find(space)(space, *args, **kwargs)

    def register(cls, metric_class=None):
        def decorator(implementation):
            implementations.setdefault(cls, {})[metric_class] = implementation
            return implementation

        return decorator

    dispatch.register = register  # type: ignore[attr-defined]
    dispatch.find = find  # type: ignore[attr-defined]
    return dispatch


def bare_metric(space):
    """The metric of a space under every ``ScalarProductMetric``, or None."""
    metric: Any = getattr(space, "metric", None)
    while hasattr(metric, "underlying_metric"):
        metric = metric.underlying_metric
    return metric


def _metric_classes(space):
    metric = bare_metric(space)
    return () if metric is None else type(metric).__mro__


def required_function(function):
    """An open function without a default: other spaces are refused by name."""

    @functools.wraps(function)
    def refuse(space, *args, **kwargs):
        raise unsupported(space, function.__name__)

    return open_function(refuse)


@open_function
def frobenius_scale(metric):
    """Constant c of a metric that is c times the Frobenius product on tangent vectors.

    Dispatched on the class of the *metric*; None for a metric that is no such multiple.
    """
    return None


def _is_flat(space):
    metric = bare_metric(space)
    return metric is None or frobenius_scale(metric) is not None
