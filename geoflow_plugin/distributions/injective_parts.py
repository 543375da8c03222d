"""What an injective flow is put together from, and refused by name where it does not fit."""

import copy
import math

import torch
from normflows.flows import Reverse

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution, sample_from
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.layers.chain import Chain, context_dim_of
from geoflow_plugin.layers.chart import Chart
from geoflow_plugin.spaces.euclidean import euclidean

__all__ = [
    "ambient_space",
    "as_chain",
    "base_space",
    "check_sizes",
    "common_context_dim",
    "latent_space",
]


def ambient_space(ambient_dim):
    """The Euclidean space that data live in, of a dimension or as it is given."""
    if hasattr(ambient_dim, "shape"):
        if not geometry.is_euclidean(ambient_dim):
            raise TypeError(
                "ambient_dim: expected an integer or a Euclidean space, got "
                f"{type(ambient_dim).__qualname__}."
            )
        return ambient_dim
    check_counts(ambient_dim=ambient_dim)
    return euclidean(ambient_dim)


def latent_space(space, dim):
    """The space given, if arrays are its points, or Euclidean space of a dimension."""
    if space is None:
        check_counts(dim=dim)
        return euclidean(dim)
    point = geometry.origin(space)[None]
    if dim is not None and dim != geometry.dim(space):
        raise ValueError(f"dim: expected {geometry.dim(space)}, that of space, got {dim!r}.")
    if geometry.embed(space, point) is not point:
        raise TypeError(
            f"space: several arrays name one point of {type(space).__qualname__}, so that "
            "padding them embeds nothing; use another latent space."
        )
    return space


def as_chain(layers, name):
    """Layers of normflows, or modules with their two methods, as one."""
    known = list(layers) if isinstance(layers, (list, tuple, torch.nn.ModuleList)) else [None]
    if not all(isinstance(f, torch.nn.Module) and hasattr(f, "inverse") for f in known):
        raise TypeError(f"{name}: expected a sequence of normflows layers, got {layers!r}.")
    return Chain(known)  # type: ignore[arg-type]


def common_context_dim(base, layers):
    """Columns of the context that base and layers need: 0 for none, None if none says.

    Raises
    ------
    ValueError
        If two of them need contexts of different lengths.
    """
    ours = isinstance(base, Distribution)
    of_base = (base.context_dim if base.conditional else 0) if ours else context_dim_of(base)
    dims = {dim for dim in [of_base, *map(context_dim_of, layers)] if dim != 0}
    known = sorted(dims - {None})
    if len(known) > 1:
        raise ValueError(
            f"high_layers: expected one length of context in base and layers, got {known}."
        )
    return known[0] if known else None if dims else 0


def base_space(base, low_layers, latent):
    """The space whose points a base takes.

    Bases of normflows do not say; theirs is the latent space, or R^dim where the first chart
    of the layers leads there.
    """
    if isinstance(base, Distribution):
        return base.space
    charts = (f for f in low_layers if any(isinstance(m, Chart) for m in f.modules()))
    first = next(charts, None)
    stays = first is None or isinstance(first, Reverse)
    return latent if stays else euclidean(geometry.dim(latent))


def check_sizes(flow):
    """Refuse, by name, parts of a flow that do not take what the others give.

    Two points go through copies of them: a layer may set itself up by the first that it
    sees. What fails otherwise than by its sizes is left to its own errors.
    """
    if flow.conditional and flow.context_dim is None:
        return
    try:
        parts = copy.deepcopy([flow.base, flow.low_layers, flow.embedding, flow.high_layers])
    except RuntimeError:  # of tensors that have a graph
        return
    base, low, embedding, high = parts
    like, latent = flow._anchor, flow.latent_space
    k, n_ambient = math.prod(latent.shape), math.prod(flow.space.shape)
    context = like.new_zeros(2, flow.context_dim) if flow.conditional else None
    u = geometry.origin(latent).to(like).expand(2, *latent.shape)
    x = torch.linspace(0.1, 0.9, 2 * n_ambient).to(like).reshape(2, n_ambient)
    decoder, encoder = embedding.names
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        _tried("high_layers", lambda: high.initialize(x, context)[0], n_ambient)
        _tried(encoder, lambda: embedding.inverse(x), k)
        _tried(decoder, lambda: embedding(u.flatten(1)), n_ambient)
        z = _tried("low_layers", lambda: low.initialize(u, context)[0])
        if isinstance(base, Distribution):
            z = None if z is None else z.reshape(2, -1)
            _tried("low_layers", lambda: z, math.prod(base.space.shape))
        elif z is not None:
            drawn = _tried("base", lambda: sample_from(base, 2, None, context))
            size = math.prod(z.shape[1:])
            _tried("base", lambda: None if drawn is None else drawn.reshape(2, -1), size)


def _tried(name, function, size=None):
    """What a part makes of two points, None if it cannot; refused if sizes are the reason."""
    try:
        found = function()
    except (RuntimeError, ValueError, IndexError) as error:
        if not any(word in str(error) for word in ("shape", "size", "range")):
            return None
        raise ValueError(f"{name}: sizes do not fit the other parts ({error}).") from error
    except Exception:
        return None
    if found is not None and size is not None and found.shape != (2, size):
        raise ValueError(
            f"{name}: expected points of {size} entries, as the other parts have, got "
            f"{found.shape[1:].numel()}."
        )
    return found
