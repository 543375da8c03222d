"""Monge-Ampère flow (Zhang, E, Wang 2018): a base pushed along one potential's gradient."""

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import sample_from
from geoflow_plugin.distributions.checks import check_component
from geoflow_plugin.distributions.flow import Flow, dtype_of
from geoflow_plugin.layers.monge_ampere import MongeAmpere

__all__ = ["MongeAmpereFlow"]


class MongeAmpereFlow(Flow):
    r"""Density of a base that flows along the gradient of a learned potential.

    With x(T) the data, :math:`\dot x = \operatorname{grad} \varphi(x)`,

    .. math::
        \log p(x(T)) = \log p_0(x(0)) - \int_0^T \Delta \varphi(x(t)) \, dt,

    an exact change of variables up to the order of the solver (four in ``step_size``).

    Parameters
    ----------
    space : geomstats Manifold
    base : normflows.distributions.BaseDistribution, optional
        Any normalised distribution on the space. Default: uniform if the space is
        compact; if not, a wrapped normal, standard at first, to which the first ``fit``
        gives the mean and spread of the data.
    potential : nn.Module, optional
        Points (n, *space.shape), or points and context, to scalars (n,); see
        ``layers.MongeAmpere``.
    n_steps : int
    step_size : float
        Of the integration from base to data, in time.
    symmetry : sequence, optional
        A finite group, as ``networks.SymmetricPotential`` takes it: if the base is
        invariant under it, so is the density.
    solver : {"runge_kutta", "reversible", "adaptive"}
        See ``layers.MongeAmpere``; ``layer.solver`` may be changed after training.
    context_dim : int
        Of contexts (n, context_dim) that the default potential is conditioned on.

    Attributes
    ----------
    layer : MongeAmpere
        The map from base to data.
    history_ : dict of lists
        After ``fit``: ``step``, ``loss`` and ``validation`` (nats per point).

    References
    ----------
    .. [ZEW18] L. Zhang, W. E, L. Wang. "Monge-Ampère Flow for Generative Modeling",
       2018. https://arxiv.org/abs/1809.10188
    """

    _conditional_form = (
        "MongeAmpereFlow(space, context_dim={dim}), or give it a potential of points and "
        "context"
    )

    def __init__(
        self,
        space,
        base=None,
        potential=None,
        *,
        n_steps=20,
        step_size=0.05,
        symmetry=None,
        solver="runge_kutta",
        context_dim=0,
    ):
        if base is not None:
            check_component(space, base, "base")
        dtype = dtype_of(potential) or dtype_of(base) or torch.get_default_dtype()
        super().__init__(space, dtype)
        self._take_base(base)
        self.layer = MongeAmpere(
            space,
            potential,
            n_steps=n_steps,
            step_size=step_size,
            symmetry=symmetry,
            solver=solver,
            dtype=dtype,
            context_dim=context_dim,
        )
        self._take_context(self.potential, "potential")
        parameter = next(self.layer.parameters(), None)
        self.to(self.device if parameter is None else parameter.device)

    @classmethod
    def supports(cls, space):
        """Whether gradients and a default base can be put on the space."""
        try:  # without making a potential, which would draw from torch's global stream
            flows = geometry.interpolation(space) is None
            base = cls._base_class(space)
        except (TypeError, AttributeError):
            return False
        return flows and super().supports(space) and base.supports(space)

    @property
    def potential(self):
        """What the base flows along the gradient of."""
        return self.layer.potential

    def _log_prob(self, x, context=None):
        z, log_det = self.layer.solve(x, self.layer.end, 0.0, context)
        return self._base_log_prob(z, context) + log_det

    def _draw(self, n, generator, context=None):
        with torch.no_grad():
            z, log_prob = self._base_draw(n, generator, context)[:2]
            if not n:
                return z, log_prob
            x, log_det = self.layer.solve(z, 0.0, self.layer.end, context)
            return x, log_prob - log_det

    def _pathwise_draw(self, n, generator):
        z, log_prob, base_doubt = self._base_draw(n, generator)
        x, log_det, doubt = self.layer.draw(z)
        return x, log_prob - log_det, base_doubt + doubt

    def _base_draw(self, n, generator, context=None):
        if isinstance(self.base, MongeAmpereFlow) and context is None:
            return self.base._pathwise_draw(n, generator)
        z = sample_from(self.base, n, generator, context)
        return z, self._base_log_prob(z, context) if n else z.new_zeros(0), 0.0

    def _training_problem(self, train, held_out, generator):
        self._place_base(train.points)
        return super()._training_problem(train, held_out, generator)
