"""Injective flow: a density on a d-dimensional submanifold of R^D that is learned as well."""

import copy
import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution, sample_from
from geoflow_plugin.distributions.checks import as_points, check_component
from geoflow_plugin.distributions.flow import Flow, dtype_of
from geoflow_plugin.distributions.injective_parts import (
    ambient_space,
    as_chain,
    base_space,
    check_sizes,
    common_context_dim,
    latent_space,
)
from geoflow_plugin.distributions.manifold_training import (
    Diverged,
    density_problem,
    joint_problem,
    manifold_problem,
)
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.layers.chain import smooth_couplings
from geoflow_plugin.layers.embedding import Embedding
from geoflow_plugin.spaces.learned import LearnedManifold
from geoflow_plugin.training import Data
from geoflow_plugin.volume_change import value_and_log_volume_change

__all__ = ["InjectiveFlow"]


class InjectiveFlow(Flow):
    r"""Density on the image of an injective map, learned with the map.

    A base on the latent space -> ``low_layers`` -> u -> ``embedding`` -> ``high_layers`` -> x.
    With g the map from u to x, J its differential and p_U the density of u,

    .. math::
        \log p(x) = \log p_U(u) - \tfrac12 \log\det J^\top J, \qquad u = g^\dagger(x),

    a density for the d-dimensional volume of the learned manifold in the data's space, J
    being relative to the metric of the latent space. A point off the manifold has the
    density of its projection :math:`g(g^\dagger(x))`; its ``reconstruction_error`` says how
    far off, and belongs beside the likelihood in every report. Trained on
    :math:`-\log p(x) + \lambda \|x - g(g^\dagger(x))\|^2`.

    Parameters
    ----------
    ambient_dim : int or geomstats space
        D, or a Euclidean space (of vectors or matrices) in which the data live.
    space : geomstats Manifold, optional
        The latent space, of dimension d; a compact one gives the manifold its topology.
        Default: Euclidean space of dimension ``dim``.
    base : normflows.distributions.BaseDistribution, optional
        On the latent space, of this package or of normflows. Default: uniform if the space
        is compact; if not, a normal law, to which the first fit gives mean and spread.
    low_layers : sequence of normflows.flows.Flow
        From the base to u: layers of normflows on R^d, of this package on any space.
    high_layers : sequence of normflows.flows.Flow, optional
        Of vectors (n, D), from the embedding to the data; ``layers.Reshape`` makes images
        of them. Default: ``layers.smooth_couplings(D)``.
    dim : int, optional
        d, where ``space`` is not given.
    method : {"exact", "hutchinson"}
        How training takes the volume and its gradient: exactly, or by ``n_probes`` random
        probes and conjugate gradients, which never form J. ``log_prob`` is exact.
    reconstruction_weight : float
        The weight lambda. Likelihood prefers a small volume, so that a curved manifold is
        learned too small, by an amount that vanishes as 1 / lambda (a circle of radius r
        by about 1 / (2 lambda r)).
    embedding : layers.Embedding, optional
        Of the k entries of u in R^D. Default: zero padding.
    n_probes : int

    Attributes
    ----------
    latent_space : geomstats Manifold
    history_ : dict of lists
        After ``fit``: ``step``, ``loss`` and ``validation``, the objective with the exact
        volume.

    Raises
    ------
    ValueError, TypeError
        For sizes that do not fit, a base of another space, or a latent space of which
        several arrays name one point (``geometry.embed`` is not the identity).

    References
    ----------
    .. [CLPC21] A. Caterini, G. Loaiza-Ganem, G. Pleiss, J. Cunningham. "Rectangular Flows
       for Manifold Learning", NeurIPS 2021. https://arxiv.org/abs/2106.01413
    """

    def __init__(
        self,
        ambient_dim,
        space=None,
        base=None,
        low_layers=(),
        high_layers=None,
        *,
        dim=None,
        method="exact",
        reconstruction_weight=10.0,
        embedding=None,
        n_probes=1,
    ):
        if method not in ("exact", "hutchinson"):
            raise ValueError(f"method: expected 'exact' or 'hutchinson', got {method!r}.")
        check_counts(n_probes=n_probes)
        weight = reconstruction_weight
        if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(f"reconstruction_weight: expected a number >= 0, got {weight!r}.")
        ambient, latent = ambient_space(ambient_dim), latent_space(space, dim)
        sizes = math.prod(latent.shape), math.prod(ambient.shape)
        if sizes[0] > sizes[1]:
            raise ValueError(
                f"ambient_dim: expected {sizes[0]} at least, the entries of a point of "
                f"{type(latent).__qualname__}, got {sizes[1]}."
            )
        low_layers = as_chain(low_layers, "low_layers")
        if base is not None and not len(low_layers):
            check_component(latent, base, "base")
        embedding = Embedding(*sizes) if embedding is None else embedding
        if not isinstance(embedding, Embedding):
            kind = type(embedding).__name__
            raise TypeError(f"embedding: expected a layers.Embedding, got {kind}.")
        if (embedding.dim, embedding.ambient_dim) != sizes:
            raise ValueError(
                f"embedding: expected one of R^{sizes[0]} in R^{sizes[1]}, got one of "
                f"R^{embedding.dim} in R^{embedding.ambient_dim}."
            )
        if high_layers is None:
            high_layers = smooth_couplings(sizes[1])
        high_layers = as_chain(high_layers, "high_layers")
        dtypes = map(dtype_of, [high_layers, embedding, low_layers, base])
        dtype = next(filter(None, dtypes), torch.get_default_dtype())
        super().__init__(ambient, dtype)
        self.latent_space = latent
        self._places_base = base is None and not geometry.is_compact(latent)
        self.base = self._base_class(latent)(latent, dtype=dtype) if base is None else base
        self.low_layers, self.embedding, self.high_layers = low_layers, embedding, high_layers
        self.method, self.n_probes = method, n_probes
        self.reconstruction_weight = float(weight)
        self._problem, self._warm_up = joint_problem, 1
        context_dim = common_context_dim(self.base, [*low_layers, *high_layers])
        self.conditional, self.context_dim = context_dim != 0, context_dim or None
        self.to(next(self.parameters(), self._anchor).device, dtype)
        check_sizes(self)

    @classmethod
    def supports(cls, space):
        """Whether data may live there: in Euclidean spaces."""
        return geometry.is_euclidean(space) and super().supports(space)

    def _check_metric(self):
        super()._check_metric()
        if isinstance(self.base, Distribution):
            self.base._check_metric()

    def _base_takes_context(self):
        return common_context_dim(self.base, []) != 0

    # The map

    def encode(self, x, context=None):
        """Latent points of the base whose images are the projections of x.

        Parameters
        ----------
        x : torch.Tensor or array, shape=(n, *space.shape)
        context : torch.Tensor or array, shape=(n, k), optional

        Returns
        -------
        z : torch.Tensor, shape=(n, *latent_space.shape)
        """
        self._check_metric()
        x = self._points(x)
        given = self._given(context, len(x))
        return self.low_layers.inverse(self._left_inverse(x, **given)[0], **given)[0]

    def decode(self, z, context=None):
        """Points of the manifold, (n, *space.shape), at latent points of the base."""
        self._check_metric()
        space = base_space(self.base, self.low_layers, self.latent_space)
        geometry.check_points(space, z, "z", self.dtype, self.device)
        return self._decode(z, **self._given(context, len(z)))

    def project(self, x, context=None):
        """Points of the manifold at which the density of x is taken, decode(encode(x))."""
        self._check_metric()
        x = self._points(x)
        given = self._given(context, len(x))
        return self._immerse(self._left_inverse(x, **given)[0], **given).reshape(x.shape)

    def reconstruction_error(self, x, context=None):
        """Distance from each x to its projection, in the array, shape=(n,)."""
        return (self.project(x, context) - self._points(x)).flatten(1).norm(dim=1)

    def _left_inverse(self, x, context=None):
        """Latent points u of x, and the log-determinants of the high layers' inverses."""
        y, log_det = self.high_layers.inverse(x.flatten(1), context)
        return self._latent(y), log_det

    def _latent(self, y):
        u = self.embedding.inverse(y).reshape(len(y), *self.latent_space.shape)
        return geometry.projection(self.latent_space, u)

    def _immerse(self, u, context=None):
        """Flat points (n, D) of latent points u."""
        return self.high_layers.image(self.embedding(u.flatten(1)), context)

    def _decode(self, z, context=None):
        u = self.low_layers.image(z, context)
        return self._immerse(u, context).reshape(len(z), *self.space.shape)

    # The density

    def _log_prob(self, x, context=None):
        return self._projected(x, context)[0]

    def training_log_prob(self, x, generator=None, **given):
        """Log density whose volume, and the gradient of that, is taken by ``method``."""
        return self._training_terms(x, generator, **given)[0]

    def _training_terms(self, x, generator=None, context=None):
        """What training takes for log densities of x, and flat projections (n, D)."""
        return self._projected(x, context, generator, training=True)

    def _projected(self, x, context=None, generator=None, training=False):
        """Log densities of the projections of x, and flat projections (n, D)."""
        u, log_det = self._left_inverse(x, context)
        log_prob = self._latent_log_prob(u, context, generator, training)
        if self.embedding.is_identity and geometry.is_euclidean(self.latent_space):
            # d = D: the log-determinants of the layers say it all
            value = x.flatten(1)
            log_volume = -log_det - geometry.log_volume_element(self.latent_space, u)
        else:
            value, log_volume = value_and_log_volume_change(
                lambda point: self._immerse(point, context),
                u,
                space=self.latent_space,
                method=self.method if training else "exact",
                n_probes=self.n_probes,
                generator=generator,
            )
        scale = math.log(geometry.metric_scale(self.space))
        return log_prob - log_volume - 0.5 * geometry.dim(self.latent_space) * scale, value

    def _latent_log_prob(self, u, context=None, generator=None, training=False):
        """Log density of latent points u, for the volume of the latent space."""
        z, log_det = self.low_layers.inverse(u, context)
        given = _context(context if self._base_takes_context() else None)
        if not isinstance(self.base, Distribution):
            return self.base.log_prob(z, **given) + log_det
        if training:
            return self.base.training_log_prob(z, generator=generator, **given) + log_det
        return self.base._log_prob(z, **given) + log_det

    def _draw(self, n, generator, context=None):
        if not n:
            return self._anchor.new_zeros(0, *self.space.shape), None
        with torch.no_grad():
            if context is None or not self._base_takes_context():
                z = sample_from(self.base, n, generator)
            elif isinstance(self.base, Distribution):
                z = self.base.sample(n, generator=generator, context=context)
            else:
                z = self.base.sample(n, context=context)
            return self._decode(z, context), None

    # Learning

    def loss(self, x, context=None):
        """Mean of -log p(x) and reconstruction_weight times the squared error, a scalar.

        With ``method="hutchinson"`` value and gradient are estimates by the same probes.
        """
        self._check_metric()
        x = self._points(x)
        return self._objective(x, 1.0, None, **self._given(context, len(x)))

    def _objective(self, x, likelihood_weight, generator, **given):
        log_prob, value = self._training_terms(x, generator, **given)
        squared = (value - x.flatten(1)).square().sum(1)
        return (self.reconstruction_weight * squared - likelihood_weight * log_prob).mean()

    def fit(self, X, **options):
        """Learn manifold and density together; options are those of ``Flow.fit``.

        The likelihood comes to its full weight over the first quarter of the steps, which
        may cost reconstruction, so that ``patience`` is half of ``max_steps`` by default.
        What is scored on held-out points is the objective, with the exact volume.

        Raises
        ------
        FloatingPointError
            If training diverges: the loss or the volume stops being finite, at lower
            learning rates as well; or points held out (if none are, of training) are
            reconstructed with an error above their variance and twice what it was, or above
            half of it and ten times. The best weights from before that are in place.
        """
        return self._fit(joint_problem, X, **options)

    def fit_in_two_steps(self, X, **options):
        """``fit_manifold``, then ``fit_density``, with the same options: the baseline.

        A checkpoint belongs to one of them: to have one, call them in turn.
        """
        if options.get("checkpoint") is not None:
            raise ValueError(
                "checkpoint: belongs to one fit; call fit_manifold and fit_density with one "
                "each."
            )
        return self.fit_manifold(X, **options).fit_density(X, **options)

    def fit_manifold(self, X, **options):
        """Learn embedding and high layers by the squared reconstruction error alone."""
        return self._fit(manifold_problem, X, **options)

    def fit_density(self, X, **options):
        """Learn base and low layers by the likelihood of latent points, the map being fixed.

        What ``history_`` records is the negative log density in the latent space. If no low
        layer has parameters, a base that is a flow is fitted in its own way.
        """
        return self._fit(density_problem, X, **options)

    def _fit(self, problem, X, max_steps=None, patience=None, **options):
        n_steps = max_steps if isinstance(max_steps, int) else 200
        self._problem, self._warm_up = problem, max(1, n_steps // 4)
        self._watches_training = problem is joint_problem
        if patience is None:
            patience = max(1, n_steps // 2)
        try:
            return super().fit(X, max_steps=max_steps, patience=patience, **options)
        except (FloatingPointError, Diverged) as error:
            raise FloatingPointError(
                f"{error} Likelihood bends a manifold without bound where reconstruction "
                "does not hold it: raise reconstruction_weight (now "
                f"{self.reconstruction_weight:g}), lower learning_rate, or call "
                "fit_in_two_steps."
            ) from error
        finally:
            self._problem, self._watches_training = joint_problem, False

    def _training_problem(self, train, held_out, generator):
        with torch.no_grad():
            first = Data(train.points, train.context).part(slice(1024))
            points, given = first.points, first.given
            y, _ = self.high_layers.initialize(points.flatten(1), **given)
            self.low_layers.initialize(self._latent(y), **given)
        return self._problem(self, train, held_out, generator)

    def _pathwise_draw(self, n, generator):
        raise TypeError(
            "fit_target: a density on R^D says nothing of a submanifold to learn; use a "
            "MongeAmpereFlow."
        )

    # Back to geometry

    def manifold(self, base_point=None, context=None):
        """The learned manifold as a geomstats space, under the metric of the data's space.

        A copy, in double precision, of what has been learned so far.

        Parameters
        ----------
        base_point : torch.Tensor or array, shape=space.shape, optional
            Coordinates are centred at its projection. Default: at the latent origin.
        context : torch.Tensor or array, shape=(1, k), optional
            Of a conditional flow, which has a manifold at each.

        Returns
        -------
        manifold : geoflow_plugin.spaces.learned.LearnedManifold
            A geomstats ``ImmersedSet`` with the pullback metric.

        Raises
        ------
        TypeError
            Under another backend of geomstats than pytorch.
        """
        self._check_metric()
        flow = copy.deepcopy(self).to("cpu", torch.float64).requires_grad_(False)
        context = flow._given(context, 1).get("context")

        def given(n):
            return None if context is None else context.expand(n, -1)

        def left_inverse(x):
            return flow._left_inverse(x, given(len(x)))[0]

        def draw(n):
            return left_inverse(flow._draw(n, None, **_context(given(n)))[0])

        origin = None
        if base_point is not None:
            point = torch.as_tensor(base_point).detach().cpu().double()
            origin = left_inverse(as_points(flow.space, point[None], "base_point"))[0]
        manifold = LearnedManifold(
            flow.latent_space,
            math.prod(flow.space.shape),
            lambda u: flow._immerse(u, given(len(u))),
            left_inverse,
            draw,
            origin,
        )
        scale = geometry.metric_scale(flow.space)
        if scale != 1:
            manifold.metric = scale * manifold.metric
        return manifold


def _context(context):
    return {} if context is None else {"context": context}
