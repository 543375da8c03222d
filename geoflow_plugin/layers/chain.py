"""Layers of normflows one after the other, whatever they say of their log-determinants."""

import inspect
from contextlib import nullcontext

import torch
from normflows.distributions.base import DiagGaussian, Uniform, UniformGaussian
from normflows.flows import (
    ActNorm,
    AffineCouplingBlock,
    InvertibleAffine,
    LULinearPermute,
    Permute,
)
from normflows.nets.made import MADE
from normflows.nets.resnet import ResidualNet
from torch import nn
from torch.overrides import TorchFunctionMode

from geoflow_plugin.geometry.checks import check_counts

__all__ = ["Chain", "context_dim_of", "smooth_couplings", "takes_context"]

# have a context, and ignore it
_DEAF = InvertibleAffine, LULinearPermute, Permute
_DEAF_BASES = DiagGaussian, Uniform, UniformGaussian


class Chain(nn.ModuleList):
    """A sequence of normflows layers as one: ``forward`` to the data, ``inverse`` back.

    Log-determinants come in the dtype of the points, one for each; a ``context`` goes to
    the layers that take one.

    Parameters
    ----------
    layers : sequence of normflows.flows.Flow
    """

    def forward(self, z, context=None):
        """Points of the first layer's domain to the data, and log |det|, (n,)."""
        self._require_initialized()
        return _run(z, context, [(layer, layer) for layer in self])

    def image(self, z, context=None):
        """``forward`` without log-determinants, which cost time inside a derivative."""
        self._require_initialized()
        with nullcontext() if context is None else _OpenGates():
            for layer in self:
                z = layer(z, **_given(layer, context))[0]
        return z

    def inverse(self, x, context=None):
        """Data back to the first layer's domain, and log |det|, (n,)."""
        self._require_initialized()
        return self.initialize(x, context)

    def initialize(self, x, context=None):
        """The inverse, on a batch of data from which any ActNorm may take its scale.

        A layer must not do so inside a functional transform, hence not in training.
        """
        return _run(x, context, [(layer, layer.inverse) for layer in reversed(self)])

    def _require_initialized(self):
        for layer in self.modules():
            if isinstance(layer, ActNorm) and not layer.data_dep_init_done:
                raise RuntimeError(
                    "layers: an ActNorm has not seen data yet; call fit, which shows it some."
                )


class _OpenGates(TorchFunctionMode):
    """Writes gated linear units, by which normflows listens to a context, as a product.

    Torch's own have a forward-mode derivative without a derivative of its own.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.glu:
            return _gated(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _gated(input, dim=-1):
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _run(x, context, moves):
    total = x.new_zeros(len(x))
    for layer, move in moves:
        x, log_det = move(x, **_given(layer, context))
        # some layers return one number for the whole batch, or float32
        total = total + torch.as_tensor(log_det).to(total)
    return x, total


def _given(layer, context):
    listens = context is not None and context_dim_of(layer) != 0
    return {"context": context} if listens else {}


def takes_context(module):
    """Whether a layer, or a normflows base, has an argument ``context`` to listen to."""
    if isinstance(module, _DEAF):
        return False
    method = module.log_prob if hasattr(module, "log_prob") else module.forward
    return "context" in inspect.signature(method).parameters


def context_dim_of(module):
    """Columns of the context that a layer, or a normflows base, cannot do without.

    0 if it takes none, None if it does not say. Layers of normflows do not: their networks
    have weights for it, or were made without.
    """
    if not takes_context(module) or type(module) in _DEAF_BASES:
        return 0
    if hasattr(module, "context_dim"):
        return module.context_dim
    parts = list(getattr(module, "context_encoder", module).modules())
    if hasattr(module, "context_encoder"):  # of a normflows base, context alone
        return next((p.in_features for p in parts if isinstance(p, nn.Linear)), None)
    networks = [p for p in parts if isinstance(p, (MADE, ResidualNet))]
    found = [*(getattr(p, "context_layer", None) for p in parts)]
    widths = [p.in_features for p in found if isinstance(p, nn.Linear)]
    widths += [p.context_features for p in networks if getattr(p, "context_features", None)]
    return widths[0] if widths else 0 if networks else None


def smooth_couplings(dim, n_blocks=6, width=64):
    """Affine couplings of R^dim by smooth networks, and learned linear maps between them.

    Smooth, because the likelihood of an injective map is trained through derivatives of its
    differential. Linear, up to permutations, at first.

    Parameters
    ----------
    dim : int
        2 or more.
    n_blocks : int
        Number of couplings.
    width : int
        Of the two hidden layers of each network.

    Returns
    -------
    layers : list of normflows.flows.Flow

    Raises
    ------
    ValueError
        If there is nothing to couple.
    """
    check_counts(dim=dim, n_blocks=n_blocks, width=width)
    if dim < 2:
        raise ValueError(f"dim: expected 2 or more, to couple coordinates, got {dim}.")
    layers = []
    for i in range(n_blocks):
        seen, moved, mode = (dim + 1) // 2, dim // 2, "channel"
        if i % 2:
            seen, moved, mode = moved, seen, "channel_inv"
        network = _ShiftAndScale(seen, moved, width)
        layers += [AffineCouplingBlock(network, split_mode=mode), LULinearPermute(dim)]
    return layers


class _ShiftAndScale(nn.Module):
    """Shifts and bounded log scales in turns, as normflows wants them; zero at first."""

    def __init__(self, n_in, n_out, width, bound=2.0):
        super().__init__()
        out = nn.Linear(width, 2 * n_out)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        hidden = [nn.Linear(n_in, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
        self.network, self.bound = nn.Sequential(*hidden, out), bound

    def forward(self, x):
        shift, scale = self.network(x).chunk(2, dim=1)
        scale = self.bound * torch.tanh(scale / self.bound)
        return torch.stack([shift, scale], dim=2).flatten(1)
