"""Spaces in files: class, constructor arguments, and the metric they are equipped with."""

import inspect
import math

import numpy as np
import torch
from geomstats.geometry.complex_manifold import ComplexManifold
from geomstats.geometry.complex_riemannian_metric import ComplexRiemannianMetric
from geomstats.geometry.connection import Connection
from geomstats.geometry.full_rank_correlation_matrices import (
    FullRankCorrelationAffineQuotientMetric,
    LogScaledMetric,
    OffLogMetric,
)
from geomstats.geometry.landmarks import Landmarks
from geomstats.geometry.manifold import Manifold
from geomstats.geometry.open_hemisphere import OpenHemispheresProduct
from geomstats.geometry.rank_k_psd_matrices import PSDBuresWassersteinMetric, RankKPSDMatrices

from geoflow_plugin.persistence.kinds import fields_of
from geoflow_plugin.persistence.registry import (
    Kind,
    arguments_of,
    class_named,
    name_of,
    named_arguments,
    register_arguments,
    register_kind,
    register_library,
    register_saved,
)
from geoflow_plugin.spaces import complex, hpd, siegel  # noqa: F401 - views of theirs
from geoflow_plugin.spaces.euclidean import euclidean
from geoflow_plugin.spaces.mesh import MeshSurface
from geoflow_plugin.spaces.real_view import _VIEWS, RealView

_BASES = Manifold, ComplexManifold, Connection, ComplexRiemannianMetric
# geomstats makes arrays of the square of this for a space of which nothing is known yet
_MAX_ENTRIES = 2**14
_OWN_MAX_ENTRIES = dict.fromkeys(
    (
        "OpenHemispheresProduct",
        "PreShapeSpace",
        "UnitNormedRowsPLTMatrices",
        "_SpecialEuclideanMatrices",
    ),
    2**12,
)


def _describe(space, writer, where):
    arguments = arguments_of(space)
    record = {"arguments": _values(arguments, writer, where), "metric": {}, "quotient": {}}
    _check_sizes(type(space), record["arguments"])
    if isinstance(getattr(space, "group_action", None), str) and hasattr(space, "quotient"):
        record["quotient"] = {"group_action": space.group_action}
    metric = None if isinstance(space, RealView) else getattr(space, "metric", None)
    if metric is not None:
        place = f"{where}.metric" if where else "metric"
        record["metric"] = _describe_metric(space, metric, writer, place)
    return record


def _describe_metric(space, metric, writer, where):
    scale = float(getattr(metric, "scale", 1.0)) if _is_scaled(metric) else 1.0
    metric = metric.underlying_metric if _is_scaled(metric) else metric
    name = name_of(type(metric))
    if name is None:
        if space.default_metric() is not type(metric):
            raise TypeError(
                f"{where}: a {type(metric).__qualname__} cannot be described in a file; put "
                "@geoflow_plugin.register_saved on its class."
            )
        return {"class": None, "arguments": {}, "scale": scale}  # what the space has anyway
    arguments = arguments_of(metric)
    arguments.pop("space", None)
    if arguments.get("signature") == (space.dim, 0):
        del arguments["signature"]
    described = _values(arguments, writer, where)
    return {"class": name, "arguments": described, "scale": scale}


def _values(arguments, writer, where):
    prefix = f"{where}." if where else ""
    return {name: writer.value(value, prefix + name) for name, value in arguments.items()}


def _is_scaled(metric):
    return hasattr(metric, "underlying_metric")


def _rebuild(cls, record, reader):
    described, metric, quotient = fields_of(record, "arguments", "metric", "quotient")
    reader.make_room(8 * _check_sizes(cls, described) ** 2)
    arguments = _decoded(described, reader)
    if "equip" in inspect.signature(cls.__init__).parameters:
        arguments["equip"] = False
    space = cls(**arguments)
    if math.prod(space.shape) > 2 * _MAX_ENTRIES:
        raise ValueError(f"its points have too many entries, shape {space.shape}")
    if metric:
        _equip(space, metric, reader)
    if quotient:
        (action,) = quotient.values()
        if not isinstance(action, str):
            raise ValueError(f"group_action: expected a string, got {str(action)[:80]}")
        space.equip_with_group_action(action)
        space.equip_with_quotient()
    return space


def _equip(space, metric, reader):
    if metric.keys() != {"class", "arguments", "scale"}:
        raise ValueError(f"no metric is described by {sorted(map(str, metric))[:10]}")
    name, scale = metric["class"], metric["scale"]
    if name is None:
        space.equip_with_metric()
    else:
        cls = class_named(name)
        if cls is None or not issubclass(cls, _BASES[2:]):
            raise ValueError(f"{str(name)[:80]!r} is no metric that a file may name")
        (arguments,) = fields_of({"arguments": metric["arguments"]}, "arguments")
        space.equip_with_metric(cls, **_decoded(arguments, reader))
    if not isinstance(scale, float) or not 0 < scale < math.inf:
        raise ValueError(f"scale: expected a positive number, got {str(scale)[:80]}")
    if scale != 1:
        space.metric = scale * space.metric


def _decoded(arguments, reader):
    return {name: _of_backend(reader.value(value)) for name, value in arguments.items()}


def _of_backend(value):
    """Arrays as geomstats' backend has them, whichever wrote the file."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        torch_backend = isinstance(euclidean(1).basis, torch.Tensor)
        return torch.as_tensor(value) if torch_backend else np.asarray(value)
    return value


def _check_sizes(cls, arguments):
    """Entries of a point, about, or an error before anything of that size is made."""
    sizes = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, int) and not isinstance(value, bool) and name != "n_draws"
    }
    if len(sizes) == 1 and "dim" not in sizes:
        sizes |= {"": next(iter(sizes.values()))}  # square matrices
    largest = _OWN_MAX_ENTRIES.get(cls.__name__, _MAX_ENTRIES)
    entries = math.prod(max(1, abs(size)) for size in sizes.values())
    if entries > largest:
        sizes.pop("", None)
        raise ValueError(f"points of {largest} entries at most go into a file, got {sizes}")
    return entries


register_library("geomstats.geometry", *_BASES)
register_library("geomstats.information_geometry", *_BASES)
for _base in (Manifold, ComplexManifold):
    register_kind(_base, Kind(_describe, _rebuild))

# What made them, where attributes of the same names do not say it ------------------------

register_saved(MeshSurface)
for _view in {RealView, *_VIEWS.values()}:
    register_saved(_view, arguments=lambda view: {"space": view.complex_space})


def _with(**others):
    """Arguments by attributes of their names, but for those found by functions."""

    def arguments(thing):
        found = named_arguments(thing, without=others)
        return found | {name: find(thing) for name, find in others.items()}

    return arguments


def _of_image(*names):
    return lambda metric: {name: getattr(metric.image_space.metric, name) for name in names}


for _cls, _arguments in {
    Landmarks: _with(ambient_manifold=lambda space: space.base_manifold),
    LogScaledMetric: _of_image("alpha", "delta", "zeta"),
    OffLogMetric: _of_image("alpha", "beta", "gamma"),
    OpenHemispheresProduct: lambda space: {"n": len(space.factors) + 1},
    RankKPSDMatrices: _with(k=lambda space: space.rank),
    # which make their own total spaces
    FullRankCorrelationAffineQuotientMetric: lambda metric: {},
    PSDBuresWassersteinMetric: lambda metric: {},
}.items():
    register_arguments(_cls, _arguments)
