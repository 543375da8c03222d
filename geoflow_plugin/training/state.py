"""All that training changes: weights, their average and the best, optimiser, history."""

import copy
import math

import torch

from geoflow_plugin.training import processes
from geoflow_plugin.training.checkpoint import load_tensors, named_tensors
from geoflow_plugin.training.randomness import reseed

__all__ = ["NUMERICAL", "State"]

NUMERICAL = ArithmeticError, torch.linalg.LinAlgError

_WINDOW = 50  # steps whose gradients say what is usual
_CLIP = 5.0  # a gradient is cut to this many times the largest usual ones


class State:
    """A module in training, one step or check at a time.

    Parameters
    ----------
    module : nn.Module
    averaging : float
        Decay of the average of the weights.
    seed : int
        For what a loss draws from torch's global streams.
    history : dict of lists, optional
        Of earlier training, to be continued.
    """

    def __init__(self, module, averaging, seed, history=None):
        self.module, self.averaging, self.seed = module, averaging, seed
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        empty: dict[str, list] = {"step": [], "loss": [], "validation": []}
        self.history = copy.deepcopy(history or empty)
        self.earlier = max(self.history["step"], default=0)
        self.step, self.rate, self.norms = 0, 1.0, []
        self.best_score, self.best_step = math.inf, 0
        if self.parameters:
            self.optimizer = torch.optim.Adam(self.parameters, betas=(0.9, 0.99))
            self.average = _copies(self.parameters)
            self.best = _copies(self.parameters)

    def descend(self, loss, rows, weight, learning_rate):
        """Take one step; returns the loss.

        Raises
        ------
        ArithmeticError
            For a loss or gradient that is not finite, before anything has changed.
        """
        step, device = self.step + 1, self.parameters[0].device
        reseed(device, self.seed, step, processes.rank())
        self.optimizer.zero_grad(set_to_none=True)
        error, value = None, math.nan
        try:
            loss_value = loss(rows, step)
            value = float(loss_value.detach())
            if math.isfinite(value):
                loss_value.backward()
        except NUMERICAL as raised:  # every process has to come to the reduction
            error, value = raised, math.nan
        value = processes.average(self.parameters, value, weight)
        norm = self._clip()
        if not (math.isfinite(value) and math.isfinite(norm)):
            found = f"loss was {value}" if not math.isfinite(value) else f"gradient was {norm}"
            raise FloatingPointError(str(error or f"the {found}")) from error
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * self.rate
        self.optimizer.step()
        self.norms = [*self.norms[-_WINDOW + 1 :], norm]
        with torch.no_grad():
            # a running mean at first, an exponential one later
            share = max(1 - self.averaging, 1 / (step + 1))
            torch._foreach_lerp_(self.average, self.parameters, share)
        self.step = step
        return value

    def _clip(self):
        """Cut a gradient that is far out of the usual; returns its norm before."""
        usual = sorted(self.norms)[int(0.9 * len(self.norms))] if self.norms else 0.0
        known = len(self.norms) >= _WINDOW // 5 and usual > 0
        bound = _CLIP * usual if known else math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, bound))

    def check(self, validate, loss):
        """Judge the average of the weights, and keep it if it is the best so far.

        Without a score there is no best: the last one that is finite is kept.

        Raises
        ------
        ArithmeticError
            If ``validate`` does.
        """
        score = self._score(validate)
        finite = all(bool(a.isfinite().all()) for a in self.average)
        is_best = finite if score is None else score < self.best_score
        score = math.nan if score is None else score
        if is_best:
            self.best, self.best_score = _copies(self.average), score
            self.best_step = self.step
        entry = {"step": self.earlier + self.step, "loss": loss, "validation": score}
        for name, value in entry.items():
            self.history[name].append(value)
        return finite and (is_best or not math.isnan(score))

    @torch.no_grad()
    def _score(self, validate):
        if validate is None:
            return None
        current, error, score = _copies(self.parameters), None, None
        _assign(self.parameters, self.average)
        reseed(self.parameters[0].device, self.seed, "validation")
        try:
            with torch.enable_grad():
                score = validate()
                score = None if score is None else float(score)
        except NUMERICAL as raised:
            error = str(raised)
        finally:
            _assign(self.parameters, current)
        score, error = processes.first((score, error))
        if error is not None:
            raise FloatingPointError(error)
        return score

    def snapshot(self):
        """All of it, as tensors and plain containers that nothing changes any more."""
        return {
            "tensors": {name: t.clone() for name, t in named_tensors(self.module).items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "average": _copies(self.average),
            "norms": self.norms,
            "best": self.best,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "step": self.step,
            "rate": self.rate,
            "earlier": self.earlier,
            "history": {name: list(values) for name, values in self.history.items()},
        }

    def restore(self, snapshot):
        """Go on from a snapshot."""
        self.retreat(snapshot)
        _assign(self.best, snapshot["best"])
        for name in ("best_score", "best_step", "step", "rate", "earlier"):
            setattr(self, name, snapshot[name])
        self.history = {name: list(snapshot["history"][name]) for name in self.history}

    def retreat(self, snapshot, rate=1.0):
        """Take the weights of a snapshot, but not its step; multiply the rate."""
        load_tensors(self.module, snapshot["tensors"])
        self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))
        _assign(self.average, snapshot["average"])
        self.norms = list(snapshot["norms"])
        self.rate *= rate

    def finish(self):
        """Leave the module with the best weights."""
        _assign(self.parameters, self.best)


@torch.no_grad()
def _copies(tensors):
    return [t.detach().clone() for t in tensors]


@torch.no_grad()
def _assign(targets, values):
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
