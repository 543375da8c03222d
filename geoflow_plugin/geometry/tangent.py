"""Points, tangent vectors and the metric of a space, and how to move on it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.func import vmap

from geoflow_plugin.geometry.dispatch import (
    frobenius_scale,
    open_function,
    required_function,
    unsupported,
)
from geoflow_plugin.geometry.forward_mode import jvp, scaled

# Another space in disguise ------------------------------------------------------------


class Model(NamedTuple):
    """A known space in bijection with another one, up to null sets.

    Attributes
    ----------
    space : geomstats Manifold
        The known space.
    to_model, from_model : callable
        Points of the one to points of the other, (..., *shape) to (..., *shape), smooth.
    isometric : bool
        Whether the metrics agree as well (up to ``outer_scale``); if so, everything
        Riemannian is taken from the known space, and normal laws and charts alone if not.
    """

    space: Any
    to_model: Callable
    from_model: Callable
    isometric: bool = True


@open_function
def model(space):
    """The ``Model`` of a space, or None."""
    return None


def isometric_model(space):
    """The model of a space, if it has its metric as well."""
    found = model(space)
    return found if found is not None and found.isometric else None


def push(function, point, tangent_vec):
    """Image of points and tangent vectors under a map."""
    return jvp(function, (point.contiguous(),), (tangent_vec.contiguous(),))


@open_function
def is_compact(space):
    """Whether the space has a finite volume and so a uniform probability."""
    found = model(space)
    if found is None:
        raise unsupported(space, "is_compact")
    return is_compact(found.space)


# The flat tangent geometry of a point's array ---------------------------------------


@open_function
def dim(space):
    """Dimension of the space; its own ``dim`` unless geomstats has that wrong."""
    return space.dim


@open_function
def is_euclidean(space):
    """Whether every array is a point and the metric a constant times Frobenius."""
    return False


@open_function
def embed(space, point):
    """Points as fields and potentials see them: (n, *space.shape) to (n, *shape).

    The array itself, unless several arrays name one point (quotients, coordinates with a
    seam), so that functions of the array need not be functions on the space: then the
    image under a smooth embedding of the space, which tells points apart and not arrays.
    """
    return point


@required_function
def projection(space, point):
    """Nearest point of the space, shape (..., *space.shape)."""


@required_function
def to_tangent(space, vector, base_point):
    """Orthogonal (Frobenius) projection of ``vector`` on the tangent space."""


@required_function
def tangent_basis(space, base_point):
    """Frobenius-orthonormal tangent basis, shape (..., dim, *space.shape)."""


@open_function
def mean_curvature(space, point):
    """Mean curvature vector H of the array's embedding, shape (n, *space.shape).

    The sum of the second fundamental form over ``tangent_basis``, (D_{e_i} P) e_i with P
    the projection of ``to_tangent``: the projection of a constant vector v has flat
    divergence <H, v>.
    """

    def along(direction):
        return jvp(lambda p: to_tangent(space, direction, p), (point,), (direction,))[1]

    basis = tangent_basis(space, point).movedim(1, 0).contiguous()
    return vmap(along)(basis).sum(0)


@open_function
def origin(space):
    """A fixed point of the space, shape=space.shape: a pole, the identity, zero."""
    found = model(space)
    if found is None:
        raise unsupported(space, "origin")
    return found.from_model(origin(found.space))


@required_function
def constraint_residual(space, point):
    """By how much each point misses the space's defining equations, shape (...,)."""


@open_function
def pull_back(space, vector, base_point):
    """Tangent vectors (n, *space.shape) of vectors at images under ``embed``.

    Projected on the image of the tangent space, orthogonally, and carried back: what
    ``to_tangent`` does where ``embed`` is the identity.
    """
    basis = tangent_basis(space, base_point).movedim(1, 0).contiguous()
    _, pushed = push_embedding(space, basis, base_point)
    weight = pushed @ vector.flatten(1).unsqueeze(-1)
    weight = torch.linalg.inv(pushed @ pushed.mT) @ weight
    return (weight.mT @ basis.flatten(2).movedim(0, 1)).reshape(base_point.shape)


def push_embedding(space, basis, base_point):
    """Images under ``embed`` of points, and of a basis (k, n, *shape) as rows (n, k, size)."""
    image, pushed = vmap(
        lambda direction: push(lambda p: embed(space, p), base_point, direction),
        out_dims=(None, 0),  # type: ignore[arg-type]
    )(basis)
    return image, pushed.flatten(2).movedim(0, 1)


# The metric --------------------------------------------------------------------------


@open_function
def metrics(space):
    """The metric objects on which densities of a space depend, factors' included, a list."""
    return [getattr(space, "metric", None)]


def outer_scale(space):
    """Product of the constants by which ``space.metric`` is scaled from outside."""
    metric: Any = getattr(space, "metric", None)
    scale = 1.0
    while hasattr(metric, "underlying_metric"):
        scale, metric = scale * float(metric.scale), metric.underlying_metric
    return scale


def constant_scale(space):
    """The constant of ``metric_scale``, or None for a metric that is no such multiple."""
    is_compact(space)  # refuses unknown spaces by name
    metric = getattr(space, "metric", None)
    return 1.0 if metric is None else frobenius_scale(metric)


def metric_scale(space):
    """Constant c with ``space.metric`` = c times Frobenius; 1 if there is no metric.

    Raises
    ------
    TypeError
        For a metric that is no such multiple.
    """
    scale = constant_scale(space)
    if scale is None:
        raise unsupported(space, "frobenius_scale")
    return scale


@open_function
def frobenius_weight(space, point):
    """What each entry of the Frobenius product counts in the metric, or None.

    A positive float, or a tensor that broadcasts with points (n, *space.shape) and is
    constant on each factor of a product; None for a metric that is no such product.
    """
    return constant_scale(space)


@open_function
def inner_product(space, tangent_vec_a, tangent_vec_b, base_point):
    """Riemannian inner product of tangent vectors, shape (...,)."""
    scale = constant_scale(space)
    if scale is not None:
        return scale * (tangent_vec_a * tangent_vec_b).flatten(-len(space.shape)).sum(-1)
    found = isometric_model(space)
    if found is None:
        raise unsupported(space, "inner_product")
    arrays = torch.broadcast_tensors(tangent_vec_a, tangent_vec_b, base_point)
    tangent_vec_a, tangent_vec_b, base_point = arrays
    image, a = push(found.to_model, base_point, tangent_vec_a)
    _, b = push(found.to_model, base_point, tangent_vec_b)
    return outer_scale(space) * inner_product(found.space, a, b, image)


@open_function
def gram(space, base_point):
    """Inner products of the vectors of ``tangent_basis``, shape (..., dim, dim)."""
    basis = tangent_basis(space, base_point)
    found = isometric_model(space)
    if found is None or constant_scale(space) is not None:
        return _inner_products(space, basis, base_point)
    image, pushed = push_basis(found, basis, base_point, len(space.shape))
    return outer_scale(space) * _inner_products(found.space, pushed, image)


def push_basis(found, basis, base_point, n_axes):
    """Image under a model of points and of a basis (..., dim, *shape) at them."""
    axis = basis.ndim - n_axes - 1
    image, pushed = vmap(
        lambda direction: push(found.to_model, base_point, direction),
        in_dims=axis,
        out_dims=(None, axis),  # type: ignore[arg-type]
    )(basis)
    return image, pushed


def _inner_products(space, vectors, base_point):
    """Gram matrix (..., d, d) of vectors (..., d, *shape) at points (..., *shape)."""
    n_axes = len(space.shape)
    batch, d = vectors.shape[: -n_axes - 1], vectors.shape[-n_axes - 1]
    shape = (*batch, d, d, *space.shape)
    axis = len(batch)
    arrays = [
        vectors.unsqueeze(axis + 1).expand(shape).reshape(-1, *space.shape),
        vectors.unsqueeze(axis).expand(shape).reshape(-1, *space.shape),
        base_point.unsqueeze(axis).unsqueeze(axis).expand(shape).reshape(-1, *space.shape),
    ]
    return inner_product(space, *arrays).reshape(*batch, d, d)


@open_function
def log_volume_element(space, point):
    """Log of Riemannian over flat (Hausdorff) volume at each point, shape (...,)."""
    scale = constant_scale(space)
    if scale is None:
        # not slogdet or solve: torch differentiates their forward derivatives wrongly
        root = torch.linalg.cholesky(gram(space, point))
        return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    batch = point.shape[: point.ndim - len(space.shape)]
    value = 0.5 * math.log(scale) * dim(space)
    return torch.full(batch, value, dtype=point.dtype, device=point.device)


@open_function
def sharp(space, covector, base_point):
    """Riemannian gradient from the flat tangential gradient."""
    scale = constant_scale(space)
    if isinstance(scale, float):
        return covector if scale == 1 else scaled(covector, 1 / scale)
    if scale is not None:
        return covector / scale
    axis = base_point.ndim - len(space.shape)
    basis = tangent_basis(space, base_point).flatten(axis + 1)
    flat = (basis * covector.flatten(axis).unsqueeze(axis)).sum(-1)
    root = torch.linalg.cholesky(gram(space, base_point))
    weight = torch.cholesky_solve(flat.unsqueeze(-1), root).squeeze(-1)
    return (weight.unsqueeze(-1) * basis).sum(axis).reshape(base_point.shape)


@open_function
def interpolation(space):
    """How to make fields of a space with edges obey Stokes' theorem, or None.

    Where tangent planes jump, projected fields leak, and a space brings a map instead: a
    field and points (n, *shape) to the tangent vectors and the exact divergence, (n,), of
    a nearby field that does not. Densities of flows then jump as well.
    """
    return None


@required_function
def smooth_fluxes(space, n):
    """Gradient fields in the eigenfunctions of the Laplacian of a space with edges.

    Returns
    -------
    eigenvalues : torch.Tensor, shape=(n,)
        The least positive ones, fewer if the space has fewer.
    flux : torch.Tensor, shape=(n_edges, n)
        Through the edges, of fields whose divergences are minus the eigenfunctions, which
        have a mean square of one.
    """


# Moving on the space ------------------------------------------------------------------


@open_function
def exp(space, tangent_vec, base_point):
    """Riemannian exponential."""
    found = isometric_model(space)
    if found is None:
        raise unsupported(space, "exp")
    image, pushed = push(found.to_model, base_point, tangent_vec)
    return found.from_model(exp(found.space, pushed, image))


@open_function
def log(space, point, base_point):
    """Riemannian logarithm; ``exp(space, log(space, y, x), x) == y``."""
    found = isometric_model(space)
    if found is None:
        raise unsupported(space, "log")
    image = found.to_model(base_point)
    pushed = log(found.space, found.to_model(point), image)
    image, pushed = torch.broadcast_tensors(image, pushed)
    return push(found.from_model, image, pushed)[1]


@open_function
def dist(space, point_a, point_b):
    """Geodesic distance, shape (...,); its gradient at coincident points is zero."""
    found = isometric_model(space)
    if found is not None:
        images = found.to_model(point_a), found.to_model(point_b)
        return math.sqrt(outer_scale(space)) * dist(found.space, *images)
    tangent_vec = log(space, point_b, point_a)
    squared = inner_product(space, tangent_vec, tangent_vec, point_a)
    return safe_sqrt(squared)


@open_function
def retraction(space, tangent_vec, base_point):
    """First-order retraction: step in the array, then project; cheaper than ``exp``."""
    return projection(space, base_point + tangent_vec)


def safe_sqrt(squared):
    """Square root whose derivative at zero is zero instead of NaN."""
    positive = squared > 0
    root = torch.where(positive, squared, torch.ones_like(squared)).sqrt()
    return torch.where(positive, root, torch.zeros_like(root))
