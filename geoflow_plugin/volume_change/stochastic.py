"""The stochastic volume change: probes, conjugate gradients, Lanczos quadrature.

The derivative of 1/2 log det J^T J is tr((J^T J)^-1 J^T dJ), the mean of <J w, dJ e> over
random signs e, with J^T J w = e (Hutchinson 1990; Caterini et al., Rectangular Flows, 2021).
J^T J is taken in an orthonormal basis of the domain's tangent spaces and never formed.
"""

import math
import warnings

import torch

from geoflow_plugin.volume_change.block_cg import (
    block_conjugate_gradient,
    correction,
    log_quadrature,
)
from geoflow_plugin.volume_change.exact import VolumeChangeError, linear_pullback, name_samples

__all__ = ["NormalOperator", "estimate", "quadrature", "random_signs", "solve", "surrogate"]


class NormalOperator:
    """J^T J of a mapping at points, as products with columns of coefficients.

    Both factors are derivatives of one graph, that of u -> J^T u at the points: the mapping
    is evaluated once, whatever the number of products, and needs no forward mode.

    Parameters
    ----------
    mapping : callable
        Points (n, *shape) to (n, *out_shape), row by row.
    points : torch.Tensor, shape=(n, *shape)
    basis : torch.Tensor, shape=(n, dim, *shape), optional
        Orthonormal tangent vectors of the domain at the points. Default: those of R^k.

    Attributes
    ----------
    value : torch.Tensor, shape=(n, *out_shape)
    dim : int
    """

    def __init__(self, mapping, points, basis=None):
        if not points.requires_grad:
            points = points.detach().requires_grad_()
        self._points, self._basis = points, None if basis is None else basis.flatten(2)
        self.dim = math.prod(points.shape[1:]) if basis is None else basis.shape[1]
        with torch.enable_grad():
            self.value, self._cotangent, self._pulled = linear_pullback(mapping, points)

    def push(self, columns):
        """J times coefficients (n, dim, k), shape (k, n, *out_shape); without a graph."""
        rows = columns.mT
        if self._basis is not None:
            rows = rows @ self._basis.detach()
        directions = rows.movedim(1, 0).reshape(-1, *self._points.shape)
        return _along(self._pulled, self._cotangent, directions)

    def pull(self, cotangents, create_graph=False):
        """J^T times vectors (k, n, *out_shape) as coefficients, shape (n, dim, k)."""
        pulled = _along(self.value, self._points, cotangents, create_graph)
        rows = pulled.flatten(2).movedim(0, 1)
        if self._basis is not None:
            rows = rows @ (self._basis if create_graph else self._basis.detach()).mT
        return rows.mT

    def __call__(self, columns):
        """J^T J times coefficients (n, dim, k)."""
        return self.pull(self.push(columns))


def _along(outputs, inputs, cotangents, create_graph=False):
    """Vector-Jacobian products with a batch of vectors, from one graph that is kept."""
    (products,) = torch.autograd.grad(
        outputs,
        inputs,
        cotangents,
        retain_graph=True,
        create_graph=create_graph,
        is_grads_batched=True,
    )
    return products


def random_signs(points, dim, n_probes, generator=None):
    """Probes as coefficients, (n, dim, n_probes)."""
    shape = (len(points), dim, n_probes)
    bits = torch.randint(0, 2, shape, generator=generator, device=points.device)
    return (2 * bits - 1).to(points.dtype)


@torch.no_grad()
def solve(operator, signs):
    """Solutions of J^T J w = e, to a relative residual of the root of rounding."""
    _, dim, k = signs.shape
    max_steps = 2 * -(-dim // k) + 10  # twice what exact arithmetic takes
    return block_conjugate_gradient(operator, signs, _tolerance(signs), max_steps)


@torch.enable_grad()
def surrogate(operator, signs, solved):
    """Zero, shape (n,), with the stochastic gradient; differentiable once.

    It is <J^T a, e> with a = J w held fixed, averaged over probes. As J^T a should be e, the
    true residual of the solutions is seen on the way, and mended once if rounding has parted
    it from that of the recurrence.

    Raises
    ------
    VolumeChangeError
        Where J^T J is singular or not finite.
    """
    along = operator.push(solved.solution)
    pulled = operator.pull(along, create_graph=True)
    missed = _true_residual(pulled, signs)
    change = None
    if bool((missed > 2 * _tolerance(signs)).any()):
        change = correction(solved, signs - pulled.detach())
    if change is not None:
        again = operator.pull(along + operator.push(change), create_graph=True)
        better = _true_residual(again, signs) < missed
        pulled = torch.where(better.unsqueeze(-2), again, pulled)
        missed = _true_residual(pulled, signs)
    _report(missed, 10 * _tolerance(signs), solved, "gradient")
    total = (pulled * signs).sum(-2).mean(-1)
    return total - total.detach()


@torch.no_grad()
def quadrature(solved):
    """What each probe says of 1/2 log det J^T J, (n, k), by Lanczos quadrature."""
    return 0.5 * log_quadrature(solved)


@torch.no_grad()
def estimate(operator, signs, solved):
    """Estimate of 1/2 log det J^T J, shape (n,), and its standard error, (n,).

    The mean over probes of 1/2 e^T log(J^T J) e, each by Lanczos quadrature.

    Raises
    ------
    VolumeChangeError
        Where J^T J is singular or not finite.
    """
    missed = _true_residual(operator(solved.solution), signs)
    _report(missed, 2 * _tolerance(signs), solved, "value")
    values = quadrature(solved)
    k = values.shape[1]
    error = values.std(-1) / k**0.5 if k > 1 else torch.full_like(values[:, 0], torch.inf)
    return values.mean(-1), error


def _true_residual(pulled, signs):
    """Norms of J^T a - e over those of e, (n, k)."""
    return torch.linalg.vector_norm(pulled.detach() - signs, dim=-2) / signs.shape[1] ** 0.5


def _tolerance(signs):
    return torch.finfo(signs.dtype).eps ** 0.5


def _report(residual, tolerance, solved, what):
    """Say where conjugate gradients did not arrive; raise where they ended in nothing."""
    residual = residual.amax(-1)
    missed = ~(residual <= tolerance)
    if not bool(missed.any()):
        return
    broken = ~(residual.isfinite() & solved.solution.isfinite().flatten(1).all(-1))
    if bool(broken.any()):
        raise VolumeChangeError(
            "mapping: expected an injective derivative, got J^T J that is singular, or not "
            f"finite, at {name_samples(broken)}."
        )
    warnings.warn(
        f"conjugate gradients: relative residual {float(residual.max()):.2g} after "
        f"{len(solved.diagonal)} steps at {name_samples(missed)}, where {tolerance:.2g} was "
        f"asked for; the {what} of the volume change is biased there",
        stacklevel=3,
    )
