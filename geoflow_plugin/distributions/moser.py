"""Moser flow (Rozen et al. 2021) in the scale of its base.

With u = nu w, the model mu = nu - div u is mu = nu (1 - A w), where
A w = div w + <grad log nu, w> is the Stein operator of the base nu. The integral of
nu A w is zero, so mu integrates to one whatever w is; it may be negative, though. What
``log_prob`` reports is nu rho(1 - A w) / Z with a positive part rho that is the identity
above ``floor``, and Z = 1 + E_nu[rho(r) - r], whose integrand vanishes wherever the
model was positive to begin with. Given a context c, w (and perhaps nu) depend on it, and so
does Z.
"""

import torch

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.distributions.base import (
    Distribution,
    sample_from,
    score,
    takes_context,
)
from geoflow_plugin.distributions.checks import check_component
from geoflow_plugin.distributions.conditional_normalizer import ConditionalNormalizer
from geoflow_plugin.distributions.flow import dtype_of
from geoflow_plugin.distributions.moser_sampling import RejectionSampled
from geoflow_plugin.distributions.moser_training import training_problem
from geoflow_plugin.distributions.normalizer import Normalizer, in_parts
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.layers.moser_transport import MoserTransport
from geoflow_plugin.networks import (
    ConditionalSourceField,
    EigenfunctionField,
    FourierField,
    SourceField,
)
from geoflow_plugin.networks.context import Given, context_dim_of

__all__ = ["MoserFlow"]


class MoserFlow(RejectionSampled):
    r"""Density nu - div(nu w) for a base nu and a learned tangent field w.

    Parameters
    ----------
    space : geomstats Manifold
    base : normflows.distributions.BaseDistribution, optional
        Any normalised distribution on the space, of this package or of normflows.
        Default: uniform if the space is compact; if not, a wrapped normal, standard at
        first, to which the first ``fit`` gives the mean and spread of the data.
    field : nn.Module, optional
        Points (n, *space.shape), or points and context, to ambient vectors of that shape;
        their tangential part is w. Where several arrays name one point, it sees
        ``geometry.embed(space, x)`` and returns vectors there. Default: a ``SourceField``,
        which ``fit`` places on the data, over a ``FourierField``; on a mesh, an
        ``EigenfunctionField``.
    floor : float
        The positive part rho leaves 1 - A w alone above ``floor`` and tends to zero
        below it: rho(r) = floor^2 / (2 floor - r).
    normalizer_tolerance : float
        Nodes are added until the standard error of the normaliser Z is below this; below
        ten times this for each of many contexts.
    context_dim : int
        Of contexts (n, context_dim) that the default field is conditioned on.

    Attributes
    ----------
    history_ : dict of lists
        After ``fit``: ``step``, ``loss`` and ``validation`` (nats per point).

    References
    ----------
    .. [RGNL21] N. Rozen, A. Grover, M. Nickel, Y. Lipman. "Moser Flow:
       Divergence-based Generative Modeling on Manifolds", NeurIPS 2021.
    """

    _conditional_form = (
        "MoserFlow(space, context_dim={dim}), or give it a field of points and context"
    )

    def __init__(
        self,
        space,
        base=None,
        field=None,
        *,
        floor=1e-2,
        normalizer_tolerance=2e-4,
        context_dim=0,
    ):
        if base is not None:
            check_component(space, base, "base")
            if geometry.interpolation(space) is not None and not isinstance(base, Uniform):
                raise TypeError(
                    "base: expected the uniform one on a space with edges, across which "
                    f"the density of a {type(base).__name__} may jump and flux be lost."
                )
        if field is not None and not isinstance(field, torch.nn.Module):
            raise TypeError(
                f"field: expected a torch.nn.Module, got {type(field).__name__}; wrap a "
                "plain function in a module."
            )
        for name, value in {
            "floor": floor,
            "normalizer_tolerance": normalizer_tolerance,
        }.items():
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ValueError(f"{name}: expected a number in (0, 1), got {value!r}.")
        dtype = dtype_of(field) or dtype_of(base) or torch.get_default_dtype()
        super().__init__(space, dtype)
        self._take_base(base)
        if field is None:
            field = _default_field(space, context_dim, dtype)
        elif context_dim:
            raise ValueError(
                f"context_dim: is for the default field, got {context_dim!r} beside a "
                f"{type(field).__name__}; make that one conditional."
            )
        self.field = field
        self._take_context(field, "field")
        if self.context_dim and geometry.interpolation(space) is not None:
            raise TypeError(
                "field: expected one of points alone on a space with edges, which takes a "
                "field's values at corners, where points have no contexts."
            )
        self.floor = float(floor)
        self.normalizer_tolerance = float(normalizer_tolerance)
        self._normalizer = Normalizer(self)
        self._conditional_normalizer = ConditionalNormalizer(self)
        self.to(_device_of(self))

    @classmethod
    def supports(cls, space):
        """Whether fields and a default base can be put on the space."""
        try:
            base = cls._base_class(space)
        except (TypeError, AttributeError):
            return False
        return super().supports(space) and base.supports(space)

    # The density

    def ratio(self, x, context=None):
        """Model over base, 1 - A w, before the positive part; shape=(n,)."""
        return self.field_and_ratio(x, context)[1]

    def field_and_ratio(self, x, context=None):
        """Tangent field w, shape=(n, *space.shape), and 1 - A w, shape=(n,)."""
        return self._field_and_ratio(x, self._base_score(x, context), context)

    def _base_score(self, x, context=None):
        return score(lambda y: self._base_log_prob(y, context), x)

    def _field_and_ratio(self, x, base_score, context=None):
        listens = context is not None and context_dim_of(self.field) != 0
        field = Given(self.field, context) if listens else self.field
        return self._ratio_of(field, x, base_score)

    def _ratio_of(self, field, x, base_score):
        tangent_vec, divergence = value_and_divergence(self.space, field, x)
        pull = (base_score * tangent_vec).flatten(1).sum(-1)
        return tangent_vec, 1 - divergence - pull

    def _ratio(self, x, base_score, context=None):
        return self._field_and_ratio(x, base_score, context)[1]

    def _positive_part(self, ratio):
        # continuously differentiable; the clamp keeps the branch not taken finite
        low = self.floor**2 / (2 * self.floor - ratio.clamp(max=self.floor))
        return torch.where(ratio >= self.floor, ratio, low)

    def _log_prob(self, x, context=None):
        if context is None:
            log_normalizer = self._normalizer.log_value()
        else:
            log_normalizer = self._conditional_normalizer.log_values(context)
        columns = (x,) if context is None else (x, context)
        parts = [
            self._base_log_prob(*part) + self._positive_part(self.ratio(*part)).log()
            for part in zip(*in_parts(*columns), strict=True)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)) - log_normalizer

    # The normaliser

    @torch.no_grad()
    def normalizer(self, context=None):
        """Integral Z of the positive part, and the standard error of its estimate.

        Parameters
        ----------
        context : torch.Tensor or array, shape=(n, k), optional

        Returns
        -------
        normalizer, standard_error : float, or torch.Tensor, shape=(n,), given contexts
            1 and 0 if the model density is positive at every node.
        """
        return self._about(context, "normalizer", "standard_error")

    @torch.no_grad()
    def negative_mass(self, context=None):
        """Mass of the negative part of nu - div u, which ``log_prob`` leaves out."""
        return self._about(context, "negative_mass")[0]

    def _about(self, context, *names):
        given = self._given(context, 0 if context is None else len(context))
        if not given:
            state = self._normalizer.state()
            return tuple(state[name] for name in names)
        values = self._conditional_normalizer.values(given["context"])
        columns = "normalizer", "standard_error", "negative_mass"
        return tuple(values[:, columns.index(name)] for name in names)

    def _ratio_at(self, x, base_score, *context):
        with torch.no_grad():
            parts = zip(*in_parts(x, base_score, *context), strict=True)
            return torch.cat([self._ratio(*part) for part in parts])

    # Learning

    def training_log_prob(self, x, generator=None, **given):
        """Log density with a fresh, cheap estimate of the normaliser.

        A base that memorised x is scored leave-one-out. The base is not trained.
        """
        context = given.get("context")
        base_log_prob, base_score = self._base_terms(x, context, leave_out=True)
        n = max(256, len(x) // 2)
        if context is not None:
            context = torch.cat([context, _cycled(context, n)])
        node_context = None if context is None else context[-n:]
        nodes, node_score = self._training_nodes(n, generator, node_context)
        relative = self._relative_log_prob(x, base_score, nodes, node_score, context=context)
        return base_log_prob + relative

    def _relative_log_prob(
        self, x, base_score, nodes, node_score, own_ratio=0.0, context=None
    ):
        """Log of model over base at x, normalised over these nodes of the base.

        ``context`` is that of the points and then of the nodes. The mean over nodes is then
        one of Z over contexts, and its log the same for all points. By Jensen's inequality,
        log E[Z(c)] >= E[log Z(c)]: averaged over points, this is a lower bound of the log
        likelihood (up to the bias of few nodes that there is without contexts), tight where
        Z does not vary. Few nodes for each context's own log Z would flatter instead.
        """
        ratio = self._ratio(
            torch.cat([x, nodes]), torch.cat([base_score, node_score]), context
        )
        inside, outside = ratio[: len(x)] - own_ratio, ratio[len(x) :]
        normalizer = 1 + (self._positive_part(outside) - outside).mean()
        return self._positive_part(inside).log() - normalizer.log()

    def _training_nodes(self, n, generator, context=None):
        nodes = sample_from(self.base, n, generator, context).detach()
        return nodes, self._base_score(nodes, context).detach()

    def _training_problem(self, train, held_out, generator):
        return training_problem(self, train, held_out, generator)

    def _base_terms(self, x, context=None, *, leave_out):
        """Log density and score of the base at fixed points."""
        listens = context is not None and takes_context(self.base)
        leave_out = leave_out and isinstance(self.base, Distribution)
        log_prob = self.base.training_log_prob if leave_out else self._base_log_prob

        def of(x, context=None):
            return log_prob(x, context=context) if listens else log_prob(x)

        with torch.no_grad():
            value = of(x, context)
        parts = zip(*in_parts(*((x, context) if listens else (x,))), strict=True)
        gradient = [
            score(lambda y, given=given: of(y, *given), part).detach()
            for part, *given in parts
        ]
        return value, torch.cat(gradient)

    def transport(self, **kwargs):
        """The invertible map from the base to the data; see ``MoserTransport``."""
        return MoserTransport(self, **kwargs)


def _default_field(space, context_dim, dtype):
    if geometry.interpolation(space) is not None and not context_dim:
        return EigenfunctionField(space, dtype=dtype)
    image = geometry.embed(space, geometry.origin(space)[None])
    background = FourierField(image.shape[1:], context_dim=context_dim, dtype=dtype)
    if context_dim:
        return ConditionalSourceField(space, context_dim, background=background, dtype=dtype)
    return SourceField(space, background=background, dtype=dtype)


def _device_of(module):
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device


def _cycled(rows, n):
    """The rows again and again, n in all."""
    return rows[torch.arange(n, device=rows.device) % len(rows)]
