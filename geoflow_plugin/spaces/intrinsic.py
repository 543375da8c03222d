"""Any other space with coordinates: open sets, immersed sets, manifolds of shape (dim,).

The last resort of ``geometry``: a point is its coordinates, the metric is what geomstats
says it is (``metric_matrix``, ``inner_product``, or an ``immersion``), differentiated by
torch, hence under geomstats' pytorch backend alone. Such a space has fields, divergences
and Laplacians; to have normal laws, kernels and charts as well, register its
``geometry.model``, coordinates that fill a known space.
"""

import functools
import weakref

import torch
from geomstats.geometry.base import ImmersedSet, OpenSet
from geomstats.geometry.manifold import Manifold
from geomstats.geometry.pullback_metric import PullbackMetric

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError, unsupported
from geoflow_plugin.geometry.tangent import constant_scale, push
from geoflow_plugin.spaces.euclidean import euclidean

# What every generic space needs, level sets too -----------------------------------------


def register_fallback(cls, function, isometric=True):
    """Register an implementation that gives way to the function's own default.

    That is what serves a space with a ``model``: an isometric one or, where the function
    does not look at the metric, any.
    """
    default = function.__wrapped__

    def decorator(implementation):
        @function.register(cls)
        def _(space, *args, **kwargs):
            found = geometry.model(space)
            if found is not None and (found.isometric or not isometric):
                return default(space, *args, **kwargs)
            return implementation(space, *args, **kwargs)

        return implementation

    return decorator


def require_autodiff(space):
    """Refuse what only geomstats' own functions describe, unless torch runs them."""
    if not isinstance(euclidean(1).basis, torch.Tensor):  # an array of geomstats' backend
        name, metric = type(space).__qualname__, geometry.bare_metric(space)
        equipped = name if metric is None else f"{name} with {type(metric).__qualname__}"
        raise UnsupportedError(
            f"space: {equipped} is known by its geomstats functions alone, which torch "
            "can differentiate only under geomstats' pytorch backend; set the environment "
            "variable GEOMSTATS_BACKEND=pytorch before geomstats is imported "
            "(or register torch-native functions on geoflow_plugin.geometry)."
        )


def in_double(function, *arrays):
    """Call geomstats in float64, the dtype of its constants, and come back."""
    value = torch.as_tensor(function(*(array.double() for array in arrays)))
    return value.to(arrays[0])


_POINTS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def some_points(space, n=256):
    """Points of geomstats' own drawing, (n, *space.shape), the same for each space."""
    if space not in _POINTS:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            drawn = torch.as_tensor(space.random_point(n))
        _POINTS[space] = drawn.detach().double().reshape(n, *space.shape)
    return _POINTS[space]


def metric_inner_product(space, tangent_vec_a, tangent_vec_b, base_point):
    """The inner product of ``space.metric``, flat or by geomstats."""
    if constant_scale(space) is not None:
        default = geometry.inner_product.__wrapped__
        return default(space, tangent_vec_a, tangent_vec_b, base_point)
    require_autodiff(space)
    arrays = torch.broadcast_tensors(tangent_vec_a, tangent_vec_b, base_point)
    flat = [array.reshape(-1, *space.shape) for array in arrays]
    value = in_double(space.metric.inner_product, *flat)
    return value.reshape(arrays[0].shape[: arrays[0].ndim - len(space.shape)])


# Coordinates -----------------------------------------------------------------------------


def _flat(space):
    """The space whose flat geometry this one has: an open set's surroundings, or R^dim."""
    if isinstance(space, OpenSet):
        return space.embedding_space
    if space.shape == (space.dim,) and space.intrinsic:
        return euclidean(space.dim)
    raise unsupported(space, "to_tangent")


@register_fallback(Manifold, geometry.is_compact, isometric=False)
def _(space):
    # no more is known than that there are coordinates: no uniform law without being told
    _flat(space)
    require_autodiff(space)
    return False


@register_fallback(Manifold, geometry.origin, isometric=False)
def _(space):
    geometry.is_compact(space)
    try:
        return some_points(space)[0]
    except NotImplementedError:  # what an ImmersedSet says
        # not zero, where polar coordinates degenerate
        return torch.full(space.shape, 0.5, dtype=torch.float64)


@geometry.to_tangent.register(Manifold)
def _(space, vector, base_point):
    return geometry.to_tangent(_flat(space), vector, base_point)


@geometry.tangent_basis.register(Manifold)
def _(space, base_point):
    return geometry.tangent_basis(_flat(space), base_point)


@geometry.constraint_residual.register(Manifold)
def _(space, point):
    residual = geometry.constraint_residual(_flat(space), point)
    inside = _inside(space, point)
    return residual if inside is None else torch.where(inside, residual, 1 + residual)


@geometry.projection.register(Manifold)
def _(space, point):
    inside = _inside(space, point)
    if inside is None:
        return point
    inside = inside.reshape(inside.shape + (1,) * len(space.shape))
    return torch.where(inside, point, in_double(space.projection, point))


def _inside(space, point):
    """Whether points belong to the space, or None where geomstats cannot tell."""
    require_autodiff(space)
    try:
        return torch.as_tensor(space.belongs(point.detach().double())).to(point.device)
    except NotImplementedError:  # what an ImmersedSet says
        return None


@register_fallback(Manifold, geometry.inner_product)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    return metric_inner_product(space, tangent_vec_a, tangent_vec_b, base_point)


@geometry.inner_product.register(ImmersedSet, PullbackMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    # geomstats' own is a loop over points, with no gradient for parameters
    require_autodiff(space)
    arrays = torch.broadcast_tensors(tangent_vec_a, tangent_vec_b, base_point)
    immersion = functools.partial(in_double, space.immersion)
    image, a = push(immersion, arrays[2], arrays[0])
    _, b = push(immersion, arrays[2], arrays[1])
    value = geometry.inner_product(space.embedding_space, a, b, image)
    return geometry.outer_scale(space) * value


# What such a space lacks -------------------------------------------------------------------


def _refuse_without_model(function):
    """Tell whose coordinates nobody has said to fill a known space how to say so."""

    @register_fallback(Manifold, function, isometric=False)
    def _(space, *args):
        if geometry.is_compact(space) or tuple(space.shape) != (space.dim,):
            raise unsupported(space, function.__name__)
        name, d = type(space).__qualname__, space.dim
        raise UnsupportedError(
            f"space: {name} has no {function.__name__}, since nobody said what its "
            "coordinates fill; register its geoflow_plugin.geometry.model. Where every "
            f"vector of R^{d} is a point, that is geometry.model.register({name})(lambda "
            f"space: geometry.Model(Euclidean({d}), lambda x: x, lambda z: z, "
            "isometric=False)), and laws are normal laws of the coordinates."
        )


for _function in (
    geometry.wrapped_normal_log_prob,
    geometry.log_kernel_normalizer,
    geometry.chart,
):
    _refuse_without_model(_function)
