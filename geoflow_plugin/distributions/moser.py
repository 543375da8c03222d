"""Moser flow (Rozen et al. 2021) in the scale of its base.

With u = nu w, the model mu = nu - div u is mu = nu (1 - A w), where
A w = div w + <grad log nu, w> is the Stein operator of the base nu. The integral of
nu A w is zero, so mu integrates to one whatever w is; it may be negative, though. What
``log_prob`` reports is nu rho(1 - A w) / Z with a positive part rho that is the identity
above ``floor``, and Z = 1 + E_nu[rho(r) - r], whose integrand vanishes wherever the
model was positive to begin with.
"""

import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.distributions.base import (
    Distribution,
    sample_from,
    score,
    seeded_sample,
)
from geoflow_plugin.distributions.checks import check_component
from geoflow_plugin.distributions.flow import Flow, dtype_of
from geoflow_plugin.distributions.kernel_density import KernelMixture
from geoflow_plugin.distributions.mixture import Mixture
from geoflow_plugin.distributions.normalizer import CHUNK, Normalizer, in_parts
from geoflow_plugin.distributions.rejection import rejection_sample
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.layers.moser_transport import MoserTransport
from geoflow_plugin.networks import FourierField, SourceField
from geoflow_plugin.training import generator_at, processes

__all__ = ["MoserFlow"]


class MoserFlow(Flow):
    r"""Density nu - div(nu w) for a base nu and a learned tangent field w.

    Parameters
    ----------
    space : geomstats Manifold
    base : normflows.distributions.BaseDistribution, optional
        Any normalised distribution on the space, of this package or of normflows.
        Default: uniform if the space is compact; if not, a wrapped normal, standard at
        first, to which the first ``fit`` gives the mean and spread of the data.
    field : nn.Module, optional
        Points (n, *space.shape) to ambient vectors of that shape; their tangential part
        is w. Where several arrays name one point, it sees ``geometry.embed(space, x)``
        and returns vectors there. Default: a ``SourceField``, which ``fit`` places on
        the data, over a ``FourierField``.
    floor : float
        The positive part rho leaves 1 - A w alone above ``floor`` and tends to zero
        below it: rho(r) = floor^2 / (2 floor - r).
    normalizer_tolerance : float
        Nodes are added until the standard error of the normaliser Z is below this.

    Attributes
    ----------
    history_ : dict of lists
        After ``fit``: ``step``, ``loss`` and ``validation`` (nats per point).

    References
    ----------
    .. [RGNL21] N. Rozen, A. Grover, M. Nickel, Y. Lipman. "Moser Flow:
       Divergence-based Generative Modeling on Manifolds", NeurIPS 2021.
    """

    def __init__(self, space, base=None, field=None, *, floor=1e-2, normalizer_tolerance=2e-4):
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
            image = geometry.embed(space, geometry.origin(space)[None])
            background = FourierField(image.shape[1:], dtype=dtype)
            field = SourceField(space, background=background, dtype=dtype)
        self.field = field
        self.floor = float(floor)
        self.normalizer_tolerance = float(normalizer_tolerance)
        self._normalizer = Normalizer(self)
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

    def ratio(self, x):
        """Model over base, 1 - A w, before the positive part; shape=(n,)."""
        return self.field_and_ratio(x)[1]

    def field_and_ratio(self, x):
        """Tangent field w, shape=(n, *space.shape), and 1 - A w, shape=(n,)."""
        return self._field_and_ratio(x, score(self._base_log_prob, x))

    def _field_and_ratio(self, x, base_score):
        tangent_vec, divergence = value_and_divergence(self.space, self.field, x)
        pull = (base_score * tangent_vec).flatten(1).sum(-1)
        return tangent_vec, 1 - divergence - pull

    def _ratio(self, x, base_score):
        return self._field_and_ratio(x, base_score)[1]

    def _positive_part(self, ratio):
        # continuously differentiable; the clamp keeps the branch not taken finite
        low = self.floor**2 / (2 * self.floor - ratio.clamp(max=self.floor))
        return torch.where(ratio >= self.floor, ratio, low)

    def _log_prob(self, x):
        if len(x) > CHUNK:
            return torch.cat([self._log_prob(part) for part in x.split(CHUNK)])
        log_ratio = self._positive_part(self.ratio(x)).log()
        return self._base_log_prob(x) + log_ratio - self._normalizer.log_value()

    # The normaliser

    @torch.no_grad()
    def normalizer(self):
        """Integral Z of the positive part, and the standard error of its estimate.

        Returns
        -------
        normalizer, standard_error : float
            1 and 0 if the model density is positive at every node.
        """
        state = self._normalizer.state()
        return state["normalizer"], state["standard_error"]

    @torch.no_grad()
    def negative_mass(self):
        """Mass of the negative part of nu - div u, which ``log_prob`` leaves out."""
        return self._normalizer.state()["negative_mass"]

    def _ratio_at(self, x, base_score):
        with torch.no_grad():
            parts = zip(*in_parts(x, base_score), strict=True)
            return torch.cat([self._ratio(*part) for part in parts])

    # Learning

    def training_log_prob(self, x, generator=None, **given):
        """Log density with a fresh, cheap estimate of the normaliser.

        A base that memorised x is scored leave-one-out. The base is not trained.
        """
        base_log_prob, base_score = self._base_terms(x, leave_out=True)
        nodes, node_score = self._training_nodes(max(256, len(x) // 2), generator)
        relative = self._relative_log_prob(x, base_score, nodes, node_score)
        return base_log_prob + relative

    def _relative_log_prob(self, x, base_score, nodes, node_score, own_ratio=0.0):
        """Log of model over base at x, normalised over these nodes of the base."""
        ratio = self._ratio(torch.cat([x, nodes]), torch.cat([base_score, node_score]))
        inside, outside = ratio[: len(x)] - own_ratio, ratio[len(x) :]
        normalizer = 1 + (self._positive_part(outside) - outside).mean()
        return self._positive_part(inside).log() - normalizer.log()

    def _training_nodes(self, n, generator):
        nodes = sample_from(self.base, n, generator).detach()
        return nodes, score(self._base_log_prob, nodes).detach()

    def _training_problem(self, train, held_out, generator):
        """Only the field is trained, and what the base says of the data is kept."""
        self._place_base(train.points)
        anchors = None
        if hasattr(self.field, "initialize"):
            anchors = self.field.initialize(train.points, generator)
            if not isinstance(self.base, Uniform):
                self.field.scaled_charge.data.zero_()  # start from the base itself
        base_terms = train.tabulate(lambda x: self._base_terms(x, leave_out=True))
        pool = None
        if not isinstance(self.base, Uniform):
            pool = self._training_nodes(4096, _generator_on(self.device, generator))
        if held_out is not None:
            held_out = held_out.points
            held_out_terms = self._base_terms(held_out, leave_out=False)
        seed = int(torch.randint(2**31, (), generator=generator))

        def loss(rows, step):
            rows = rows.to(self.device)
            points, _ = train.rows(rows)
            log_prob, base_score = base_terms(rows, points)
            draws = generator_at(self.device, seed, step)  # in every process the same
            n_nodes = max(256, processes.count() * len(rows) // 2)
            if pool is None:
                nodes, node_score = self._training_nodes(n_nodes, draws)
            else:
                index = torch.randint(
                    len(pool[0]), (n_nodes,), generator=draws, device=self.device
                )
                nodes, node_score = pool[0][index], pool[1][index]
            own_ratio = log_prob.new_zeros(len(rows))
            if anchors is not None:
                # leave out of each point's density the sources that stand on it
                own = self.field.own_ratio(train.points[anchors])
                at, source = train.coincidences(rows, points, anchors)
                own_ratio = own_ratio.index_add(0, at, own[source])
            relative = self._relative_log_prob(
                points, base_score, nodes, node_score, own_ratio
            )
            return -(log_prob + relative).mean()

        def validate():
            nodes = self._normalizer.nodes(0)
            outside = self._ratio_at(*nodes)
            normalizer = 1 + (self._positive_part(outside) - outside).mean()
            log_prob, base_score = held_out_terms
            inside = self._positive_part(self._ratio_at(held_out, base_score))
            return float(normalizer.log() - (log_prob + inside.log()).mean())

        return self.field, loss, validate

    def _base_terms(self, x, leave_out):
        """Log density and score of the base at fixed points."""
        log_prob = self._base_log_prob
        if leave_out and isinstance(self.base, Distribution):
            log_prob = self.base.training_log_prob
        with torch.no_grad():
            value = log_prob(x)
        gradient = [score(log_prob, part).detach() for part in x.split(CHUNK)]
        return value, torch.cat(gradient)

    # Sampling

    def _draw(self, n, generator):
        return self.sample_with_count(n, generator)[0], None

    @torch.no_grad()
    def sample_with_count(self, n, generator=None):
        """Exact samples of the reported density, and how many proposals they took.

        By rejection (``rejection_sample``) from the base, helped by kernels on the
        sources of the field.

        Parameters
        ----------
        n : int
        generator : torch.Generator, optional

        Returns
        -------
        x : torch.Tensor, shape=(n, *space.shape)
        n_proposals : int
            Each cost one evaluation of the field with its divergence.
        """
        proposal = self._proposal()
        if not n:
            return self._anchor.new_zeros(0, *self.space.shape), 0
        return rejection_sample(
            n,
            proposal,
            lambda x: self._log_over(proposal, x),
            self._log_envelope(proposal),
            generator,
        )

    def _proposal(self):
        """The base, helped by kernels on the sources of the field where it has any."""
        self._normalizer.state()
        if "proposal" not in self._normalizer.cache:
            self._normalizer.cache["proposal"] = self.base
            if isinstance(self.field, SourceField) and self._has_chord_kernels():
                kernels = self._source_kernels()
                self._normalizer.cache["proposal"] = Mixture(
                    self.space, [self.base, kernels], weights=[0.3, 0.7]
                ).to(self.device, self.dtype)
        return self._normalizer.cache["proposal"]

    def _has_chord_kernels(self):
        """Whether kernels fall with the distance in the array, as sources do."""
        x = self._normalizer.nodes(0)[0][:2]
        if geometry.embed(self.space, x) is not x:
            return False
        try:
            geometry.metric_scale(self.space)
            geometry.log_kernel_normalizer(self.space, x.new_ones(1))
            squared, log_volume = geometry.kernel_separation(self.space, x, x)
            chord = geometry.squared_chord(self.space, x, x)
        except TypeError:
            return False
        return log_volume is None and torch.allclose(squared, chord)

    def _source_kernels(self):
        # A t law with two degrees of freedom is a normal law whose precision is
        # exponential: kernels at a geometric grid of it cover centre and tail.
        level = 3.0 ** torch.arange(-7, 2, dtype=torch.float64)
        share = (-level / math.sqrt(3)).exp() - (-level * math.sqrt(3)).exp()
        scale = math.sqrt(geometry.metric_scale(self.space))
        free = self.field.centers.detach()
        centers = geometry.projection(self.space, free)
        # a centre that left the space looks, from there, like a wider source
        gap = (free - centers).flatten(1).square().sum(-1)
        widths = scale * (self.field.widths.detach().square() + gap).sqrt()
        widths = (0.5 / level).sqrt().to(widths)[:, None] * widths
        weights = self.field.shares.detach().clamp_min(1e-12)
        weights = share.to(weights)[:, None] * weights
        return KernelMixture(self.space, centers, widths.clamp_max(4.0), weights)

    def _log_over(self, proposal, x):
        """Log of the unnormalised positive part of the model over the proposal."""
        ratio = self._ratio_at(x, score(self._base_log_prob, x).detach())
        value = self._positive_part(ratio).log()
        if proposal is not self.base:
            value = value + self._base_log_prob(x) - proposal._log_prob(x)
        return value

    def _log_envelope(self, proposal):
        if "log_envelope" not in self._normalizer.cache:
            nodes, _ = self._normalizer.nodes(0)
            own = seeded_sample(proposal, 2048, 1, self.device)
            x = torch.cat([nodes[:1024], own])
            peak = float(self._log_over(proposal, x).max())
            self._normalizer.cache["log_envelope"] = peak + math.log(1.2)
        return self._normalizer.cache["log_envelope"]

    def transport(self, **kwargs):
        """The invertible map from the base to the data; see ``MoserTransport``."""
        return MoserTransport(self, **kwargs)


def _device_of(module):
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device


def _generator_on(device, generator):
    """A generator on a device, seeded by the next draw of another."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
