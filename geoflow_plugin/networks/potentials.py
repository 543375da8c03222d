"""Potentials of any space: scalars whose gradients move points."""

import math

import torch
from torch import nn
from torch.nn.functional import softplus

from geoflow_plugin.geometry.checks import as_dtype, check_counts
from geoflow_plugin.networks.context import Standardize, refuse_context

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


_SMALL = 24  # entries of points whose pairs are multiplied out


class OneHiddenLayerPotential(nn.Module):
    r"""The potential of the Monge-Ampere flow (Zhang, E and Wang 2018), one hidden layer.

    .. math::
        \phi(x) = \sum_k a_k s(w_k \cdot x + b_k)

    Given a context c, what is added in each unit is b_k + v_k . c. Gradient and Laplacian
    are closed forms. Without biases, ``"log_cosh"`` makes it even.

    Parameters
    ----------
    dim : int
        Number of entries of a point, the product of ``space.shape``.
    width : int
        Number of hidden units.
    activation : {"softplus", "log_cosh"}
        s; its derivative is the logistic function, or tanh.
    context_dim : int
        Number of conditioning variables, (n, context_dim); ``fit`` standardizes them.
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

    def __init__(
        self,
        dim,
        width=512,
        activation="softplus",
        generator=None,
        dtype=None,
        *,
        context_dim=0,
    ):
        super().__init__()
        check_counts(dim=dim, width=width)
        check_counts(0, context_dim=context_dim)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {sorted(ACTIVATIONS)}, got {activation!r}."
            )
        dtype = as_dtype(dtype)
        self.activation = activation
        weight = torch.randn(width, dim, generator=generator, dtype=dtype)
        amplitude = torch.randn(width, generator=generator, dtype=dtype)
        self.weight = nn.Parameter(weight / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.amplitude = nn.Parameter(0.1 / math.sqrt(width) * amplitude)
        self.context_dim, self.standardize = context_dim, None
        if context_dim:
            self.standardize = Standardize(context_dim, dtype)
            given = torch.randn(width, context_dim, generator=generator, dtype=dtype)
            self.context_weight = nn.Parameter(given / math.sqrt(context_dim))

    def extra_repr(self):
        """Sizes and activation, for the module's repr."""
        width, dim = self.weight.shape
        return f"dim={dim}, width={width}, activation={self.activation!r}"

    def forward(self, x, context=None):
        """Values (n,) at points (n, *shape), given contexts (n, context_dim)."""
        value, _, _ = ACTIVATIONS[self.activation]
        return value(self._hidden(x, context)) @ self.amplitude

    def gradient(self, x, context=None):
        """Gradient in the array, (n, *shape), at points (n, *shape)."""
        _, slope, _ = ACTIVATIONS[self.activation]
        return self._combined(slope(self._hidden(x, context)), x)

    def gradient_and_trace(self, x, basis=None, context=None):
        r"""Gradient, and the trace of the Hessian over a tangent basis, in one pass.

        Parameters
        ----------
        x : torch.Tensor, shape=(n, *shape)
        basis : torch.Tensor, shape=(d, n, *shape), optional
            Default: all directions, which gives the Laplacian.
        context : torch.Tensor, shape=(n, context_dim), optional

        Returns
        -------
        gradient : torch.Tensor, shape=(n, *shape)
        trace : torch.Tensor, shape=(n,)
            :math:`\sum_i \langle e_i, \nabla^2 \phi \, e_i \rangle =
            \sum_k a_k s''(h_k) \sum_i (w_k \cdot e_i)^2`.
        """
        _, slope, curvature = ACTIVATIONS[self.activation]
        slopes = slope(self._hidden(x, context))
        bends = curvature(slopes)
        if basis is None:
            trace = bends @ (self.amplitude * self.weight.square().sum(-1))
        else:
            trace = self._trace(bends, basis.flatten(2))
        return self._combined(slopes, x), trace

    @torch.no_grad()
    def initialize(self, points, sharpness=6.0, generator=None):
        """Let every unit bend where data are, in a strip through one of the points.

        Rows keep their directions and are given lengths from a quarter of ``sharpness``
        to all of it, spread logarithmically: a unit bends over a width of about one over
        the length of its row. Amplitudes are divided by its square, the size of a
        unit's Laplacian.

        Parameters
        ----------
        points : torch.Tensor, shape=(n, *shape)
        sharpness : float
        generator : torch.Generator, optional
            A CPU generator.

        Raises
        ------
        ValueError
            For a sharpness that is not positive, or points of another size.
        """
        if not 0 < sharpness < math.inf:
            raise ValueError(f"sharpness: expected a positive number, got {sharpness!r}.")
        width, weight = len(self.weight), self.weight
        options = {"generator": generator, "dtype": weight.dtype}
        length = sharpness * 4 ** (torch.rand(width, 1, **options) - 1).to(weight)
        row = torch.randint(len(points), (width,), generator=generator)
        self.bias.zero_()
        weight.mul_(length / weight.norm(dim=1, keepdim=True))
        self.bias.copy_(-self._linear(points[row.to(points.device)].to(weight)).diagonal())
        self.amplitude.div_(length.squeeze(1).square())

    def as_hidden_layer(self):
        """Weight, bias, amplitude and activation, as ``hidden_layer_flow`` takes them."""
        return self.weight, self.bias, self.amplitude, self.activation

    def _hidden(self, x, context=None):
        hidden = self._linear(x)
        if self.standardize is not None:
            return hidden + self.standardize(context) @ self.context_weight.mT
        refuse_context(context)
        return hidden

    def _linear(self, x):
        point = x.flatten(1)
        if point.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"x: expected points of {self.weight.shape[1]} entries, got shape "
                f"{tuple(x.shape)}."
            )
        return torch.addmm(self.bias, point, self.weight.mT)

    def _trace(self, bends, basis):
        """Of the Hessian over a basis (d, n, dim), shape (n,), given s'' (n, width)."""
        weight, dim = self.weight, self.weight.shape[1]
        if dim > _SMALL:
            return (bends * (basis @ weight.mT).square().sum(0)) @ self.amplitude
        # <P, Hess> with P = sum e_i e_i^T, entry by entry: no array over both e_i and w_k
        i, j = torch.triu_indices(dim, dim, device=weight.device)
        share = torch.where(i == j, 1.0, 2.0).to(weight)
        pairs = weight.index_select(1, i) * weight.index_select(1, j)
        hessian = bends @ (pairs * self.amplitude.unsqueeze(1))
        projector = (basis.permute(1, 2, 0) @ basis.transpose(0, 1)).flatten(1)
        return (hessian * projector.index_select(1, i * dim + j)) @ share

    def _combined(self, slopes, x):
        return (slopes @ (self.amplitude.unsqueeze(1) * self.weight)).reshape(x.shape)
