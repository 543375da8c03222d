r"""Explicit steps that can be undone to rounding, in memory that does not grow.

Forward in time these are the steps of ``runge_kutta``. Backward, each is inverted: with
S_h the step and S_{-h} the step back, which undoes it up to O(h^5),

.. math::
    x \leftarrow x + S_{-h}(y) - S_{-h}(S_h(x))

has the fixed point S_h(x) = y and gains five orders of h an iteration: two or three
reach rounding. (Schemes that are reversible by algebra carry a second state, and are
one-to-one on pairs only; a layer has one.) Derivatives go back along the path, which is
found again step by step: nothing on the way is kept.
"""

import torch

from geoflow_plugin import geometry
from geoflow_plugin.integrators.runge_kutta import onto, step

__all__ = ["reversible"]

_ITERATIONS = 20  # two or three serve; more mean that the step is too long


def reversible(space, velocity, point, start, end, n_steps):
    """Move points along a tangent field so that going back is exact.

    Parameters are those of ``runge_kutta``; the field is an ``nn.Module`` whose
    ``tensors()`` are what derivatives are wanted for, besides the points. With start >
    end this is the inverse of the steps from end to start, to rounding.

    Returns
    -------
    point : torch.Tensor, shape=(n, *space.shape)
    growth : torch.Tensor, shape=(n,)

    Raises
    ------
    RuntimeError
        If a step is too long to be undone.
    """
    path = _Path(space, velocity, min(start, end), abs(end - start) / n_steps, n_steps)
    tensors = velocity.tensors()
    solve = _Along if end > start else _Back
    point, growth = solve.apply(path, point.contiguous(), *tensors)
    return geometry.projection(space, point), growth


class _Path:
    """Steps of equal size, forward in time, and their inverses."""

    def __init__(self, space, velocity, start, size, n_steps):
        self.space, self.velocity, self.size = space, velocity, size
        self.times = [start + k * size for k in range(n_steps)]

    def step(self, point, time):
        return step(self.space, self.velocity, point, time, self.size)[:2]

    def back(self, point, time):
        """The step back to ``time``, which undoes that from it but for O(h^5)."""
        return step(self.space, self.velocity, point, time + self.size, -self.size)[0]

    def undo(self, target, time):
        """Points from which the step leads to the target, and its growth."""
        guess = point = self.back(target, time)
        tolerance = 4 * torch.finfo(point.dtype).eps * (1 + float(target.abs().max()))
        last = float("inf")
        for _ in range(_ITERATIONS):
            reached, growth = self.step(point, time)
            error = float((reached - target).abs().max())
            if error <= tolerance or (error < 1e3 * tolerance and error > 0.5 * last):
                return point, growth
            point = onto(self.space, point + (guess - self.back(reached, time)))
            last = error
        raise RuntimeError(
            f"reversible: a step of size {self.size:.3g} could not be undone (residual "
            f"{error:.3g}); take more and shorter steps, or a smoother potential."
        )

    def tangent(self, vector, point):
        return geometry.to_tangent(self.space, vector, point)


class _Along(torch.autograd.Function):
    """The steps forward in time."""

    @staticmethod
    def forward(ctx, path, point, *tensors):
        total = point.new_zeros(len(point))
        for time in path.times:
            point, growth = path.step(point, time)
            total = total + growth
        ctx.path, ctx.tensors = path, tensors
        ctx.save_for_backward(point)
        return point, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, to_point, to_growth):
        path, (point,) = ctx.path, ctx.saved_tensors
        gradients = [None] * len(ctx.tensors)
        for time in reversed(path.times):
            point, _ = path.undo(point, time)
            with torch.enable_grad():
                start = point.detach().requires_grad_()
                outputs = path.step(start, time)
            to_point, *more = torch.autograd.grad(
                outputs, [start, *ctx.tensors], [to_point, to_growth], allow_unused=True
            )
            gradients = [_add(g, m) for g, m in zip(gradients, more, strict=True)]
        return None, to_point, *gradients


class _Back(torch.autograd.Function):
    """Their inverse."""

    @staticmethod
    def forward(ctx, path, point, *tensors):
        total = point.new_zeros(len(point))
        for time in reversed(path.times):
            point, growth = path.undo(point, time)
            total = total - growth
        ctx.path, ctx.tensors = path, tensors
        ctx.save_for_backward(point)
        return point, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, to_point, to_growth):
        # x = S^{-1}(y), growth -g(x): with (dS/dx)^T v = to_point - to_growth dg/dx,
        # v goes to y, and -v^T dS/dw - to_growth dg/dw to the weights w
        path, (point,) = ctx.path, ctx.saved_tensors
        gradients = [None] * len(ctx.tensors)
        for time in path.times:
            with torch.enable_grad():
                start = point.detach().requires_grad_()
                reached, growth = path.step(start, time)
                end = reached.detach().requires_grad_()
                returned = path.back(end, time)
            (slope,) = torch.autograd.grad(growth, start, to_growth, retain_graph=True)
            right = path.tangent(to_point - slope, point)
            to_end = torch.zeros_like(right)
            rest, last = right, float("inf")
            for _ in range(_ITERATIONS):
                size = float(rest.abs().max())
                if size == 0 or size >= 0.5 * last:
                    break
                last = size
                more = torch.autograd.grad(returned, end, rest, retain_graph=True)[0]
                to_end = to_end + path.tangent(more, end.detach())
                image = torch.autograd.grad(reached, start, to_end, retain_graph=True)[0]
                rest = path.tangent(right - image, point)
            more = torch.autograd.grad(
                [reached, growth], ctx.tensors, [-to_end, -to_growth], allow_unused=True
            )
            gradients = [_add(g, m) for g, m in zip(gradients, more, strict=True)]
            point, to_point = end.detach(), to_end
        return None, to_point, *gradients


def _add(total, term):
    if total is None or term is None:
        return term if total is None else total
    return total + term
