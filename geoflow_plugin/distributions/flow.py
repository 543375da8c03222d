"""Distributions that learn: the fit of a flow, and its base."""

from typing import NamedTuple

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.checks import as_device, as_points, check_fit_options
from geoflow_plugin.distributions.reverse_kl import free_energy, target_log_prob
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
from geoflow_plugin.training import minimize

__all__ = ["Data", "Flow", "dtype_of"]


class Data(NamedTuple):
    """Points and what they are conditioned on, row by row."""

    points: torch.Tensor
    context: torch.Tensor | None = None

    def __len__(self):
        return len(self.points)

    def part(self, index):
        """Some of the rows."""
        given = None if self.context is None else self.context[index]
        return Data(self.points[index], given)

    def rows(self, index):
        """Points of some rows, and their context as a keyword argument."""
        if self.context is None:
            return self.points[index], {}
        return self.points[index], {"context": self.context[index]}


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
        context=None,
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
            Share of X to hold out, or the points to validate on (a pair with their
            context, if there is one), or None (or 0) to keep the last weights.
        context : torch.Tensor or array, shape=(n, k), optional
            What each point is conditioned on, for distributions that can be.
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
        train, held_out = self._split(X, context, validation, generator)
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
        self._remember(history)
        return self

    def _split(self, X, context, validation, generator):
        """Training and held-out data, converted."""
        data = self._data(X, context, "X")
        if validation is None or isinstance(validation, (int, float)):
            share = float(validation or 0)
            if not 0 <= share < 1:
                raise ValueError(
                    f"validation: expected a share in [0, 1), got {validation!r}."
                )
            n_held_out = max(1, round(share * len(data))) if share else 0
            if len(data) - n_held_out < 2:
                raise ValueError(
                    f"X: expected two training points at least, got {len(data)} points in "
                    f"all and validation={validation!r}."
                )
            order = torch.randperm(len(data), generator=generator).to(self.device)
            kept, out = order[n_held_out:], order[:n_held_out]
            return data.part(kept), data.part(out) if n_held_out else None
        points, given = validation if isinstance(validation, tuple) else (validation, None)
        return data, self._data(points, given, "validation")

    def _data(self, points, context, name):
        points = as_points(self.space, points, name).to(self.device, self.dtype)
        return Data(points, self._given(context, len(points)).get("context"))

    def _training_problem(self, train, held_out, generator):
        """Module to train, loss of rows, validation score, number of rows."""

        def loss(rows):
            points, given = train.rows(rows.to(self.device))
            return -self.training_log_prob(points, **given).mean()

        @torch.no_grad()
        def validate():
            parts = torch.arange(len(held_out), device=self.device).split(4096)
            total = 0.0
            for part in parts:
                points, given = held_out.rows(part)
                total -= float(self._log_prob(points, **given).double().sum())
            return total / len(held_out)

        return self, loss, validate, len(train)

    def fit_target(
        self,
        target,
        *,
        max_steps=None,
        batch_size=256,
        learning_rate=1e-3,
        seed=0,
        device=None,
        progress=True,
    ):
        """Learn an unnormalised density by the reverse Kullback-Leibler divergence.

        Parameters
        ----------
        target : normflows.distributions.Target or callable
            Log density up to a constant: points (n, *space.shape) to (n,), differentiable.
        max_steps : int, optional
            Default 200.
        batch_size : int
            Samples a step.
        learning_rate, seed, device, progress
            As for ``fit``.

        Returns
        -------
        self : Flow
            With the averaged weights of the last steps, and ``free_energy_``, a
            ``FreeEnergy`` from 10,000 fresh samples.

        Raises
        ------
        TypeError
            For a flow that has no differentiable samples (a Moser flow), or no target.
        FloatingPointError
            If the loss stops being finite.
        """
        self._check_metric()
        max_steps = 200 if max_steps is None else max_steps
        check_fit_options(max_steps, batch_size, learning_rate, None, seed)
        if device is not None:
            self.to(as_device(device))
        log_target = target_log_prob(target)
        draws = torch.Generator(self.device).manual_seed(int(seed))

        def loss(rows):
            x, log_prob = self._pathwise_draw(len(rows), draws)
            return (log_prob - log_target(x)).mean()

        history = minimize(
            self,
            loss,
            None,
            batch_size,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            generator=torch.Generator().manual_seed(int(seed)),
            progress=progress,
        )
        self._remember(history)
        self.free_energy_ = free_energy(self, target, generator=draws)
        return self

    def _pathwise_draw(self, n, generator):
        """Samples and log densities that are differentiable in the parameters."""
        raise TypeError(
            f"fit_target: the samples of a {type(self).__name__} have no derivatives; use "
            "a MongeAmpereFlow."
        )

    def _remember(self, history):
        if not hasattr(self, "history_"):
            self.history_ = history
            return
        first = self.history_["step"][-1]
        self.history_["step"] += [first + step for step in history["step"]]
        self.history_["loss"] += history["loss"]
        self.history_["validation"] += history["validation"]

    # The base

    @staticmethod
    def _base_class(space):
        return Uniform if geometry.is_compact(space) else WrappedNormal

    def _take_base(self, base):
        """Keep a base, or make the default one, a normal law being for data to place."""
        self._places_base = base is None and not geometry.is_compact(self.space)
        if base is None:
            base = self._base_class(self.space)(self.space, dtype=self.dtype)
        self.base = base

    def _place_base(self, points):
        """Give a default normal law mean and spread of the first data that come."""
        if self._places_base:
            self.base.fit(points)
            self._places_base = False

    def _base_log_prob(self, x):
        return getattr(self.base, "_log_prob", self.base.log_prob)(x)


def dtype_of(module):
    """Floating dtype of a module's weights, if it has any."""
    if not isinstance(module, torch.nn.Module):
        return None
    if isinstance(module, Distribution):
        return module.dtype
    tensors = [*module.parameters(), *module.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), None)
