"""The contract of a distribution on a space."""

import operator

import numpy as np
import torch
from normflows.distributions import BaseDistribution
from torch.func import vjp

from geoflow_plugin import geometry, persistence
from geoflow_plugin.distributions.checks import as_context, as_points
from geoflow_plugin.geometry.checks import as_dtype
from geoflow_plugin.layers.chain import takes_context as _has_context_argument

__all__ = [
    "Distribution",
    "require_distribution",
    "sample_from",
    "score",
    "seeded_sample",
    "takes_context",
]


class Distribution(BaseDistribution):
    """A normalised probability density on a geomstats space.

    A leaf writes ``_log_prob`` and ``_draw``; everything public is derived here, once.
    Densities are with respect to the Riemannian volume of ``space.metric``, in nats.

    Parameters
    ----------
    space : geomstats Manifold
        Used as it is, neither wrapped nor copied.
    dtype : torch.dtype, optional
        Default: torch's default dtype, as for any module; ``.to`` changes it.
    """

    def __init__(self, space, dtype=None):
        super().__init__()
        geometry.log_volume_element(space, geometry.origin(space)[None])
        self.space = space
        self._metrics = geometry.metrics(space)
        anchor = torch.zeros((), dtype=as_dtype(dtype))
        self.register_buffer("_anchor", anchor, persistent=False)

    @classmethod
    def supports(cls, space):
        """Whether a distribution of this class can be put on the space."""
        try:
            geometry.log_volume_element(space, geometry.origin(space)[None])
        except (TypeError, AttributeError):
            return False
        return True

    @property
    def dtype(self):
        """Dtype of points and densities."""
        return self._anchor.dtype

    @property
    def device(self):
        """Device of points and densities."""
        return self._anchor.device

    # What a leaf writes, and one that is conditional with ``context=None`` besides

    conditional = False  # whether it may be given a context
    context_dim: int | None = None  # the columns of one that it cannot do without
    _conditional_form = ""  # what to write for p(x | c), with {dim} for its columns

    def _log_prob(self, x):
        """Log density of points that were checked, shape=(n,)."""
        raise NotImplementedError

    def _draw(self, n, generator):
        """Sample n points; returns them and, if it came for free, their log density."""
        raise NotImplementedError

    # What everybody calls

    def log_prob(self, x, context=None):
        """Log density with respect to the Riemannian volume of ``space.metric``.

        Parameters
        ----------
        x : torch.Tensor or array, shape=(n, *space.shape)
            Points of the space. A tensor has to have the distribution's dtype and
            device; a NumPy array is converted to them.
        context : torch.Tensor or array, shape=(n, k), optional
            What each point is conditioned on, for distributions that can be.

        Returns
        -------
        log_prob : torch.Tensor, shape=(n,)
            In nats.

        Raises
        ------
        TypeError, ValueError
            For anything but a non-empty batch of finite points on the space.
        """
        self._check_metric()
        x = self._points(x)
        return self._log_prob(x, **self._given(context, len(x)))

    def forward(self, num_samples=1, generator=None, context=None):
        """Sample, with log densities: the contract of normflows.

        Parameters
        ----------
        num_samples : int
        generator : torch.Generator, optional
            Source of randomness; torch's global one by default.
        context : torch.Tensor or array, shape=(num_samples, k), optional
            What each point is conditioned on.

        Returns
        -------
        x : torch.Tensor, shape=(num_samples, *space.shape)
        log_prob : torch.Tensor, shape=(num_samples,)
        """
        x, log_prob = self._checked_draw(num_samples, generator, context)
        if log_prob is None:
            given = self._given(context, len(x))
            log_prob = self._log_prob(x, **given) if len(x) else x.new_zeros(0)
        return x, log_prob

    def sample(self, num_samples=1, generator=None, context=None):
        """Sample points, shape=(num_samples, *space.shape)."""
        return self._checked_draw(num_samples, generator, context)[0]

    def training_log_prob(self, x, generator=None, **given):
        """Log density to train on; a distribution that memorises data leaves it out.

        The same as ``log_prob`` unless a class says otherwise. Points are not checked.
        """
        return self._log_prob(x, **given)

    def loss(self, x, context=None):
        """Mean negative log density of a batch, a scalar for one's own torch loop."""
        self._check_metric()
        x = self._points(x)
        return -self.training_log_prob(x, **self._given(context, len(x))).mean()

    def save(self, path):
        """Write the distribution to a file that ``geoflow_plugin.load`` reads.

        Space, architecture and weights come back bit for bit; docs/saving.md says what of
        normflows and of your own does, too. The file is whole or not there at all.

        Parameters
        ----------
        path : str or os.PathLike

        Raises
        ------
        TypeError, ValueError
            For what no file can hold; nothing is written.
        OSError
            If it cannot be written; an old file is untouched.
        """
        self._check_metric()
        persistence.save(self, path)

    # Checks

    def _checked_draw(self, n, generator, context):
        self._check_metric()
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
            raise ValueError(f"num_samples: expected an integer >= 0, got {n!r}.")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator: expected a torch.Generator, got {type(generator).__name__}"
            )
        return self._draw(int(n), generator, **self._given(context, int(n)))

    def _given(self, context, n):
        """The context as a keyword argument, checked, where there is one."""
        if context is None:
            if self.context_dim is None:
                return {}
            raise TypeError(
                f"context: this {type(self).__name__} is conditional and needs one, of "
                f"shape ({n}, {self.context_dim}), a row for each point; got none."
            )
        if not self.conditional:
            form = self._conditional_form
            dim = context.shape[-1] if getattr(context, "ndim", 0) == 2 else "k"
            hint = f"; make {form.format(dim=dim)}" if form else ""
            raise TypeError(f"context: a {type(self).__name__} takes none{hint}.")
        context = as_context(context, n, self.device, self.dtype)
        if self.context_dim not in (None, context.shape[1]):
            raise ValueError(
                f"context: expected {self.context_dim} columns, got {context.shape[1]}."
            )
        return {"context": context}

    def _check_metric(self):
        now = geometry.metrics(self.space)
        if len(now) != len(self._metrics) or any(map(operator.is_not, now, self._metrics)):
            raise ValueError(
                f"space: its metric changed after this {type(self).__name__} was made, "
                "and densities are relative to the metric's volume; make it anew "
                "(space.equip_with_distribution)."
            )

    def _points(self, x, name="x"):
        if isinstance(x, np.ndarray):
            x = as_points(self.space, x, name).to(self.device, self.dtype)
        geometry.check_points(self.space, x, name, self.dtype, self.device)
        return x


def require_distribution(distribution):
    """Refuse what is no distribution of ours."""
    if not isinstance(distribution, Distribution):
        kind = type(distribution).__name__
        raise TypeError(f"distribution: expected a geoflow_plugin distribution, got {kind}.")


def score(log_prob, x):
    """Flat gradient of a log density at points, shape=(n, *space.shape)."""
    value, pullback = vjp(log_prob, x.contiguous())  # type: ignore[misc]
    return pullback(torch.ones_like(value))[0]


def takes_context(distribution):
    """Whether a distribution of ours, or of normflows, may be given a context."""
    if isinstance(distribution, Distribution):
        return distribution.conditional
    return _has_context_argument(distribution)


def sample_from(distribution, n, generator, context=None):
    """Sample one of our distributions, or one of normflows, which takes no generator.

    A context, checked already, goes to those that take one.
    """
    listens = context is not None and takes_context(distribution)
    given = {"context": context} if listens else {}
    if isinstance(distribution, Distribution):
        return distribution.sample(n, generator=generator, **given)
    drawn = distribution.sample(n, **given)  # NormalizingFlow returns densities as well
    return drawn[0] if isinstance(drawn, tuple) else drawn


def seeded_sample(distribution, n, seed, device, context=None):
    """Sample that depends on the seed alone and leaves the global stream as it was."""
    if isinstance(distribution, Distribution):
        generator = torch.Generator(device).manual_seed(seed)
        return sample_from(distribution, n, generator, context)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        return sample_from(distribution, n, None, context).detach()
