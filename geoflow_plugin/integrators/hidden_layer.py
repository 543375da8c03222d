r"""Gradient flow of a one-hidden-layer potential, for little more than its matrix products.

For :math:`\phi(x) = \sum_k a_k s(w_k \cdot x + b_k)` the hidden coordinates h = W x + b obey
an equation of their own, and two integrals along it say everything about the flow:

.. math::
    \dot h = M^T s'(h), \quad M = \mathrm{diag}(a) W W^T, \qquad
    x_T = x_0 + W^T \mathrm{diag}(a) \int s'(h) \, dt, \quad
    \log\det = \sum_k a_k \|w_k\|^2 \int s''(h_k) \, dt.

Runge-Kutta steps commute with the affine map to h: these are the steps in x, to the letter.
Both activations solve a Riccati equation, s'' = s' - s'^2 (softplus) or 1 - s'^2 (log cosh):
one transcendental function a stage, and s' is all that the reverse pass needs to be told.
"""

import math

import torch

from geoflow_plugin.geometry.checks import check_counts

__all__ = ["hidden_layer_flow"]

_SLOPE = {"softplus": torch.sigmoid, "log_cosh": torch.tanh}
# s'' from s', times a cotangent, in one pass
_PULL_BACK = {
    "softplus": torch.ops.aten.sigmoid_backward.grad_input,
    "log_cosh": torch.ops.aten.tanh_backward.grad_input,
}
_STAGES = ((1 / 6, 0.5), (1 / 3, 0.5), (1 / 3, 1.0), (1 / 6, None))  # weight, way to the next
_BACKWARDS = ((3, None), (2, 0.5), (1, 0.5), (0, 1.0))  # stage, c_i of _ReverseSteps
_KEPT = 2**23  # numbers that forward leaves to backward; what is beyond is computed again


def hidden_layer_flow(x, weight, bias, amplitude, activation, step_size, n_steps):
    r"""Move points along the gradient of a one-hidden-layer potential, by classical RK4.

    Solves :math:`\dot x = \nabla\phi(x), \; \dot\ell = \Delta\phi(x)` (Zhang, E and Wang 2018)
    for :math:`\phi(x) = \sum_k a_k s(w_k \cdot x + b_k)`.

    The reverse pass is written by hand: the exact derivative of these steps in all four
    tensors, once. It keeps 2^23 numbers at most, and states in number like the square root
    of ``n_steps``. Transforms of torch.func, and forward mode, take plain operations.

    Parameters
    ----------
    x : torch.Tensor, shape=(n, dim)
    weight : torch.Tensor, shape=(width, dim)
    bias, amplitude : torch.Tensor, shape=(width,)
    activation : {"softplus", "log_cosh"}
    step_size : float
        A negative one goes back in time, which inverts the map up to the error of RK4.
    n_steps : int

    Returns
    -------
    x : torch.Tensor, shape=(n, dim)
    log_det : torch.Tensor, shape=(n,)
        The integral of the Laplacian: the log determinant of the exact flow.

    Raises
    ------
    TypeError, ValueError
        For tensors that do not fit each other, an unknown activation, a step size that is
        not finite, or a number of steps that is no positive integer.
    """
    _check(x, weight, bias, amplitude, activation, step_size, n_steps)
    velocity = amplitude.unsqueeze(-1) * weight
    # M itself takes one product a stage in place of two, once it has been made
    width, dim = weight.shape
    if width <= 2 * dim and width <= 4 * n_steps * len(x):
        factors = [velocity @ weight.mT]
    else:
        factors = [velocity, weight.mT]
    h = torch.addmm(bias, x, weight.mT)
    slope, curvature = _integrals(h, factors, activation, float(step_size), n_steps)
    log_det = curvature @ (amplitude * weight.square().sum(-1))
    return torch.addmm(x, slope, velocity), log_det


def _check(x, weight, bias, amplitude, activation, step_size, n_steps):
    if activation not in _SLOPE:
        raise ValueError(f"activation: expected one of {sorted(_SLOPE)}, got {activation!r}.")
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            "x, weight: expected shapes (n, dim) and (width, dim), got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}."
        )
    for name, tensor in {"bias": bias, "amplitude": amplitude}.items():
        if tensor.shape != weight.shape[:1]:
            raise ValueError(
                f"{name}: expected shape ({len(weight)},), got {tuple(tensor.shape)}."
            )
    for name, tensor in {"weight": weight, "bias": bias, "amplitude": amplitude}.items():
        if (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise TypeError(
                f"{name}: expected {x.dtype} on {x.device} as x, got {tensor.dtype} on "
                f"{tensor.device}."
            )
    if not math.isfinite(step_size):
        raise ValueError(f"step_size: expected a finite number, got {step_size!r}.")
    check_counts(n_steps=n_steps)


def _integrals(h, factors, *options):
    """Integrals of s'(h) and s''(h), both (n, width); M is the product of the factors."""
    try:
        return _Integrals.apply(torch.is_grad_enabled(), *options, h, *factors)
    except RuntimeError as error:
        if "functorch" not in str(error) and "forward mode" not in str(error):
            raise
        return _plain_integrals(h, factors, *options)


def _plain_integrals(h, factors, activation, step_size, n_steps):
    """The same, by operations that every transform knows."""
    slopes, curvatures = torch.zeros_like(h), torch.zeros_like(h)
    for _ in range(n_steps):
        start, mean = h, torch.zeros_like(h)
        for weight, part in _STAGES:
            slope = _SLOPE[activation](h)
            curvature = (slope if activation == "softplus" else 1) - slope.square()
            curvatures = curvatures + weight * step_size * curvature
            mean = mean + weight * slope
            change = mean if part is None else part * slope
            for factor in factors:
                change = change @ factor
            h = start + step_size * change
        slopes = slopes + step_size * mean
    return slopes, curvatures


class _Integrals(torch.autograd.Function):
    """The integrals, with a reverse pass that costs what its matrix products cost.

    The steps are cut into chunks, each with a tape: s' at every stage, and its products
    with the first of two factors. Only the first state of a chunk is kept, and the tapes of
    the last ones; the reverse pass makes the others again.
    """

    @staticmethod
    def forward(ctx, grad_enabled, activation, step_size, n_steps, h, *factors):
        needed = grad_enabled and any(ctx.needs_input_grad)
        # Least memory, when a step of a chunk takes 8 states (tape and cotangents) and a
        # chunk 1 (its first); and enough rows at once for a good matrix product.
        size = max(math.ceil((n_steps / 8) ** 0.5), math.ceil(256 / max(1, len(h))))
        size = min(size, n_steps) if needed else 1
        lengths = [min(size, n_steps - first) for first in range(0, n_steps, size)]
        integrals = torch.zeros_like(h), torch.zeros_like(h)
        steps = _Steps(h, factors, activation, step_size)
        tape = steps.new_tape(size)
        n_kept = _KEPT // max(1, sum(t.numel() for t in tape)) if needed else 0
        h, first_states, tapes = h.clone(), [], {}
        for chunk, length in enumerate(lengths):
            if needed:
                first_states.append(h.clone())
            if chunk >= len(lengths) - n_kept:
                tapes[chunk] = tape = steps.new_tape(length)
            steps.run(h, [t[: 4 * length] for t in tape], integrals)
        ctx.save_for_backward(*first_states, *factors)
        ctx.options, ctx.lengths, ctx.tapes = (activation, step_size), lengths, tapes
        return integrals

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_slopes, grad_curvatures):
        n_chunks = len(ctx.lengths)
        first_states, factors = ctx.saved_tensors[:n_chunks], ctx.saved_tensors[n_chunks:]
        steps = _Steps(grad_slopes, factors, *ctx.options)
        reverse = _ReverseSteps(steps, grad_slopes, grad_curvatures, max(ctx.lengths))
        for chunk in reversed(range(n_chunks)):
            tape = ctx.tapes.pop(chunk, None)  # spoilt by use: a second pass makes it anew
            if tape is None:
                tape = steps.new_tape(ctx.lengths[chunk])
                steps.run(first_states[chunk].clone(), tape)
            reverse.run(tape, ctx.needs_input_grad[5:])
        return None, None, None, None, reverse.cotangents[0].clone(), *reverse.grads


class _Steps:
    """RK4 in place: h <- h + size sum_i w_i s'(h_i) M, with w = (1, 2, 2, 1) / 6."""

    def __init__(self, h, factors, activation, size):
        self.slope, self.pull_back = _SLOPE[activation], _PULL_BACK[activation]
        self.linear, self.size = activation == "softplus", size
        self.factors = [factor.contiguous() for factor in factors]
        self.weights = h.new_tensor([weight for weight, _ in _STAGES])
        self.mean = h.new_empty(h.shape)

    def new_tape(self, n_steps):
        """Slopes (4 n_steps, n, width) and, of two factors, products (4 n_steps, n, dim)."""
        widths = [len(factor) for factor in self.factors]
        return [self.mean.new_empty(4 * n_steps, len(self.mean), width) for width in widths]

    def run(self, h, tape, integrals=None):
        """Advance h along a tape, which is written, and add to the integrals."""
        size, onward = self.size, self.factors[-1]
        slopes, products, columns = tape[0].unbind(), tape[-1].unbind(), _columns(tape[0])
        for j in range(0, len(slopes), 4):
            at = h
            for i, (weight, part) in enumerate(_STAGES, start=j):
                slope = self.slope(at, out=slopes[i])
                if integrals is not None:  # now, while it is in the cache
                    integrals[1].addcmul_(slope, slope, value=-weight * size)
                if part is not None:
                    product, at = self._product(slope, products[i]), slopes[i + 1]
                    torch.addmm(h, product, onward, alpha=part * size, out=at)
            _add_weighted(self.mean, columns[j // 4], self.weights, beta=0)
            h.addmm_(self._product(self.mean, products[j + 3]), onward, alpha=size)
            if integrals is not None:
                integrals[0].add_(self.mean, alpha=size)
                integrals[1].add_(self.mean if self.linear else 1, alpha=size)

    def _product(self, slope, out):
        return slope if len(self.factors) == 1 else torch.mm(slope, self.factors[0], out=out)


class _ReverseSteps:
    """The way back along a tape.

    Let a, b be the cotangents of the two integrals, eta that of h after a step, and
    c = (1, 1/2, 1/2, 1), so that w_i c_i = 1/6. Then g_i = c_i dL/dh_i obeys

        g_i = s''(h_i) [size / 6 (a + b ds''/ds'(h_i) + eta M^T) + size c_i g_{i+1} M^T],

    eta before the step is eta + g_1 + 2 g_2 + 2 g_3 + g_4, and the step adds to dL/dM

        size (s'_1^T g_2 + s'_2^T g_3 + s'_3^T g_4 + (sum_i w_i s'_i)^T eta).

    The new eta overwrites g_1, so that the cotangents of a chunk lie as g_2, g_3, g_4, eta
    of step after step, and that sum over all of them is one matrix product.
    """

    def __init__(self, steps, grad_slopes, grad_curvatures, n_steps):
        self.steps, self.transposes = steps, [f.mT.contiguous() for f in steps.factors]
        self.level = (grad_slopes + steps.linear * grad_curvatures) * (steps.size / 6)
        self.tilt = grad_curvatures * (-steps.size / 3)  # ds''/ds' = linear - 2 s'
        self.weights = self.level.new_tensor([2, 2, 1, 1])
        self.cotangents = self.level.new_zeros(4 * n_steps + 1, *self.level.shape)
        self.pulled = steps.new_tape(n_steps)[1:]  # c_i times the cotangent of a product
        self.drift = torch.empty_like(self.level)
        self.grads = [torch.zeros_like(factor) for factor in steps.factors]

    def run(self, tape, needed):
        """Take the cotangent of h, cotangents[0], back to where a tape begins."""
        n_stages = len(tape[0])
        self.cotangents[n_stages].copy_(self.cotangents[0])
        slopes, cotangents = tape[0].unbind(), self.cotangents.unbind()
        columns, later = _columns(tape[0]), _columns(self.cotangents[1:])
        for j in reversed(range(0, n_stages, 4)):
            stages = slice(j, j + 4)
            if self.pulled:
                pulled = self.pulled[0][stages].unbind()
                self._factored_step(slopes[stages], cotangents[j : j + 5], pulled)
            else:
                self._step(slopes[stages], cotangents[j : j + 5])
                # what multiplies eta takes the place of s'_4
                _add_weighted(
                    slopes[j + 3], columns[j // 4][:, :3], self.steps.weights[:3], beta=1 / 6
                )
            _add_weighted(cotangents[j], later[j // 4], self.weights)
        if needed[-1]:
            stacked = self.cotangents[1 : n_stages + 1].flatten(0, 1)
            self.grads[-1].addmm_(tape[-1].flatten(0, 1).T, stacked, alpha=self.steps.size)
        if self.pulled and needed[0]:
            pulled = self.pulled[0][:n_stages]
            pulled.unflatten(0, (-1, 4))[:, 1:3].mul_(2)
            self.grads[0].addmm_(tape[0].flatten(0, 1).T, pulled.flatten(0, 1))

    def _step(self, slopes, cotangents):
        """g_1 to g_4, before eta, from the slopes of a step."""
        size, (back,) = self.steps.size, self.transposes
        drift = torch.addmm(self.level, cotangents[4], back, alpha=size / 6, out=self.drift)
        for i, part in _BACKWARDS:
            cotangent = torch.addcmul(drift, self.tilt, slopes[i], out=cotangents[i])
            if part is not None:
                cotangent.addmm_(cotangents[i + 1], back, alpha=part * size)
            self.steps.pull_back(cotangent, slopes[i], grad_input=cotangent)

    def _factored_step(self, slopes, cotangents, pulled):
        """The same where the cotangents go back through two factors."""
        size, (to_slope, back) = self.steps.size, self.transposes
        drift = torch.mm(cotangents[4], back, out=pulled[3]).mul_(size / 6)
        for i, part in _BACKWARDS:
            if part is not None:
                torch.addmm(drift, cotangents[i + 1], back, alpha=part * size, out=pulled[i])
            cotangent = torch.addcmul(self.level, self.tilt, slopes[i], out=cotangents[i])
            cotangent.addmm_(pulled[i], to_slope)
            self.steps.pull_back(cotangent, slopes[i], grad_input=cotangent)


def _columns(states):
    """States (4 n_steps, n, width) as matrices (n * width, 4), one a step."""
    return states.view(len(states) // 4, 4, -1).mT.unbind()


def _add_weighted(total, columns, weights, beta=1.0):
    """Beta times the total, plus the weighted sum of columns, in place."""
    total = total.view(-1)
    torch.addmv(total, columns, weights, beta=beta, out=total)
