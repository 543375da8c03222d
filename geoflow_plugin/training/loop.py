"""The fit loop: it knows a module, a loss and a validation score, and no flow."""

import math
import sys

from tqdm.auto import tqdm

from geoflow_plugin.training import processes
from geoflow_plugin.training.state import NUMERICAL, State

__all__ = ["minimize"]

_TRIES = 8  # failed steps between two checks before giving up
_SLOWER = 0.25  # what a failed step multiplies the learning rate by


def minimize(
    module,
    loss,
    validate,
    batches,
    *,
    max_steps,
    learning_rate,
    patience=None,
    seed=0,
    progress=True,
    averaging=0.98,
    check_every=None,
    checkpoint=None,
    callback=None,
    history=None,
):
    """Train a module by Adam and leave it with the best weights seen.

    Adam with warm-up and a cosine schedule; what is judged and kept is an exponential
    average of the weights. The weights given count as the first candidate, so that
    training never ends worse, on the validation score, than it began. A step whose loss or
    gradient is not finite is not taken: training goes back to the weights of the last
    check and on to the next batch, at a quarter of the rate. A gradient far longer than
    those before it is cut.

    Interrupted and resumed from a checkpoint, training ends with the same weights, bit
    for bit, provided that a loss draws from ``generator_at(device, seed, step)`` or from
    torch's global streams, which are reseeded at every step: call this inside
    ``own_stream``. Under several processes every one has to call it with the same
    arguments.

    Parameters
    ----------
    module : nn.Module
        Its parameters that require a gradient are trained.
    loss : callable
        Rows, as ``batches`` gives them, and the number of the step, from 1, to a scalar
        to differentiate. It may raise an ArithmeticError.
    validate : callable or None
        No argument, to a float; lower is better, and infinity is never kept. With None, or
        where it returns None, the last average is kept. What it raises ends training,
        except an ArithmeticError, which is a bad step.
    batches : Batches
    max_steps : int
    learning_rate : float
    patience : int, optional
        Stop after this many steps without a better validation score.
    seed : int
    progress : bool
        Show a progress bar; rare lines where it goes to a file.
    averaging : float
        Decay of the average of the weights.
    check_every : int, optional
        Steps between two validations.
    checkpoint : Checkpoint, optional
        Written after checks; what was found in it is gone on from.
    callback : callable, optional
        Called after every check, in the first process, with the number of the step and a
        dict of ``loss``, ``validation``, ``learning_rate`` and ``gradient_norm``.
    history : dict of lists, optional
        Of earlier training, to be continued.

    Returns
    -------
    history : dict of lists
        ``step``, ``loss`` (mean since the last check) and ``validation``.

    Raises
    ------
    FloatingPointError
        If going back and slowing down does not help; the best weights are in place.
    """
    state = State(module, averaging, seed, history)
    if not state.parameters:
        return state.history
    processes.broadcast(module)
    resumed = checkpoint is not None and checkpoint.restore(state, batches)
    warmup = max(1, min(20, max_steps // 10))
    check_every = check_every or max(1, min(25, max_steps // 8))
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function, got {callback!r}.")
    patience = math.inf if patience is None else patience
    good: dict = {}
    failures, losses = 0, []

    def rate():
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, state.step / max_steps)))
        return learning_rate * min(1.0, (state.step + 1) / warmup) * (cosine + 1e-3)

    def keep():
        nonlocal good, failures
        good, failures = {"state": state.snapshot(), "place": batches.place}, 0
        if checkpoint is not None:
            checkpoint.write(good)

    def report():
        entry = {name: state.history[name][-1] for name in ("loss", "validation")}
        bar.set_postfix({name: f"{value:.4f}" for name, value in entry.items()}, refresh=False)
        if callback is not None and processes.rank() == 0:
            entry["learning_rate"] = rate() * state.rate
            entry["gradient_norm"] = state.norms[-1] if state.norms else math.nan
            callback(state.history["step"][-1], entry)

    def go_back(step, error):
        nonlocal failures
        failures += 1
        why = f"fit: step {step} failed ({error})"
        if failures > _TRIES:
            raise FloatingPointError(
                f"{why}; so did {failures - 1} others since step {good['state']['step']}, "
                f"the last at a learning rate of {rate() * state.rate:.1e}. The best weights "
                f"so far (step {state.best_step}) are in place. Try a smaller learning_rate."
            ) from error
        state.retreat(good["state"], _SLOWER)
        processes.warn(
            f"{why}; going on from the weights of step {good['state']['step']} at a quarter "
            "of the learning rate."
        )

    bar = _bar(max_steps, state.step, progress)
    try:
        if not resumed:
            state.check(validate, math.nan)
            report()
        keep()
        stream = iter(batches)
        while state.step < max_steps and state.step - state.best_step < patience:
            rows, n_rows = next(stream)
            step = state.step + 1
            try:
                losses.append(state.descend(loss, rows, n_rows, rate()))
                due = step % check_every == 0 or step == max_steps
                sound = due and state.check(validate, sum(losses) / len(losses))
            except NUMERICAL as error:
                losses.clear()
                go_back(step, error)
                continue
            bar.update()
            if due:
                losses.clear()
                report()
            if sound:
                keep()
    except KeyboardInterrupt:
        processes.warn(
            f"fit: interrupted; the best weights so far (step {state.best_step}) are kept."
        )
    finally:
        bar.close()
        state.finish()
    if good and checkpoint is not None:
        checkpoint.write(good, last=True)
    return state.history


def _bar(total, done, shown):
    """A bar where it can move; in a log, a line now and then."""
    moves = sys.stderr.isatty() or "ipykernel" in sys.modules
    interval = 0.1 if moves else 30.0
    return tqdm(
        total=total,
        initial=done,
        disable=not shown or processes.rank() != 0,
        desc="fit",
        unit="step",
        mininterval=interval,
        maxinterval=max(10.0, interval),
    )
