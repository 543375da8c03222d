"""What an injective flow is trained on: jointly, or its manifold and its density in turn.

Each function takes a flow, training data, held-out data and a generator to what
``training.minimize`` asks for: a module, a loss and a validation score.
"""

import math

import torch
from torch import nn

from geoflow_plugin.distributions.flow import Flow
from geoflow_plugin.training import Data, generator_at, processes

__all__ = ["Diverged", "density_problem", "joint_problem", "manifold_problem"]

_CHUNK = 512  # points whose volume is taken at a time where no gradient is wanted


class Diverged(Exception):
    """Joint training for which no lower learning rate would do."""


def joint_problem(flow, train, held_out, generator):
    """Reconstruction and, gradually, likelihood; scored by both with the exact volume."""
    _place_base(flow, train)
    seed = int(torch.randint(2**31, (), generator=generator))

    def loss(rows, step):
        points, given = train.rows(rows.to(flow.device))
        draws = generator_at(flow.device, seed, step, processes.rank())
        return flow._objective(points, min(1.0, step / flow._warm_up), draws, **given)

    judged = held_out
    if held_out is None:  # there is no score, and yet a collapse to be seen
        judged = Data(train.points, train.context).part(slice(1024))
    watch = _Watch(judged.points)

    @torch.no_grad()
    def validate():
        negative, squared = 0.0, 0.0
        for points, given in _parts(judged):
            if held_out is None:
                projected = flow._immerse(flow._left_inverse(points, **given)[0], **given)
            else:
                log_prob, projected = flow._projected(points, **given)
                negative -= float(log_prob.double().sum())
            squared += float((projected - points.flatten(1)).double().square().sum())
        if not watch.allows(squared / len(judged)):
            return math.inf
        score = (negative + flow.reconstruction_weight * squared) / len(judged)
        return None if held_out is None and math.isfinite(score) else score

    # what the watch has seen is kept with the weights, for a fit that is resumed
    return nn.ModuleList([flow, watch]), loss, validate


def manifold_problem(flow, train, held_out, generator):
    """Squared reconstruction error alone, in embedding and high layers."""

    def squared(points, **given):
        u, _ = flow._left_inverse(points, **given)
        return (flow._immerse(u, **given) - points.flatten(1)).square().sum(1)

    module = nn.ModuleList([flow.embedding, flow.high_layers])
    return module, *_mean_problem(flow, squared, train, held_out)


def density_problem(flow, train, held_out, generator):
    """Negative log density of latent points, in base and low layers."""
    _place_base(flow, train)
    fixed = not any(p.requires_grad for p in flow.low_layers.parameters())
    if fixed and isinstance(flow.base, Flow):  # which knows how to fit itself
        train, held_out = (_codes(flow, data, of_base=True) for data in (train, held_out))
        return flow.base._training_problem(train, held_out, generator)

    def negative(u, **given):
        return -flow._latent_log_prob(u, training=torch.is_grad_enabled(), **given)

    train, held_out = _codes(flow, train), _codes(flow, held_out)
    parts = flow.low_layers, flow.base
    module = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
    return module, *_mean_problem(flow, negative, train, held_out)


def _codes(flow, data, of_base=False):
    """Latent points of data, on either side of the low layers."""

    @torch.no_grad()
    def code(points, **given):
        u, _ = flow._left_inverse(points, **given)
        return flow.low_layers.inverse(u, **given)[0] if of_base else u

    return None if data is None else data.map(code)


def _place_base(flow, train):
    """Give a default normal law mean and spread of the first latent points that come."""
    if flow._places_base:
        first = Data(train.points, train.context)
        flow._place_base(_codes(flow, first, of_base=True).points)


def _parts(data):
    for rows in torch.arange(len(data)).split(_CHUNK):
        yield data.rows(rows)


def _mean_problem(flow, value, train, held_out):
    """Loss and validation score that are means of a function of points."""

    def loss(rows, step):
        points, given = train.rows(rows.to(flow.device))
        return value(points, **given).mean()

    @torch.no_grad()
    def validate():
        parts = (value(points, **given).double().sum() for points, given in _parts(held_out))
        return float(sum(parts)) / len(held_out)

    return loss, validate


class _Watch(nn.Module):
    """Notices that points are no longer reconstructed.

    A module, so that the lowest error so far is a buffer beside the weights: checkpoints
    hold it, and training that goes back takes it back.
    """

    lowest: torch.Tensor

    def __init__(self, points):
        super().__init__()
        flat = points.flatten(1).double()
        self.spread = float((flat - flat.mean(0)).square().sum(1).mean())
        self.register_buffer("lowest", torch.tensor(math.inf, dtype=torch.float64))

    def allows(self, squared):
        """Whether weights may be kept: likelihood has not begun to trade the error away.

        The objective has no lower bound where the volume collapses, so that it cannot say
        which weights came before.

        Raises
        ------
        Diverged
            For an error above the variance, which the mean of the points would have, and
            twice what it was; or above half of it, and ten times.
        """
        lowest, spread = float(self.lowest), self.spread
        if squared > min(max(2 * lowest, spread), max(10 * lowest, 0.5 * spread)):
            raise Diverged(
                "fit: joint training diverged, the mean squared reconstruction error having "
                f"gone from {lowest:.3g} to {squared:.3g}, where the variance of the points "
                f"is {spread:.3g}; the best weights so far are in place."
            )
        self.lowest.fill_(min(lowest, squared))
        return not squared > max(1.5 * lowest, 0.5 * spread)  # which NaN is not
