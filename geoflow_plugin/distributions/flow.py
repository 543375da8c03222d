"""Distributions that learn: the fit of a flow, and its base."""

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution, takes_context
from geoflow_plugin.distributions.checks import as_device, as_points, check_fit_options
from geoflow_plugin.distributions.reverse_kl import free_energy, target_log_prob
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
from geoflow_plugin.networks.context import Standardize, context_dim_of
from geoflow_plugin.training import (
    Checkpoint,
    Data,
    generator_at,
    minimize,
    own_stream,
    processes,
    shuffled,
    split,
)

__all__ = ["Data", "Flow", "dtype_of"]

_DOUBT_WEIGHT = 10.0  # of squared nats: half a nat of doubt costs as much as 2.5 nats


class Flow(Distribution):
    """A distribution whose parameters are learned by maximum likelihood.

    A leaf may replace ``_training_problem``; by default it is ``training_log_prob``.

    Attributes
    ----------
    history_ : dict of lists
        After ``fit``: ``step``, ``loss`` and ``validation``, in nats per point.
    """

    _watches_training = False  # whether its validation does without held-out points

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
        checkpoint=None,
        resume=False,
        callback=None,
    ):
        """Learn the parameters from points, and keep those best on held-out points.

        Calling it again goes on from the weights it left, save those of a field that
        places itself on the data (``SourceField``): that starts anew. Started by torchrun,
        or in a process group, every process takes its share of each batch.

        Parameters
        ----------
        X : torch.Tensor, array, Dataset or DataLoader
            Points of the space, shape=(n, *space.shape), converted to the dtype and device
            of the flow; or a torch.utils.data.Dataset of them, or a DataLoader of batches,
            in memory only in part. These may also yield pairs of points and context.
        validation : float, tensor, array, Dataset, DataLoader or None
            Share of X to hold out, or the points to validate on (a pair with their
            context, if there is one), or None (or 0) to keep the last weights. At most
            32,768 points of datasets are used. A stream (IterableDataset, DataLoader) has
            no share to hold out.
        context : torch.Tensor or array, shape=(n, k), optional
            What each point is conditioned on, for distributions that can be.
        max_steps : int, optional
            Bound on optimiser steps; default 200.
        batch_size : int
            Of all processes together; a DataLoader has its own.
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
        checkpoint : str or os.PathLike, optional
            File to write the state of training to now and then; an old one is replaced.
        resume : bool
            Go on from the checkpoint, if it is there, to the weights that the run would
            have had without interruption, bit for bit.
        callback : callable, optional
            Called whenever ``history_`` grows, with the number of the step and a dict of
            ``loss``, ``validation``, ``learning_rate`` and ``gradient_norm``.

        Returns
        -------
        self : Flow

        Raises
        ------
        TypeError, ValueError
            For points that are not finite points of the space, options out of range, or a
            checkpoint of another fit.
        FloatingPointError
            If the loss stops being finite, and going back to the last good weights at a
            lower rate does not help; the best weights are in place.

        Examples
        --------
        Curves in TensorBoard, from a run that may be killed and started again:

        >>> writer = torch.utils.tensorboard.SummaryWriter()  # doctest: +SKIP
        >>> def show(step, metrics):
        ...     for name, value in metrics.items():
        ...         writer.add_scalar(name, value, step)
        >>> flow.fit(X, checkpoint="flow.pt", resume=True, callback=show)  # doctest: +SKIP
        """
        max_steps = self._prepare(max_steps, batch_size, learning_rate, patience, seed, device)
        seed = int(seed)
        generator = torch.Generator().manual_seed(seed)
        with own_stream(self.device, seed):
            train, held_out = split(
                X,
                context,
                validation,
                read=self._data,
                batch_size=batch_size,
                generator=generator,
            )
            identity = {"seed": seed, "batch_size": batch_size, "size": len(train)}
            record = Checkpoint(checkpoint, resume, self, {"task": "fit", **identity})
            if self.conditional:
                self._place_context(train.context)
            module, loss, validate = self._training_problem(train, held_out, generator)
            self.history_ = minimize(
                module,
                loss,
                validate if held_out is not None or self._watches_training else None,
                train.batches(batch_size, seed),
                max_steps=max_steps,
                learning_rate=learning_rate,
                patience=max(1, max_steps // 4) if patience is None else patience,
                seed=seed,
                progress=progress,
                checkpoint=record,
                callback=callback,
                history=getattr(self, "history_", None),
            )
        return self

    def _prepare(self, max_steps, batch_size, learning_rate, patience, seed, device):
        """Check options, go where training is; returns the number of steps."""
        self._check_metric()
        max_steps = 200 if max_steps is None else max_steps
        check_fit_options(max_steps, batch_size, learning_rate, patience, seed)
        device = self.device if device is None else as_device(device)
        processes.join()
        device = processes.own_device(device)
        if device != self.device:
            self.to(device)
        processes.broadcast(self)
        return max_steps

    def _data(self, points, context, name):
        points = as_points(self.space, points, name).to(self.device, self.dtype)
        return Data(points, self._given(context, len(points)).get("context"))

    def _training_problem(self, train, held_out, generator):
        """Module to train, loss of rows and the number of the step, validation score.

        ``train.rows`` takes rows to points and context; ``train.points`` is a bounded
        sample where data do not fit in memory. A loss that is random draws from
        ``generator_at(self.device, seed, step)``, with a seed from the generator, so that
        a resumed run draws the same.
        """

        def loss(rows, step):
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

        return self, loss, validate

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
        checkpoint=None,
        resume=False,
        callback=None,
    ):
        """Learn an unnormalised density by the reverse Kullback-Leibler divergence.

        Parameters
        ----------
        target : normflows.distributions.Target or callable
            Log density up to a constant: points (n, *space.shape) to (n,), differentiable.
        max_steps : int, optional
            Default 200.
        batch_size : int
            Samples a step, of all processes together.
        learning_rate, seed, device, progress, checkpoint, resume, callback
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
        ValueError, FloatingPointError
            As for ``fit``.
        """
        if self.context_dim is not None:
            raise TypeError(
                f"fit_target: this {type(self).__name__} is conditional, and a target has no "
                "context to go with."
            )
        max_steps = self._prepare(max_steps, batch_size, learning_rate, None, seed, device)
        log_target, seed = target_log_prob(target), int(seed)

        def loss(rows, step):
            draws = generator_at(self.device, seed, step, processes.rank())
            x, log_prob, doubt = self._pathwise_draw(len(rows), draws)
            return (log_prob - log_target(x) + _DOUBT_WEIGHT * doubt).mean()

        identity = {"task": "fit_target", "seed": seed, "batch_size": batch_size}
        with own_stream(self.device, seed):
            self.history_ = minimize(
                self,
                loss,
                None,
                shuffled(batch_size, batch_size, seed),
                max_steps=max_steps,
                learning_rate=learning_rate,
                seed=seed,
                progress=progress,
                checkpoint=Checkpoint(checkpoint, resume, self, identity),
                callback=callback,
                history=getattr(self, "history_", None),
            )
            draws = generator_at(self.device, seed, "free energy")
            self.free_energy_ = free_energy(self, target, generator=draws)
        return self

    def _pathwise_draw(self, n, generator):
        """Samples, log densities, and the solver's doubt about them, all differentiable."""
        raise TypeError(
            f"fit_target: the samples of a {type(self).__name__} have no derivatives; use "
            "a MongeAmpereFlow."
        )

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

    def _base_log_prob(self, x, context=None):
        listens = context is not None and takes_context(self.base)
        given = {"context": context} if listens else {}
        return getattr(self.base, "_log_prob", self.base.log_prob)(x, **given)

    # What it is conditioned on

    def _take_context(self, network, name):
        """Be conditional if network or base is; what they cannot do without has one length."""
        self.conditional = context_dim_of(network) != 0 or takes_context(self.base)
        dims = context_dim_of(network), getattr(self.base, "context_dim", None)
        known = {dim for dim in dims if dim}
        if len(known) > 1:
            raise ValueError(
                f"{name}: expected context_dim={dims[1]}, that of the base, got {dims[0]}."
            )
        self.context_dim = known.pop() if known else None

    def _place_context(self, context):
        """Give the units of networks' contexts those of the first data that come."""
        if context is not None:
            for module in self.modules():
                if isinstance(module, Standardize):
                    module.initialize(context)


def dtype_of(module):
    """Floating dtype of a module's weights, if it has any."""
    if not isinstance(module, torch.nn.Module):
        return None
    if isinstance(module, Distribution):
        return module.dtype
    tensors = [*module.parameters(), *module.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), None)
