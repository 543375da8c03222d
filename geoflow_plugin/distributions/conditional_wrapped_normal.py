"""A wrapped normal law whose mean and scale are functions of a context."""

import math

import torch
from torch import nn
from torch.func import vmap

from geoflow_plugin import geometry
from geoflow_plugin.distributions.flow import Flow, dtype_of
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.networks.context import Standardize
from geoflow_plugin.networks.fields import perceptron

__all__ = ["ConditionalWrappedNormal"]


class ConditionalWrappedNormal(Flow):
    r"""The law ``WrappedNormal`` with mean and scale by an encoder of the context.

    A base for conditional flows, or a regression of points on covariates by itself: ``fit``
    maximises the likelihood.

    Parameters
    ----------
    space : geomstats Manifold
    context_dim : int
        Of contexts (n, context_dim).
    encoder : nn.Module, optional
        Contexts (n, context_dim) to (n, D + 1), D the number of entries of a point: what is
        added to a fixed point of the space before it is projected there, and the log of the
        scale. Default: a perceptron of the standardized context, zero at first.
    dtype : torch.dtype, optional
        Default: that of the encoder, or torch's default dtype.
    """

    conditional = True

    def __init__(self, space, context_dim, encoder=None, dtype=None):
        dtype = dtype or dtype_of(encoder) or torch.get_default_dtype()
        super().__init__(space, dtype)
        check_counts(context_dim=context_dim)
        if encoder is None:
            size = math.prod(space.shape) + 1
            standardize = Standardize(context_dim, dtype)
            hidden, out = perceptron(context_dim, 64, 2, size, None, dtype)
            encoder = nn.Sequential(standardize, hidden, out)
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"encoder: expected a torch.nn.Module, got {type(encoder).__name__}."
            )
        self.encoder, self.context_dim = encoder, context_dim
        self.register_buffer("_origin", geometry.origin(space).to(dtype), persistent=False)

    def parameters_given(self, context):
        """Means (n, *space.shape) and scales (n,)."""
        out = self.encoder(context)
        size = math.prod(self.space.shape) + 1
        if out.shape != (len(context), size):
            raise ValueError(
                f"encoder: expected shape ({len(context)}, {size}), got {tuple(out.shape)}."
            )
        mean = self._origin + out[:, :-1].reshape(-1, *self.space.shape)
        return geometry.projection(self.space, mean), out[:, -1].exp()

    def _log_prob(self, x, context=None):
        def of_one(x, mean, scale):
            value = geometry.wrapped_normal_log_prob(self.space, x[None], mean[None], scale)
            return value[0]

        return vmap(of_one)(x, *self.parameters_given(context))

    @torch.no_grad()
    def _draw(self, n, generator, context=None):
        x = self._anchor.new_zeros(n, *self.space.shape)
        distinct, group = torch.unique(context, dim=0, return_inverse=True)
        means, scales = self.parameters_given(distinct)
        for i in range(len(distinct)):  # spaces take one scale at a time
            rows = (group == i).nonzero().squeeze(1)
            mean = means[i].expand(len(rows), *means[i].shape)
            x[rows] = geometry.random_wrapped_normal(self.space, mean, scales[i], generator)
        return x, None
