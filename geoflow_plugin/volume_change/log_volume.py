"""1/2 log det J^T J of an injective map of R^k or of a space, relative to its metric.

Directions are a basis of the domain's tangent space that is orthonormal in the array's
flat geometry; the metric enters through ``geometry.log_volume_element``, the log of
Riemannian over flat volume, which is subtracted.
"""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.volume_change import stochastic
from geoflow_plugin.volume_change.exact import half_log_det, pushforward

__all__ = ["log_volume_change", "log_volume_change_and_error", "value_and_log_volume_change"]


def log_volume_change(
    mapping, points, method="exact", space=None, *, n_probes=1, generator=None
):
    """Log of the volume of the image per volume of the domain, 1/2 log det J^T J.

    Where z has density p on the domain, mapping(z) has log density log p(z) minus this, with
    respect to the volume of the image (dim forward-mode products at once, their Gram matrix
    and its Cholesky factor, or QR where that loses digits; or random probes).

    Parameters
    ----------
    mapping : callable
        Injective; points (n, *shape) to points (n, *out_shape) of a Euclidean space, row
        by row. It sees arrays of the space as they are.
    points : torch.Tensor, shape=(n, *shape)
    method : {"exact", "hutchinson"}
        All dim directions of a tangent basis, or random ones: then the value is the estimate
        of ``log_volume_change_and_error``, and the gradient unbiased up to the tolerance of
        the conjugate gradients, a relative residual of the root of rounding.
    space : geomstats Manifold, optional
        The domain; the volume is relative to that of ``space.metric``. Default: R^k.
    n_probes : int
        Number of Hutchinson probes; more probes, less variance.
    generator : torch.Generator, optional
        Source of the probes.

    Returns
    -------
    log_volume : torch.Tensor, shape=(n,)
        Differentiable in the points and in the parameters of the mapping; once, if
        stochastic.

    Raises
    ------
    TypeError, ValueError
        For an unsupported space, points that are no finite points of it, an unknown method,
        or images of fewer numbers than the domain has dimensions.
    VolumeChangeError
        Where J^T J is singular to rounding, or not finite. A little before, a warning names
        the samples where the volume is not good to a tenth of a nat.

    References
    ----------
    .. [C] A. L. Caterini, G. Loaiza-Ganem, G. Pleiss, J. P. Cunningham, "Rectangular flows
       for manifold learning", NeurIPS 2021.
    """
    _check(mapping, points, space, generator)
    check_counts(n_probes=n_probes)
    if method == "exact":
        return value_and_log_volume_change(mapping, points, space)[1]
    _check_method(method, n_probes)
    if torch.is_inference_mode_enabled():  # in which there is no reverse mode
        with torch.inference_mode(False), torch.no_grad():
            return log_volume_change(
                mapping, points.clone(), method, space, n_probes=n_probes, generator=generator
            )
    operator, signs = _operator(mapping, points, space, method, n_probes, generator)
    solved = stochastic.solve(operator, signs)
    estimate, _ = stochastic.estimate(operator, signs, solved)
    if torch.is_grad_enabled():
        estimate = estimate + stochastic.surrogate(operator, signs, solved)
    return estimate - _log_volume_element(points, space)


def log_volume_change_and_error(mapping, points, space=None, *, n_probes=10, generator=None):
    """Estimate of ``log_volume_change`` and its standard error, without a Gram matrix.

    Stochastic Lanczos quadrature: the mean over random signs e of 1/2 e^T log(J^T J) e.

    Parameters
    ----------
    mapping, points, space, generator
        As for ``log_volume_change``.
    n_probes : int
        The error is infinite for a single one.

    Returns
    -------
    log_volume, standard_error : torch.Tensor, shape=(n,)
        Without gradients.

    Raises
    ------
    TypeError, ValueError, VolumeChangeError
        As for ``log_volume_change``.

    References
    ----------
    .. [U] S. Ubaru, J. Chen, Y. Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos
       quadrature", SIAM J. Matrix Anal. Appl. 38 (2017).
    """
    if torch.is_inference_mode_enabled():  # in which there is no reverse mode
        with torch.inference_mode(False), torch.no_grad():
            return log_volume_change_and_error(
                mapping, points.clone(), space, n_probes=n_probes, generator=generator
            )
    _check(mapping, points, space, generator)
    points = points.detach()
    operator, signs = _operator(mapping, points, space, "hutchinson", n_probes, generator)
    estimate, error = stochastic.estimate(operator, signs, stochastic.solve(operator, signs))
    return estimate - _log_volume_element(points, space), error


@torch.compiler.disable  # tracing layers of normflows inside these derivatives fails
def value_and_log_volume_change(
    mapping, points, space=None, method="exact", n_probes=1, generator=None
):
    """Images of points and the log volume change there, in one pass.

    Unlike ``log_volume_change`` this looks at no points, so that it can sit in hot loops.

    Parameters
    ----------
    mapping, points, space, n_probes, generator
        As for ``log_volume_change``.
    method : {"exact", "hutchinson"}
        With ``"hutchinson"``, value and gradient are estimates from the same probes, the
        gradient unbiased (``log_volume_change``); where no gradient is wanted, it is exact.

    Returns
    -------
    value : torch.Tensor, shape=(n, *out_shape)
    log_volume : torch.Tensor, shape=(n,)

    Raises
    ------
    ValueError
        Unknown method, or images of fewer numbers than the domain has dimensions.
    VolumeChangeError
        Where J^T J is singular or not finite.
    """
    points = points.contiguous()  # forward mode cannot take expanded tensors
    if method != "exact":
        _check_method(method, n_probes)
    if method == "exact" or not torch.is_grad_enabled():
        directions = _basis(points, space).movedim(1, 0).contiguous()
        value, derivatives = pushforward(mapping, points, directions)
        _check_size(value, len(directions))
        log_volume = half_log_det(derivatives)
    else:
        operator, signs = _operator(mapping, points, space, method, n_probes, generator)
        solved = stochastic.solve(operator, signs)
        value, log_volume = operator.value, stochastic.surrogate(operator, signs, solved)
        log_volume = log_volume + stochastic.quadrature(solved).mean(-1)
    return value, log_volume - _log_volume_element(points, space)


def _operator(mapping, points, space, method, n_probes, generator):
    """J^T J as products, and probes."""
    _check_method(method, n_probes)
    flat = space is None or geometry.is_euclidean(space)  # whose basis need not be stored
    basis = None if flat else geometry.tangent_basis(space, points)
    operator = stochastic.NormalOperator(mapping, points, basis)
    _check_size(operator.value, operator.dim)
    signs = stochastic.random_signs(points, operator.dim, n_probes, generator)
    return operator, signs


def _basis(points, space):
    """Flat-orthonormal tangent basis of the domain, (n, dim, *shape)."""
    if space is not None:
        return geometry.tangent_basis(space, points)
    size = math.prod(points.shape[1:])
    eye = torch.eye(size, dtype=points.dtype, device=points.device)
    return eye.reshape(1, size, *points.shape[1:]).expand(len(points), *[-1] * points.ndim)


def _log_volume_element(points, space):
    return 0.0 if space is None else geometry.log_volume_element(space, points)


def _check(mapping, points, space, generator):
    """Refuse bad points; let layers that set themselves up by data do so outside autodiff."""
    if generator is not None and not isinstance(generator, torch.Generator):
        kind = type(generator).__name__
        raise TypeError(f"generator: expected a torch.Generator, got {kind}.")
    if not callable(mapping):
        raise TypeError(f"mapping: expected a function of points, got {mapping!r}.")
    if space is not None:
        geometry.check_points(space, points, name="points")
    elif not isinstance(points, torch.Tensor) or not points.is_floating_point():
        raise TypeError(f"points: expected a floating-point tensor, got {points!r}.")
    elif points.ndim < 2 or not points.numel():
        raise ValueError(f"points: expected shape (n, k), got {tuple(points.shape)}.")
    elif not bool(points.detach().isfinite().all()):
        raise ValueError("points: expected finite points, got NaN or infinity.")
    with torch.no_grad():
        value = mapping(points)
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or len(value) != len(points):
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"mapping: expected images of shape ({len(points)}, ...), got {got}.")


def _check_method(method, n_probes):
    if method != "hutchinson":
        raise ValueError(f"method: expected 'exact' or 'hutchinson', got {method!r}.")
    check_counts(n_probes=n_probes)


def _check_size(value, dim):
    if math.prod(value.shape[1:]) < dim:
        raise ValueError(
            f"mapping: expected images of {dim} or more numbers, as many as the domain has "
            f"dimensions, got shape {tuple(value.shape)}."
        )
