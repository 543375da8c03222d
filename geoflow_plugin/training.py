"""The fit loop: it knows a module, a loss and a validation score, and no flow."""

import math
import warnings

import torch
from tqdm.auto import tqdm

__all__ = ["minimize"]


def minimize(
    module,
    loss,
    validate,
    n_rows,
    *,
    max_steps,
    batch_size,
    learning_rate,
    patience=None,
    generator=None,
    progress=True,
    averaging=0.98,
    check_every=None,
):
    """Train a module by Adam and leave it with the best weights seen.

    Adam with warm-up and a cosine schedule; what is judged and kept is an exponential
    average of the weights. The weights given count as the first candidate, so that
    training never ends worse, on the validation score, than it began.

    Parameters
    ----------
    module : nn.Module
        Its parameters that require a gradient are trained.
    loss : callable
        Rows (a tensor of indices below ``n_rows``) to a scalar to differentiate.
    validate : callable or None
        No argument, to a float; lower is better. None keeps the last average.
    n_rows : int
        Size of the training set.
    max_steps, batch_size, learning_rate : int, int, float
    patience : int, optional
        Stop after this many steps without a better validation score.
    generator : torch.Generator, optional
        Draws the batches; a CPU generator.
    progress : bool
        Show a progress bar.
    averaging : float
        Decay of the average of the weights.
    check_every : int, optional
        Steps between two validations.

    Returns
    -------
    history : dict of lists
        ``step``, ``loss`` (mean since the last check) and ``validation``.

    Raises
    ------
    FloatingPointError
        On a loss that is not finite; the best weights are in place.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    history: dict[str, list] = {"step": [], "loss": [], "validation": []}
    if not parameters:
        return history
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99))
    warmup = max(1, min(20, max_steps // 10))

    def factor(step):
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max_steps)))
        return min(1.0, (step + 1) / warmup) * (cosine + 1e-3)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    average = [p.detach().clone() for p in parameters]
    best = [p.clone() for p in average]
    best_score, best_step = math.inf, 0
    check_every = check_every or max(1, min(25, max_steps // 8))

    def check(step, running):
        nonlocal best, best_score, best_step
        current = [p.detach().clone() for p in parameters]
        _assign(parameters, average)
        score = math.nan if validate is None else validate()
        _assign(parameters, current)
        history["step"].append(step)
        history["loss"].append(running)
        history["validation"].append(score)
        if validate is None or score < best_score:
            best, best_score, best_step = [p.clone() for p in average], score, step

    bar = tqdm(total=max_steps, disable=not progress, desc="fit", unit="step")
    try:
        check(0, math.nan)
        running, since = 0.0, 0
        for step, rows in enumerate(_batches(n_rows, batch_size, generator), start=1):
            value = loss(rows)
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"fit: the loss became {value.item()} at step {step}; the best "
                    f"weights so far (step {best_step}) are in place. Try a smaller "
                    "learning_rate."
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                # a running mean at first, an exponential one later
                weight = max(1 - averaging, 1 / (step + 1))
                torch._foreach_lerp_(average, parameters, weight)
            running, since = running + value.item(), since + 1
            bar.update()
            if step % check_every == 0 or step == max_steps:
                check(step, running / since)
                running, since = 0.0, 0
                bar.set_postfix(
                    loss=f"{history['loss'][-1]:.4f}",
                    validation=f"{history['validation'][-1]:.4f}",
                )
            if step == max_steps:
                break
            if patience is not None and step - best_step >= patience:
                break
    except KeyboardInterrupt:
        warnings.warn(
            f"fit: interrupted; the best weights so far (step {best_step}) are kept.",
            stacklevel=3,
        )
    finally:
        bar.close()
        _assign(parameters, best)
    return history


@torch.no_grad()
def _assign(parameters, values):
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _batches(n_rows, batch_size, generator):
    """Shuffled batches for ever; the last short one of an epoch is used as well."""
    while True:
        order = torch.randperm(n_rows, generator=generator)
        yield from order.split(batch_size)
