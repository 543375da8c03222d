"""Laws on a space: the uniform measure, normal laws, smoothing kernels, and charts."""

import math

import torch

from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.geometry.dispatch import open_function, unsupported
from geoflow_plugin.geometry.tangent import (
    constant_scale,
    dim,
    exp,
    gram,
    is_compact,
    isometric_model,
    log_volume_element,
    metric_scale,
    model,
    outer_scale,
    push_basis,
    tangent_basis,
)

# The uniform measure ------------------------------------------------------------------


@open_function
def log_volume(space):
    """Log of the total Riemannian volume of a compact space, a float."""
    found = _required_model(space, "log_volume", isometric=True)
    return log_volume(found.space) + 0.5 * dim(space) * math.log(outer_scale(space))


@open_function
def unit_cube_dim(space):
    """Number of uniform variates in [0, 1) that ``uniform_from_cube`` consumes."""
    return unit_cube_dim(_required_model(space, "unit_cube_dim", isometric=True).space)


@open_function
def uniform_from_cube(space, cube):
    """Map of the unit cube (n, k) onto the space that takes Lebesgue to uniform."""
    found = _required_model(space, "uniform_from_cube", isometric=True)
    return found.from_model(uniform_from_cube(found.space, cube))


def _required_model(space, what, isometric=False):
    found = isometric_model(space) if isometric else model(space)
    if found is None:
        raise unsupported(space, what)
    return found


def model_log_volume(space, point):
    """Log of the volume of a space's ``model`` over its own at points, shape (...,)."""
    found = _required_model(space, "model_log_volume")
    if found.isometric:
        value = -0.5 * dim(space) * math.log(outer_scale(space))
        batch = point.shape[: point.ndim - len(space.shape)]
        return torch.full(batch, value, dtype=point.dtype, device=point.device)
    basis = tangent_basis(space, point)
    image, pushed = push_basis(found, basis, point, len(space.shape))
    axis = point.ndim - len(space.shape)
    target = tangent_basis(found.space, image).flatten(axis + 1)
    jacobian = pushed.flatten(axis + 1) @ target.mT
    # by QR: torch differentiates forward derivatives of slogdet wrongly
    triangle = torch.linalg.qr(jacobian)[1].diagonal(dim1=-2, dim2=-1)
    change = triangle.abs().log().sum(-1) + log_volume_element(found.space, image)
    return change - log_volume_element(space, point)


@open_function
def uniform_quadrature(space, like):
    """Points and weights that sum to one, if they integrate flows exactly, or None.

    For spaces on which densities are made of finitely many values; ``like`` is a tensor
    of the dtype and device to return.
    """
    return None


def random_uniform(space, n, generator=None, device=None, dtype=None):
    """Draw from the uniform (Haar) measure of a compact space.

    Parameters
    ----------
    space : geomstats Manifold
        A compact space.
    n : int
        Number of points.
    generator : torch.Generator, optional
        Source of randomness; torch's global one by default.
    device, dtype : optional
        Of the result; defaults are the generator's device and torch's default dtype.

    Returns
    -------
    point : torch.Tensor, shape=(n, *space.shape)

    Raises
    ------
    ValueError
        If the space is not compact or n is negative.
    TypeError
        If the space is not supported.
    """
    check_counts(0, n=n)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {generator!r}.")
    if not is_compact(space):
        raise ValueError(
            f"space: {type(space).__qualname__} is not compact, so it has no uniform "
            "measure; use WrappedNormal."
        )
    if device is None:
        device = generator.device if generator is not None else None
    source = generator.device if generator is not None else device
    cube = torch.rand(n, unit_cube_dim(space), generator=generator, device=source, dtype=dtype)
    return uniform_from_cube(space, cube.to(device))


def quasi_uniform(space, n, seed=0, device=None, dtype=torch.float64):
    """Scrambled Sobol points carried to the space: uniform, with less variance.

    Each point is exactly uniform; different seeds are independent replicates, so the
    scatter of replicate means is an honest standard error.
    """
    check_counts(0, n=n)
    engine = torch.quasirandom.SobolEngine(unit_cube_dim(space), scramble=True, seed=int(seed))
    # Sobol points live on a grid that contains 0; half a cell keeps them inside.
    cube = engine.draw(n, dtype=torch.float64) + 2.0**-31
    return uniform_from_cube(space, cube.clamp(max=1 - 2.0**-32)).to(device, dtype)


# Normal laws ---------------------------------------------------------------------------


def random_normal(shape, like, generator=None):
    """Standard normal numbers of a shape, of the dtype and device of a tensor."""
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


@open_function
def random_tangent_normal(space, base_point, generator=None):
    """Standard normal tangent vectors in the units of the metric."""
    basis = tangent_basis(space, base_point)
    axis = base_point.ndim - len(space.shape)
    shape = (*base_point.shape[:axis], dim(space))
    weight = random_normal(shape, base_point, generator)
    scale = constant_scale(space)
    if scale is None:
        # coefficients L^-T z have covariance G^-1, G = L L^T the Gram matrix
        root = torch.linalg.cholesky(gram(space, base_point))
        weight = torch.linalg.solve_triangular(root.mT, weight.unsqueeze(-1), upper=True)
        weight, scale = weight.squeeze(-1), 1.0
    flat = (weight.unsqueeze(-2) @ basis.flatten(axis + 1)).squeeze(-2)
    return flat.reshape(base_point.shape) / math.sqrt(scale)


@open_function
def random_wrapped_normal(space, mean, scale, generator=None):
    """One draw of the wrapped normal at each mean: (n, *shape) -> (n, *shape)."""
    found = model(space)
    if found is None:
        return exp(space, scale * random_tangent_normal(space, mean, generator), mean)
    scale = scale / math.sqrt(outer_scale(space))
    drawn = random_wrapped_normal(found.space, found.to_model(mean), scale, generator)
    return found.from_model(drawn)


@open_function
def wrapped_normal_log_prob(space, point, mean, scale):
    """Log density of exp_mean(scale * normal), summed over every preimage, (n,).

    With a ``model`` that is not isometric, the exponential is the model's: the law is a
    normal law carried by a diffeomorphism, and the density is for the space's volume.
    """
    found = _required_model(space, "wrapped_normal_log_prob")
    images = found.to_model(point), found.to_model(mean)
    scale = scale / math.sqrt(outer_scale(space))
    value = wrapped_normal_log_prob(found.space, *images, scale)
    return value + model_log_volume(space, point)


# Smoothing kernels -------------------------------------------------------------------


@open_function
def squared_chord(space, point, centers):
    """Squared distance in the array, in metric units: (n, *), (m, *) -> (n, m).

    Differences are formed before squaring, so that nearby points keep their digits.
    """
    x = point.flatten(1).unsqueeze(1)
    c = centers.flatten(1)
    total = sum((x[..., k] - c[:, k]).square() for k in range(c.shape[1]))
    return metric_scale(space) * total


@open_function
def kernel_separation(space, point, centers):
    """How far points are from kernels: (n, *shape), (m, *shape) -> two of (n, m).

    The kernel of bandwidth h at a centre is exp(-squared / (2 h^2) - log_volume) over
    ``log_kernel_normalizer``. On compact spaces, by default, ``squared`` is the chord's
    and ``log_volume`` None (zero); where kernels are normal laws carried by a map of the
    tangent space, it is the tangent vector's squared length, and the log volume change
    of that map.

    Returns
    -------
    squared : torch.Tensor, shape=(n, m)
        Exactly zero for equal points.
    log_volume : torch.Tensor, shape=(n, m), or None
    """
    found = model(space)
    if found is None:
        return squared_chord(space, point, centers), None
    images = found.to_model(point), found.to_model(centers)
    squared, log_change = kernel_separation(found.space, *images)
    if not found.isometric or outer_scale(space) != 1:
        change = -model_log_volume(space, point).unsqueeze(-1)
        log_change = change if log_change is None else log_change + change
        log_change = log_change.expand_as(squared)
    return outer_scale(space) * squared, log_change


@open_function
def log_kernel_normalizer(space, bandwidth):
    """Log integral of the kernel of ``kernel_separation``, of the shape of bandwidth.

    Defined where it does not depend on the centre; ``bandwidth`` is a tensor.
    """
    found = _required_model(space, "log_kernel_normalizer")
    return log_kernel_normalizer(found.space, bandwidth / math.sqrt(outer_scale(space)))


@open_function
def log_kernel_integral(space, bandwidth, centers):
    """Log integrals of the kernels at m centres, (..., m) or (..., 1) if they are equal.

    By default ``log_kernel_normalizer``; a space whose kernels' integrals depend on the
    centre registers this instead. ``bandwidth`` is a tensor of shape (..., m) or (..., 1).
    """
    return log_kernel_normalizer(space, bandwidth)


@open_function
def kernel_radius(space):
    """Length from a centre at which every kernel ends, or infinity.

    Where it is finite, ``squared`` of ``kernel_separation`` is infinite beyond it.
    """
    found = model(space)
    if found is None:
        return math.inf
    return math.sqrt(outer_scale(space)) * kernel_radius(found.space)


@open_function
def random_kernel(space, center, bandwidth, generator=None):
    """One draw from the kernel at each centre: (n, *shape), (n,) -> (n, *shape)."""
    found = _required_model(space, "random_kernel")
    bandwidth = bandwidth / math.sqrt(outer_scale(space))
    return found.from_model(
        random_kernel(found.space, found.to_model(center), bandwidth, generator)
    )


# Charts -------------------------------------------------------------------------------


@open_function
def chart(space, point):
    """Coordinates (n, dim) of points and log |d coordinates / d volume|, (n,)."""
    found = _required_model(space, "chart")
    coordinates, log_det = chart(found.space, found.to_model(point))
    return coordinates, log_det + model_log_volume(space, point)


@open_function
def chart_inverse(space, coordinates):
    """Points of coordinates (n, dim) and log |d volume / d coordinates|, (n,)."""
    found = _required_model(space, "chart_inverse")
    image, log_det = chart_inverse(found.space, coordinates)
    point = found.from_model(image)
    return point, log_det - model_log_volume(space, point)
