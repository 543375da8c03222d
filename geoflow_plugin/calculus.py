"""Divergence, gradient and Laplacian on any supported space, exact or stochastic.

With E a Frobenius-orthonormal tangent basis, the flat divergence of a tangent field u is
sum_i <e_i, D_{e_i} u>: dim forward-mode products, batched, that depend only on values on
the manifold. Of u = P v with v and sum_i <e_i, D_{e_i} v> in closed form, what is left is
sum_i <e_i, (D_{e_i} P) v> = <H, v>, H the mean curvature vector. The metric adds the
derivative of its log volume element along u. A space with edges, where no field has such
derivatives, interpolates it (``interpolation``).
"""

import torch
from torch.func import vjp, vmap

from geoflow_plugin import geometry
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.geometry.forward_mode import jvp

__all__ = [
    "divergence",
    "gradient",
    "gradient_and_laplacian",
    "laplacian",
    "value_and_divergence",
]


def value_and_divergence(space, field, points, method="exact", n_probes=1, generator=None):
    """Tangential part of a field and its Riemannian divergence, in one pass.

    Unlike ``divergence`` this looks at no values, so that it can sit in hot loops.

    Parameters
    ----------
    space : geomstats Manifold
    field : callable
        Points (n, *space.shape) to ambient vectors (n, *space.shape), or, where
        ``geometry.embed`` is not the identity, of images to vectors there. If it has a method
        ``value_and_trace(points, basis)``, which returns its vectors and the sum of
        <e_i, Dw e_i> over a basis (dim, n, *space.shape), exact divergences use that; on a
        mesh, fields with a method ``fluxes()`` through its edges are known by these.
    points : torch.Tensor, shape=(n, *space.shape)
    method : {"exact", "hutchinson"}
        All dim directions of a tangent basis, or random ones.
    n_probes : int
        Number of Hutchinson probes; more probes, less variance.
    generator : torch.Generator, optional
        Source of the probes.

    Returns
    -------
    tangent_vec : torch.Tensor, shape=(n, *space.shape)
    divergence : torch.Tensor, shape=(n,)

    Raises
    ------
    ValueError
        Unknown method, or a field of another shape than its points.
    """
    seen = _Seen if geometry.embed(space, points) is not points else _Array
    return _value_and_divergence(space, field, points, method, n_probes, generator, seen)


def _value_and_divergence(space, field, points, method, n_probes, generator, seen):
    points = points.contiguous()  # forward mode cannot take expanded tensors
    interpolate = geometry.interpolation(space)
    if interpolate is not None:  # exact, and cheaper than any probe
        given = field if hasattr(field, "fluxes") else lambda x: _vectors(field, x)
        return interpolate(given, points)
    directions = _directions(space, points, method, n_probes, generator)
    if method == "exact" and hasattr(field, "value_and_trace"):
        known = seen.closed_form(space, field, points, directions)
        if known is not None:
            tangent_vec, total = known
            return tangent_vec, total + _volume_term(space, points, tangent_vec)

    def tangent_field(x):
        return seen.tangent(space, _vectors(field, seen.image(space, x)), x)

    products, tangent_vec = _products(tangent_field, points, directions, len(space.shape))
    total = products.mean(0) if method == "hutchinson" else products.sum(0)
    return tangent_vec, total + _volume_term(space, points, tangent_vec)


def _products(tangent_field, points, directions, n_axes):
    """Vectors at points, and <v, D_v field> in each of the directions (k, n, *shape)."""

    def with_value(x):
        tangent_vec = tangent_field(x)
        return tangent_vec, tangent_vec

    def along(direction):
        _, change, tangent_vec = jvp(  # type: ignore[misc]
            with_value, (points,), (direction,), has_aux=True
        )
        return (direction * change).flatten(-n_axes).sum(-1), tangent_vec

    # The basis is batched, the points are not: they go through the field once.
    return vmap(along, out_dims=(0, None))(directions)  # type: ignore[arg-type]


def divergence(space, field, points, method="exact", n_probes=1, generator=None):
    """Riemannian divergence of the tangential part of a field.

    Parameters
    ----------
    space : geomstats Manifold
        The divergence is with respect to the volume of ``space.metric``.
    field : callable
        Points (n, *space.shape) to ambient vectors (n, *space.shape); an
        ``nn.Module`` or any function made of torch operations. It is projected onto
        the tangent space here.
    points : torch.Tensor, shape=(n, *space.shape)
        Points of the space.
    method : {"exact", "hutchinson"}
        ``"exact"`` takes dim forward-mode products, ``"hutchinson"`` ``n_probes``
        random ones, without bias.
    n_probes : int
        Number of Hutchinson probes.
    generator : torch.Generator, optional
        Source of the probes.

    Returns
    -------
    divergence : torch.Tensor, shape=(n,)
        Differentiable in the points and in the parameters of the field.

    Raises
    ------
    TypeError, ValueError
        For an unsupported space, or points that are no finite points of it.
    """
    _check_callable(field=field)
    geometry.check_points(space, points, name="points")
    return value_and_divergence(space, field, points, method, n_probes, generator)[1]


def gradient(space, potential, points):
    """Riemannian gradient of a scalar function.

    Parameters
    ----------
    space : geomstats Manifold
    potential : callable
        Points (n, *space.shape), as ``geometry.embed`` shows them, to scalars (n,) or
        (n, 1), row by row.
    points : torch.Tensor, shape=(n, *space.shape)

    Returns
    -------
    gradient : torch.Tensor, shape=(n, *space.shape)
        Tangent vectors, with ``inner_product(grad, v) = d potential(v)``.

    Raises
    ------
    TypeError, ValueError
        For an unsupported space, points off it, or a potential that is not scalar.
    """
    _check_callable(potential=potential)
    geometry.check_points(space, points, name="points")
    return _gradient(space, potential, points)


def laplacian(space, potential, points, method="exact", n_probes=1, generator=None):
    """Laplace-Beltrami operator of a scalar function, div grad.

    Parameters and errors are those of ``gradient`` and ``divergence``.

    Returns
    -------
    laplacian : torch.Tensor, shape=(n,)
    """
    _check_callable(potential=potential)
    geometry.check_points(space, points, name="points")
    return _divergence_of_gradient(space, potential, points, method, n_probes, generator)[1]


def _divergence_of_gradient(space, potential, points, method, n_probes, generator):
    def field(x):
        return _gradient(space, potential, x)

    # without a graph, torch takes first derivatives by kernels that have none (SiLU's)
    with torch.enable_grad():
        values = _value_and_divergence(
            space, field, points, method, n_probes, generator, _Array
        )
    if torch.is_grad_enabled() or is_transformed():
        return values
    return tuple(value.detach() for value in values)


def is_transformed():
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.maybe_current_level() is not None


def gradient_and_laplacian(space, potential, points):
    """Riemannian gradient and Laplace-Beltrami operator of a scalar, in one pass.

    Like ``value_and_divergence`` this looks at no values.

    Parameters
    ----------
    space : geomstats Manifold
    potential : callable
        As for ``gradient``. A method ``gradient_and_trace(points, basis)``, which returns
        the ambient gradient and the sum of <e_i, Hess e_i> over a basis (dim, n,
        *space.shape), None for that of the array, is used where the metric is a
        constant times the Frobenius product, on each factor of a product.
    points : torch.Tensor, shape=(n, *space.shape)

    Returns
    -------
    gradient : torch.Tensor, shape=(n, *space.shape)
    laplacian : torch.Tensor, shape=(n,)
    """
    if not hasattr(potential, "gradient_and_trace") or _is_more_than_an_array(space, points):
        return _divergence_of_gradient(space, potential, points, "exact", 1, None)
    if geometry.is_euclidean(space):
        value, trace = potential.gradient_and_trace(points)
        scale = geometry.metric_scale(space)
        return value / scale, trace / scale
    weight = geometry.frobenius_weight(space, points)
    if weight is None:
        return _divergence_of_gradient(space, potential, points, "exact", 1, None)
    basis = geometry.tangent_basis(space, points).movedim(1, 0) / weight**0.5
    value, trace = potential.gradient_and_trace(points, basis)
    value = value / weight
    bend = geometry.mean_curvature(space, points)
    return geometry.to_tangent(space, value, points), trace + _row_products(bend, value)


def _is_more_than_an_array(space, points):
    """Whether functions of the array need help to be functions on the space."""
    embedded = geometry.embed(space, points) is not points
    return embedded or geometry.interpolation(space) is not None


def _row_products(a, b):
    return (a * b).flatten(1).sum(-1)


def _check_callable(**functions):
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name}: expected a function of points, got {function!r}.")


def _vectors(field, x):
    vector = field(x)
    if getattr(vector, "shape", None) != x.shape:
        got = tuple(vector.shape) if isinstance(vector, torch.Tensor) else repr(vector)
        raise ValueError(f"field: expected vectors of shape {tuple(x.shape)}, got {got}.")
    return vector


class _Array:
    """A field of points as they are: its vectors are projected on tangent spaces."""

    @staticmethod
    def image(space, x):
        return x

    @staticmethod
    def tangent(space, vector, x):
        return geometry.to_tangent(space, vector, x)

    @staticmethod
    def closed_form(space, field, x, basis):
        vector, trace = field.value_and_trace(x, basis)
        bend = geometry.mean_curvature(space, x)
        return geometry.to_tangent(space, vector, x), trace + _row_products(bend, vector)


class _Seen:
    """A field of images under ``geometry.embed``: projected there, and pulled back."""

    @staticmethod
    def image(space, x):
        return geometry.embed(space, x)

    @staticmethod
    def tangent(space, vector, x):
        return geometry.pull_back(space, vector, x)

    @staticmethod
    def closed_form(space, field, x, basis):
        if geometry.pull_back.find(space) is not geometry.pull_back.__wrapped__:
            return None  # what is not a projection there has no trace in closed form
        image, pushed = geometry.push_embedding(space, basis, x)
        root = torch.linalg.cholesky(pushed @ pushed.mT)
        frame = torch.linalg.solve_triangular(root, pushed, upper=False)
        frame = frame.movedim(1, 0).reshape(len(basis), *image.shape)
        vector, trace = field.value_and_trace(image, frame)
        # what the projection of a constant vector adds
        products, tangent_vec = _products(
            lambda y: geometry.pull_back(space, vector, y), x, basis, len(space.shape)
        )
        return tangent_vec, trace + products.sum(0)


def _directions(space, points, method, n_probes, generator):
    """Probes as (k, n, *shape): the basis itself, or random signs times it."""
    if method not in ("exact", "hutchinson"):
        raise ValueError(f"method: expected 'exact' or 'hutchinson', got {method!r}.")
    basis = geometry.tangent_basis(space, points)
    if method == "exact":
        return basis.movedim(1, 0).contiguous()  # torch.compile needs one layout
    check_counts(n_probes=n_probes)
    shape = (n_probes, points.shape[0], 1, geometry.dim(space))
    bits = torch.randint(0, 2, shape, generator=generator, device=points.device)
    signs = (2 * bits - 1).to(points.dtype)
    return (signs @ basis.flatten(2)).reshape(n_probes, *points.shape)


def _volume_term(space, points, tangent_vec):
    """Derivative of the log volume element along the field; zero where constant."""
    return jvp(lambda x: geometry.log_volume_element(space, x), (points,), (tangent_vec,))[1]


def _gradient(space, potential, points):
    def scalar(x):
        value = potential(geometry.embed(space, x))
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"potential: expected a tensor of scalars, got {value!r}.")
        if value.shape == (x.shape[0], 1):
            value = value.squeeze(-1)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"potential: expected scalars of shape ({x.shape[0]},), got "
                f"{tuple(value.shape)}."
            )
        return value

    value, pullback = vjp(scalar, points)  # type: ignore[misc]
    (flat,) = pullback(torch.ones_like(value))
    tangent = geometry.to_tangent(space, flat, points)
    return geometry.sharp(space, tangent, points)
