"""What an injective flow is put together from, and refused by name where it does not fit."""

import torch
from normflows.flows import Reverse

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.layers.chain import Chain, context_dim_of
from geoflow_plugin.layers.chart import Chart
from geoflow_plugin.spaces.euclidean import euclidean

__all__ = ["ambient_space", "as_chain", "base_space", "common_context_dim", "latent_space"]


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
