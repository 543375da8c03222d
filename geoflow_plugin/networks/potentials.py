"""Potentials of any space: scalars whose gradients move points."""

import math

import torch
from torch import nn
from torch.nn.functional import softplus

__all__ = ["OneHiddenLayerPotential"]

# s and s' of h, and s'' of s'. Softplus turns into a line where it equals one in float64.
ACTIVATIONS = {
    "softplus": (
        lambda h: softplus(h, threshold=40.0),
        torch.sigmoid,
        lambda slope: slope * (1 - slope),
    ),
    "log_cosh": (
        lambda h: h + softplus(-2 * h, threshold=40.0) - math.log(2),
        torch.tanh,
        lambda slope: 1 - slope.square(),
    ),
}


class OneHiddenLayerPotential(nn.Module):
    r"""The potential of the Monge-Ampere flow (Zhang, E and Wang 2018), one hidden layer.

    .. math::
        \phi(x) = \sum_k a_k s(w_k \cdot x + b_k)

    Its gradient and Laplacian are closed forms. Without biases, ``"log_cosh"`` makes it even.

    Parameters
    ----------
    dim : int
        Number of entries of a point, the product of ``space.shape``.
    width : int
        Number of hidden units.
    activation : {"softplus", "log_cosh"}
        s; its derivative is the logistic function, or tanh.
    generator : torch.Generator, optional
    dtype : torch.dtype, optional
        Default: torch's default dtype, as for any module.

    Attributes
    ----------
    weight : torch.nn.Parameter, shape=(width, dim)
        Rows of about unit length at first.
    bias : torch.nn.Parameter, shape=(width,)
        Zero at first.
    amplitude : torch.nn.Parameter, shape=(width,)
        Small at first, so that a flow starts near the identity.

    Raises
    ------
    ValueError
        For an unknown activation, or sizes that are no positive integers.
    """

    def __init__(self, dim, width=512, activation="softplus", generator=None, dtype=None):
        super().__init__()
        for name, size in {"dim": dim, "width": width}.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {size!r}.")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {sorted(ACTIVATIONS)}, got {activation!r}."
            )
        dtype = dtype or torch.get_default_dtype()
        self.activation = activation
        weight = torch.randn(width, dim, generator=generator, dtype=dtype)
        amplitude = torch.randn(width, generator=generator, dtype=dtype)
        self.weight = nn.Parameter(weight / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.amplitude = nn.Parameter(0.1 / math.sqrt(width) * amplitude)

    def extra_repr(self):
        """Sizes and activation, for the module's repr."""
        width, dim = self.weight.shape
        return f"dim={dim}, width={width}, activation={self.activation!r}"

    def forward(self, x):
        """Values (n,) at points (n, *shape)."""
        value, _, _ = ACTIVATIONS[self.activation]
        return value(self._hidden(x)) @ self.amplitude

    def gradient(self, x):
        """Gradient in the array, (n, *shape), at points (n, *shape)."""
        _, slope, _ = ACTIVATIONS[self.activation]
        return self._combined(slope(self._hidden(x)), x)

    def gradient_and_trace(self, x, basis=None):
        r"""Gradient, and the trace of the Hessian over a tangent basis, in one pass.

        Parameters
        ----------
        x : torch.Tensor, shape=(n, *shape)
        basis : torch.Tensor, shape=(d, n, *shape), optional
            Default: all directions, which gives the Laplacian.

        Returns
        -------
        gradient : torch.Tensor, shape=(n, *shape)
        trace : torch.Tensor, shape=(n,)
            :math:`\sum_i \langle e_i, \nabla^2 \phi \, e_i \rangle =
            \sum_k a_k s''(h_k) \sum_i (w_k \cdot e_i)^2`.
        """
        _, slope, curvature = ACTIVATIONS[self.activation]
        slopes = slope(self._hidden(x))
        bends = curvature(slopes)
        if basis is None:
            trace = bends @ (self.amplitude * self.weight.square().sum(-1))
        else:
            along = (basis.flatten(2) @ self.weight.mT).square().sum(0)  # (n, width)
            trace = (bends * along) @ self.amplitude
        return self._combined(slopes, x), trace

    def as_hidden_layer(self):
        """Weight, bias, amplitude and activation, as ``hidden_layer_flow`` takes them."""
        return self.weight, self.bias, self.amplitude, self.activation

    def _hidden(self, x):
        point = x.flatten(1)
        if point.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"x: expected points of {self.weight.shape[1]} entries, got shape "
                f"{tuple(x.shape)}."
            )
        return torch.addmm(self.bias, point, self.weight.mT)

    def _combined(self, slopes, x):
        return ((slopes * self.amplitude) @ self.weight).reshape(x.shape)
