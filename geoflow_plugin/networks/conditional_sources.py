"""Point charges whose shares of the total depend on a context."""

import math

import torch
from torch import nn

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.networks.context import Given, Standardize, context_dim_of
from geoflow_plugin.networks.sources import SourceField

__all__ = ["ConditionalSourceField"]

_DOUBLINGS = range(-2, 8)  # of the widths that are tried at first
_BANDWIDTHS = 2.0 ** torch.arange(1, -4, -1)  # in spreads of the context, likewise


class ConditionalSourceField(SourceField):
    r"""A ``SourceField`` whose charges are shared out by a context.

    Each source has a place :math:`\gamma_k` among contexts as well, and the share

    .. math::
        s_k(c) \propto \exp\left(l_k - \tfrac12 \|(c - \gamma_k) / b\|^2\right)

    of a total charge that is the same for all contexts, with learned bandwidths b: what it
    adds to a density is a conditional kernel density that learns.

    Parameters
    ----------
    space : geomstats Manifold
    context_dim : int
        Number of conditioning variables, (n, context_dim); ``fit`` standardizes them.
    n_sources, background, generator, dtype
        As for ``SourceField``; the background may be conditional.
    """

    def __init__(
        self,
        space,
        context_dim,
        n_sources=1024,
        background=None,
        generator=None,
        dtype=None,
    ):
        check_counts(context_dim=context_dim)
        super().__init__(space, n_sources, background, generator, dtype)
        dtype = self.centers.dtype
        self.context_dim = context_dim
        self.standardize = Standardize(context_dim, dtype)
        places = torch.randn(n_sources, context_dim, generator=generator, dtype=dtype)
        self.context_centers = nn.Parameter(places)
        self.scaled_log_bandwidth = nn.Parameter(torch.zeros(context_dim, dtype=dtype))

    @property
    def bandwidth(self):
        """Bandwidths b of the standardized context, shape=(context_dim,)."""
        return (self._gain * self.scaled_log_bandwidth).exp()

    def log_shares(self, context):
        """Logs of the shares given contexts (n, context_dim), shape=(n, n_sources)."""
        given = self.standardize(context) / self.bandwidth
        places = self.context_centers / self.bandwidth
        logits = self._gain * self.scaled_logits - 0.5 * places.square().sum(1)
        # less what all sources have in common
        return torch.addmm(logits, given, places.mT).log_softmax(1)

    def charges(self, context):
        """Charges given contexts, shape=(n, n_sources)."""
        return self.charge * self.log_shares(context).exp()

    def background_given(self, context):
        """The background as a function of points, or None."""
        listens = self.background is not None and context_dim_of(self.background) != 0
        return Given(self.background, context) if listens else self.background

    def forward(self, x, context):  # type: ignore[override]
        """Vectors (n, *shape) at points (n, *shape), given contexts (n, context_dim)."""
        vector = _Charged(self, self.charges(context))(x)
        background = self.background_given(context)
        return vector if background is None else vector + background(x)

    def value_and_trace(self, x, basis, context):  # type: ignore[override]
        """As for ``SourceField``, given contexts (n, context_dim)."""
        vector, trace = self._sources(x, basis.flatten(2), self.charges(context))
        return self._with_background(self.background_given(context), vector, trace, x, basis)

    def responses(self, x, base_score=None):
        """What a unit charge of each source adds to div w + <score, w>, (n, n_sources).

        The field is linear in its charges, so that all of them follow from one derivative, and
        the field of any context from a product with its charges.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()  # tensors of inference mode take part in no derivative
            base_score = None if base_score is None else base_score.clone()
            charges = x.new_zeros(len(x), len(self.centers)).requires_grad_()
            vector, value = value_and_divergence(self.space, _Charged(self, charges), x)
            if base_score is not None:
                value = value + (base_score * vector).flatten(1).sum(-1)
            return torch.autograd.grad(value.sum(), charges)[0]

    @torch.no_grad()
    def initialize(  # type: ignore[override]
        self, points, generator=None, n_neighbors=(5, 2, 12, 30), *, context
    ):
        """Put the sources on data and their contexts; see ``SourceField.initialize``.

        The bandwidth of the context, one for all variables at first, is judged together with
        the widths.

        Parameters
        ----------
        points, generator, n_neighbors
            As there.
        context : torch.Tensor, shape=(n, context_dim)

        Returns
        -------
        anchors : torch.Tensor of int, shape=(n_sources,)
        """
        self.standardize.initialize(context)
        order, anchors, log_width = self._place(points, generator, n_neighbors)
        self.context_centers.copy_(self.standardize(context)[anchors])
        self.scaled_log_bandwidth.fill_(math.log(0.5) / self._gain)
        if not geometry.is_compact(self.space):
            return anchors
        options = {"device": points.device, "dtype": points.dtype}
        probe = geometry.quasi_uniform(self.space, 1024, **options)
        query, near = order[:1024], order[torch.arange(1024, device=order.device) % len(order)]
        is_own = query[:, None] == anchors
        best, best_likelihood = (0.0, 0.0, 0.0), -math.inf
        for doubling in _DOUBLINGS:
            shift = doubling * math.log(2) / self._gain
            self.scaled_log_widths.copy_(log_width + shift)
            sinks = self.responses(probe), self.responses(points[query])
            for bandwidth in _BANDWIDTHS.log().tolist():
                self.scaled_log_bandwidth.fill_(bandwidth / self._gain)
                sink = (sinks[0] * self.log_shares(context[near]).exp()).sum(1)
                charge = 0.9 / float(sink.max().clamp_min(1e-6))
                # as if a point's own sources were not there
                shares = self.log_shares(context[query]).exp().masked_fill(is_own, 0.0)
                shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-6)
                ratio = (1 - charge * (sinks[1] * shares).sum(1)).clamp_min(1e-3)
                likelihood = float(ratio.log().mean())
                if likelihood > best_likelihood:
                    best = shift, charge / self._gain, bandwidth / self._gain
                    best_likelihood = likelihood
        self.scaled_log_widths.copy_(log_width + best[0])
        self.scaled_charge.fill_(best[1])
        self.scaled_log_bandwidth.fill_(best[2])
        return anchors

    def own_ratio(self, points, context):  # type: ignore[override]
        """What each source adds to a flow's ratio at one point of its own, and its context."""
        return self.charges(context).diagonal() * self._own_bell(points)


class _Charged:
    """The sources alone, with given charges (n, n_sources)."""

    def __init__(self, field, charges):
        self.field, self.charges = field, charges

    def __call__(self, x):
        dim = geometry.dim(self.field.space)
        no_basis = x.new_zeros(dim, 1, 1).expand(-1, *x.flatten(1).shape)
        return self.field._sources(x, no_basis, self.charges)[0]

    def value_and_trace(self, x, basis):
        return self.field._sources(x, basis.flatten(2), self.charges)
