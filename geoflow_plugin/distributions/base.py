"""The contract of a distribution on a space."""

import numpy as np
import torch
from normflows.distributions import BaseDistribution
from torch.func import vjp

from geoflow_plugin import geometry
from geoflow_plugin.distributions.checks import as_device, as_points, check_fit_options
from geoflow_plugin.training import minimize

__all__ = ["Distribution", "Flow"]


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
        self._metric = getattr(space, "metric", None)
        anchor = torch.zeros((), dtype=dtype or torch.get_default_dtype())
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

    # What a leaf writes

    def _log_prob(self, x):
        """Log density of points that were checked, shape=(n,)."""
        raise NotImplementedError

    def _draw(self, n, generator):
        """Sample n points; returns them and, if it came for free, their log density."""
        raise NotImplementedError

    # What everybody calls

    def log_prob(self, x):
        """Log density with respect to the Riemannian volume of ``space.metric``.

        Parameters
        ----------
        x : torch.Tensor or array, shape=(n, *space.shape)
            Points of the space. A tensor has to have the distribution's dtype and
            device; a NumPy array is converted to them.

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
        return self._log_prob(self._points(x))

    def forward(self, num_samples=1, generator=None):
        """Sample, with log densities: the contract of normflows.

        Parameters
        ----------
        num_samples : int
        generator : torch.Generator, optional
            Source of randomness; torch's global one by default.

        Returns
        -------
        x : torch.Tensor, shape=(num_samples, *space.shape)
        log_prob : torch.Tensor, shape=(num_samples,)
        """
        x, log_prob = self._checked_draw(num_samples, generator)
        if log_prob is None:
            log_prob = self._log_prob(x) if len(x) else x.new_zeros(0)
        return x, log_prob

    def sample(self, num_samples=1, generator=None):
        """Sample points, shape=(num_samples, *space.shape)."""
        return self._checked_draw(num_samples, generator)[0]

    def training_log_prob(self, x, generator=None):
        """Log density to train on; a distribution that memorises data leaves it out.

        The same as ``log_prob`` unless a class says otherwise. Points are not checked.
        """
        return self._log_prob(x)

    def loss(self, x):
        """Mean negative log density of a batch, a scalar for one's own torch loop."""
        self._check_metric()
        return -self.training_log_prob(self._points(x)).mean()

    # Checks

    def _checked_draw(self, n, generator):
        self._check_metric()
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
            raise ValueError(f"num_samples: expected an integer >= 0, got {n!r}.")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator: expected a torch.Generator, got {type(generator).__name__}"
            )
        return self._draw(int(n), generator)

    def _check_metric(self):
        if getattr(self.space, "metric", None) is not self._metric:
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


class Flow(Distribution):
    """A distribution whose parameters are learned by maximum likelihood.

    A leaf may replace ``_training_problem``; by default it is ``training_log_prob``.

    Attributes
    ----------
    history_ : dict of lists
        After ``fit``: ``step``, ``loss`` and ``validation``, in nats per point.
    """

    def fit(
        self,
        X,
        *,
        validation=0.1,
        max_steps=None,
        batch_size=1024,
        learning_rate=1e-3,
        patience=None,
        seed=0,
        device=None,
        progress=True,
    ):
        """Learn the parameters from points, and keep those best on held-out points.

        Calling it again goes on from the weights it left, save those of a field that
        places itself on the data (``SourceField``): that starts anew.

        Parameters
        ----------
        X : torch.Tensor or array, shape=(n, *space.shape)
            Points of the space, converted to the dtype and device of the flow.
        validation : float, tensor, array or None
            Share of X to hold out, or the points to validate on, or None (or 0) to keep
            the last weights.
        max_steps : int, optional
            Bound on optimiser steps; default 200.
        batch_size : int
        learning_rate : float
        patience : int, optional
            Steps without a better validation likelihood before stopping; default: a
            quarter of ``max_steps``.
        seed : int
            Decides the split, the initial weights that depend on data, and the batches.
        device : torch.device or str, optional
            Where to train; the flow stays there. Default: where it is.
        progress : bool
            Show a progress bar.

        Returns
        -------
        self : Flow

        Raises
        ------
        TypeError, ValueError
            For points that are not finite points of the space, or options out of range.
        FloatingPointError
            If the loss stops being finite; the best weights are in place.
        """
        self._check_metric()
        max_steps = 200 if max_steps is None else max_steps
        check_fit_options(max_steps, batch_size, learning_rate, patience, seed)
        if device is not None:
            self.to(as_device(device))
        generator = torch.Generator().manual_seed(int(seed))
        train, held_out = self._split(X, validation, generator)
        module, loss, validate, n_rows = self._training_problem(train, held_out, generator)
        history = minimize(
            module,
            loss,
            validate if held_out is not None else None,
            n_rows,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            patience=max(1, max_steps // 4) if patience is None else patience,
            generator=generator,
            progress=progress,
        )
        if not hasattr(self, "history_"):
            self.history_ = history
        else:
            first = self.history_["step"][-1]
            self.history_["step"] += [first + step for step in history["step"]]
            self.history_["loss"] += history["loss"]
            self.history_["validation"] += history["validation"]
        return self

    def _split(self, X, validation, generator):
        """Training and held-out points, converted."""
        X = as_points(self.space, X).to(self.device, self.dtype)
        if validation is None or isinstance(validation, (int, float)):
            share = float(validation or 0)
            if not 0 <= share < 1:
                raise ValueError(
                    f"validation: expected a share in [0, 1), got {validation!r}."
                )
            n_held_out = max(1, round(share * len(X))) if share else 0
            if len(X) - n_held_out < 2:
                raise ValueError(
                    f"X: expected two training points at least, got {len(X)} points in "
                    f"all and validation={validation!r}."
                )
            order = torch.randperm(len(X), generator=generator).to(X.device)
            train, held_out = X[order[n_held_out:]], X[order[:n_held_out]]
            return train, held_out if n_held_out else None
        held_out = as_points(self.space, validation, "validation")
        return X, held_out.to(self.device, self.dtype)

    def _training_problem(self, train, held_out, generator):
        """Module to train, loss of rows, validation score, number of rows."""

        def loss(rows):
            rows = rows.to(train.device)
            return -self.training_log_prob(train[rows]).mean()

        @torch.no_grad()
        def validate():
            return -float(self._log_prob(held_out).mean())

        return self, loss, validate, len(train)


def score(log_prob, x):
    """Flat gradient of a log density at points, shape=(n, *space.shape)."""
    value, pullback = vjp(log_prob, x.contiguous())  # type: ignore[misc]
    return pullback(torch.ones_like(value))[0]


def sample_from(distribution, n, generator):
    """Sample one of our distributions, or one of normflows, which takes no generator."""
    if isinstance(distribution, Distribution):
        return distribution.sample(n, generator=generator)
    drawn = distribution.sample(n)  # NormalizingFlow returns densities as well
    return drawn[0] if isinstance(drawn, tuple) else drawn


def seeded_sample(distribution, n, seed, device):
    """Sample that depends on the seed alone and leaves the global stream as it was."""
    if isinstance(distribution, Distribution):
        generator = torch.Generator(device).manual_seed(seed)
        return distribution.sample(n, generator=generator)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        return sample_from(distribution, n, None).detach()
