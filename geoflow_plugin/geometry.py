"""What the plugin asks of a geomstats space, as open functions of that space.

Every function takes the user's ``space`` first, works on torch tensors, keeps their
device and dtype, and never calls geomstats' backend. Functions are dispatched on the
nearest class in the space's MRO; another package adds a space by registering on them::

    @geometry.to_tangent.register(MySpace)
    def _(space, vector, base_point): ...

One idea carries all of it. A point's array has an ordinary flat (Frobenius) geometry;
``tangent_basis`` is orthonormal there. The metric enters only through
``log_volume_element`` (log of Riemannian over flat volume) and ``sharp`` (flat gradient
to Riemannian gradient). Where a metric is a constant multiple of the flat one, it is
enough to register that multiple on ``frobenius_scale``.
"""

import functools
import math
from collections.abc import Callable

import torch

__all__ = [
    "belongs",
    "chart",
    "chart_inverse",
    "check_points",
    "constraint_residual",
    "dist",
    "exp",
    "frobenius_scale",
    "inner_product",
    "is_compact",
    "log",
    "log_kernel_normalizer",
    "log_volume",
    "log_volume_element",
    "metric_scale",
    "origin",
    "projection",
    "quasi_uniform",
    "random_kernel",
    "random_tangent_normal",
    "random_uniform",
    "retraction",
    "sharp",
    "squared_chord",
    "tangent_basis",
    "to_tangent",
    "uniform_from_cube",
    "unit_cube_dim",
    "wrapped_normal_log_prob",
]


def _unsupported(space, what):
    return TypeError(
        f"space: geoflow_plugin has no torch-native {what} for "
        f"{type(space).__module__}.{type(space).__qualname__}; supported are extrinsic "
        "Hypersphere, SpecialOrthogonal matrices, Euclidean and products of these "
        f"(register your own on geoflow_plugin.geometry.{what})."
    )


def _open(function):
    """Make a function open: dispatched on the class of its first argument.

    The body serves every class without an implementation of its own. A dictionary and
    a walk along the MRO instead of ``functools.singledispatch``, whose cache
    ``torch.compile`` cannot trace.
    """
    implementations: dict[type, Callable] = {}

    @functools.wraps(function)
    def dispatch(space, *args, **kwargs):
        for cls in type(space).__mro__:
            if cls in implementations:
                return implementations[cls](space, *args, **kwargs)
        return function(space, *args, **kwargs)

    def register(cls):
        def decorator(implementation):
            implementations[cls] = implementation
            return implementation

        return decorator

    dispatch.register = register  # type: ignore[attr-defined]
    return dispatch


def _required(function):
    """An open function without a default: other spaces are refused by name."""

    @functools.wraps(function)
    def refuse(space, *args, **kwargs):
        raise _unsupported(space, function.__name__)

    return _open(refuse)


# The flat tangent geometry of a point's array ---------------------------------------


@_required
def projection(space, point):
    """Nearest point of the space, shape (..., *space.shape)."""


@_required
def to_tangent(space, vector, base_point):
    """Orthogonal (Frobenius) projection of ``vector`` on the tangent space."""


@_required
def tangent_basis(space, base_point):
    """Frobenius-orthonormal tangent basis, shape (..., dim, *space.shape)."""


@_required
def origin(space):
    """A fixed point of the space, shape=space.shape: a pole, the identity, zero."""


@_required
def constraint_residual(space, point):
    """By how much each point misses the space's defining equations, shape (...,)."""


def belongs(space, point, atol=None):
    """Whether each point lies on the space.

    Parameters
    ----------
    space : geomstats Manifold
    point : torch.Tensor, shape=(..., *space.shape)
    atol : float, optional
        Largest constraint residual; default: 1e-4 in float32, 1e-6 in float64.

    Returns
    -------
    torch.Tensor of bool, shape=(...,)
    """
    if atol is None:
        atol = 1e-6 if point.dtype == torch.float64 else 1e-4
    return constraint_residual(space, point) <= atol


# The metric --------------------------------------------------------------------------


@_open
def frobenius_scale(metric):
    """Constant c of a metric that is c times the Frobenius product on tangent vectors.

    Dispatched on the class of the *metric*.
    """
    raise TypeError(
        f"space.metric: {type(metric).__qualname__} is not supported on this space "
        "(register its constant on geoflow_plugin.geometry.frobenius_scale, or equip "
        "the space with its default metric)."
    )


def metric_scale(space):
    """Constant c with ``space.metric`` = c times Frobenius; 1 if there is no metric."""
    is_compact(space)  # refuses unknown spaces by name
    metric = getattr(space, "metric", None)
    return 1.0 if metric is None else frobenius_scale(metric)


@_open
def log_volume_element(space, point):
    """Log of Riemannian over flat (Hausdorff) volume at each point, shape (...,)."""
    value = 0.5 * math.log(metric_scale(space)) * space.dim
    batch = point.shape[: point.ndim - len(space.shape)]
    return torch.full(batch, value, dtype=point.dtype, device=point.device)


@_open
def inner_product(space, tangent_vec_a, tangent_vec_b, base_point):
    """Riemannian inner product of tangent vectors, shape (...,)."""
    product = tangent_vec_a * tangent_vec_b
    return metric_scale(space) * product.flatten(-len(space.shape)).sum(-1)


@_open
def sharp(space, covector, base_point):
    """Riemannian gradient from the flat tangential gradient."""
    return covector / metric_scale(space)


# Moving on the space ------------------------------------------------------------------


@_required
def exp(space, tangent_vec, base_point):
    """Riemannian exponential."""


@_required
def log(space, point, base_point):
    """Riemannian logarithm; ``exp(space, log(space, y, x), x) == y``."""


@_open
def dist(space, point_a, point_b):
    """Geodesic distance, shape (...,); its gradient at coincident points is zero."""
    tangent_vec = log(space, point_b, point_a)
    squared = inner_product(space, tangent_vec, tangent_vec, point_a)
    return safe_sqrt(squared)


@_open
def retraction(space, tangent_vec, base_point):
    """First-order retraction: step in the array, then project; cheaper than ``exp``."""
    return projection(space, base_point + tangent_vec)


# The uniform measure ------------------------------------------------------------------


@_required
def is_compact(space):
    """Whether the space has a finite volume and so a uniform probability."""


@_required
def log_volume(space):
    """Log of the total Riemannian volume of a compact space, a float."""


@_required
def unit_cube_dim(space):
    """Number of uniform variates in [0, 1) that ``uniform_from_cube`` consumes."""


@_required
def uniform_from_cube(space, cube):
    """Map of the unit cube (n, k) onto the space that takes Lebesgue to uniform."""


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
    _check_count(n)
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


def _check_count(n):
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"n: expected an integer >= 0, got {n!r}.")


def quasi_uniform(space, n, seed=0, device=None, dtype=torch.float64):
    """Scrambled Sobol points carried to the space: uniform, with less variance.

    Each point is exactly uniform; different seeds are independent replicates, so the
    scatter of replicate means is an honest standard error.
    """
    _check_count(n)
    engine = torch.quasirandom.SobolEngine(unit_cube_dim(space), scramble=True, seed=int(seed))
    # Sobol points live on a grid that contains 0; half a cell keeps them inside.
    cube = engine.draw(n, dtype=torch.float64) + 2.0**-31
    return uniform_from_cube(space, cube.clamp(max=1 - 2.0**-32)).to(device, dtype)


# Normal laws and smoothing kernels ----------------------------------------------------


@_open
def random_tangent_normal(space, base_point, generator=None):
    """Standard normal tangent vectors in the units of the metric."""
    basis = tangent_basis(space, base_point)
    batch = base_point.shape[: base_point.ndim - len(space.shape)]
    weight = torch.randn(
        *batch,
        space.dim,
        generator=generator,
        device=base_point.device,
        dtype=base_point.dtype,
    )
    flat = (weight.unsqueeze(-2) @ basis.flatten(len(batch) + 1)).squeeze(-2)
    return flat.reshape(base_point.shape) / math.sqrt(metric_scale(space))


@_required
def wrapped_normal_log_prob(space, point, mean, scale):
    """Log density of exp_mean(scale * normal), summed over every preimage, (n,)."""


@_open
def squared_chord(space, point, centers):
    """Squared distance in the array, in metric units: (n, *), (m, *) -> (n, m).

    Differences are formed before squaring, so that nearby points keep their digits.
    """
    x = point.flatten(1).unsqueeze(1)
    c = centers.flatten(1)
    total = sum((x[..., k] - c[:, k]).square() for k in range(c.shape[1]))
    return metric_scale(space) * total


@_required
def log_kernel_normalizer(space, bandwidth):
    """Log integral over the space of exp(-squared_chord / (2 bandwidth^2)).

    Defined where it does not depend on the centre; ``bandwidth`` is a tensor.
    """


@_required
def random_kernel(space, center, bandwidth, generator=None):
    """One draw from the kernel at each centre: (n, *shape), (n,) -> (n, *shape)."""


# Charts -------------------------------------------------------------------------------


@_required
def chart(space, point):
    """Coordinates (n, dim) of points and log |d coordinates / d volume|, (n,)."""


@_required
def chart_inverse(space, coordinates):
    """Points of coordinates (n, dim) and log |d volume / d coordinates|, (n,)."""


# Checks -------------------------------------------------------------------------------


def check_points(space, point, name="x", dtype=None, device=None, allow_empty=False):
    """Refuse anything but a batch of finite points on the space.

    Parameters
    ----------
    space : geomstats Manifold
    point : torch.Tensor, shape=(n, *space.shape)
    name : str
        What the caller calls this argument; it opens every message.
    dtype, device : optional
        What the points have to match.
    allow_empty : bool
        Whether n = 0 is fine.

    Raises
    ------
    TypeError
        Not a floating-point tensor, or of another dtype or device than asked for.
    ValueError
        Wrong shape, empty, NaN or infinite, or off the manifold.
    """
    if not isinstance(point, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(point).__name__}.")
    if not point.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {point.dtype}.")
    is_compact(space)  # refuses unknown spaces by name
    shape = tuple(space.shape)
    if point.ndim != len(shape) + 1 or tuple(point.shape[1:]) != shape:
        raise ValueError(
            f"{name}: expected shape (n, {', '.join(map(str, shape))}) for points of "
            f"{type(space).__qualname__}, got {tuple(point.shape)}."
        )
    if point.shape[0] == 0 and not allow_empty:
        raise ValueError(f"{name}: expected at least one point, got an empty batch.")
    if dtype is not None and point.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype}, got {point.dtype}; convert the points or move "
            "the distribution with .to(dtype)."
        )
    if device is not None and point.device != torch.device(device):
        raise TypeError(
            f"{name}: expected device {device}, got {point.device}; move the points or "
            "the distribution with .to(device)."
        )
    if torch.compiler.is_compiling():
        return
    try:
        finite = bool(point.detach().isfinite().all())
        residual = constraint_residual(space, point.detach())
        far = float(residual.max()) if residual.numel() else 0.0
    except RuntimeError:
        # Under torch.func.vmap values cannot be looked at; shapes were.
        return
    if not finite:
        raise ValueError(f"{name}: expected finite points, got NaN or infinity.")
    if residual.numel() and not bool(belongs(space, point.detach()).all()):
        raise ValueError(
            f"{name}: expected points on {type(space).__qualname__}, got a constraint "
            f"residual of {far:.3g}; project them first "
            "(geoflow_plugin.geometry.projection)."
        )


def safe_sqrt(squared):
    """Square root whose derivative at zero is zero instead of NaN."""
    positive = squared > 0
    root = torch.where(positive, squared, torch.ones_like(squared)).sqrt()
    return torch.where(positive, root, torch.zeros_like(root))
