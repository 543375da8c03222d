"""The normalisers Z(c) = 1 + E_nu[rho(r) - r] of a conditional Moser flow, r = r(x, c).

One for each distinct context, on the nodes of ``Normalizer``: all contexts share them, unless
the base is conditional and has its own for each. A context starts with 1024 nodes, which are
doubled until the scatter of their replicates is small, as without context.
"""

import math
import warnings

import torch

from geoflow_plugin.distributions.base import score, seeded_sample, takes_context
from geoflow_plugin.distributions.normalizer import CHUNK, REPLICATES
from geoflow_plugin.networks import ConditionalSourceField
from geoflow_plugin.networks.context import Given, context_dim_of

__all__ = ["ConditionalNormalizer"]

_SIZES = [128, 128, 256]  # nodes of a replicate in the first rounds: those of ``nodes(0)``
_ROUNDS = len(_SIZES) + 5  # and then those of ``nodes(1)`` to ``nodes(5)``
_AT_ONCE = 256  # contexts whose ratios are held at a time
_KEPT = 2**15  # contexts whose normalisers are remembered


class ConditionalNormalizer:
    """Z(c) of a Moser flow for the weights that it has when asked.

    Parameters
    ----------
    flow : MoserFlow
    """

    def __init__(self, flow):
        self.flow = flow

    @property
    def tolerance(self):
        """Of each Z(c); nodes being few for each of many, not that of a single Z."""
        return 10 * self.flow.normalizer_tolerance

    def log_values(self, context):
        """Log Z of each context, (n,); its gradient is that of an estimate of its own."""
        flow = self.flow
        distinct, index = torch.unique(context.detach(), dim=0, return_inverse=True)
        value = self.values(distinct)[:, 0].log().to(flow.dtype)
        parameters = [p for p in flow.parameters() if p.requires_grad]
        if torch.is_grad_enabled() and (parameters or context.requires_grad):
            return _LogNormalizer.apply(self, value, distinct, index, context, *parameters)
        return value[index]

    @torch.no_grad()
    def values(self, distinct):
        """Z, its standard error and the negative mass of contexts, shape=(k, 3)."""
        known = self.flow._normalizer.renewed().setdefault("contexts", {})
        keys = [row.tobytes() for row in distinct.cpu().numpy()]
        new = [i for i, key in enumerate(keys) if key not in known]
        found = dict.fromkeys(keys)
        found.update((key, known[key]) for key in keys if key in known)
        if new:
            values = self.estimate(distinct[new])
            found.update(zip((keys[i] for i in new), values.tolist(), strict=True))
            self._warn(values[:, 1])
            known.update((key, found[key]) for key in keys[-_KEPT:])
            for key in list(known)[: len(known) - _KEPT]:  # the oldest go first
                known.pop(key, None)
        values = torch.tensor([found[key] for key in keys], dtype=torch.float64)
        return values.to(distinct.device)

    def _warn(self, errors):
        above = int((errors > self.tolerance).sum())
        if above:
            warnings.warn(
                f"log_prob: the normalisers of {above} contexts of {len(errors)} have "
                f"standard errors up to {float(errors.max()):.1e}, above {self.tolerance:g}, "
                "ten times normalizer_tolerance; normalizer(context) tells them.",
                stacklevel=2,
            )

    @torch.no_grad()
    def estimate(self, distinct, n_rounds=_ROUNDS):
        """What ``values`` remembers, on as many rounds of nodes as errors ask for."""
        exact = self.flow._normalizer.exact_nodes()
        if exact is not None:
            x, weight = exact
            ratio = self.ratios(distinct, x, torch.zeros_like(x)).double()
            excess = (self.flow._positive_part(ratio) - ratio) @ weight.double()
            negative = (-ratio).clamp_min(0) @ weight.double()
            return torch.stack([1 + excess, torch.zeros_like(excess), negative], dim=1)
        found = torch.zeros(len(distinct), 3, dtype=torch.float64, device=distinct.device)
        mean = found.new_zeros(len(distinct), REPLICATES)
        negative = found.new_zeros(len(distinct))
        rows = torch.arange(len(distinct), device=distinct.device)
        for round_ in range(n_rounds):
            excess, mass = self._round(distinct[rows], round_)
            # every round has as many nodes as all before it
            share = 1.0 if round_ == 0 else 0.5
            mean[rows] = torch.lerp(mean[rows], excess, share)
            negative[rows] = torch.lerp(negative[rows], mass, share)
            error = mean[rows].std(1) / math.sqrt(REPLICATES)
            found[rows] = torch.stack([1 + mean[rows].mean(1), error, negative[rows]], dim=1)
            rows = rows[error > self.tolerance]
            if not len(rows):
                break
        return found

    def _round(self, contexts, round_):
        """Means of rho(r) - r over replicates, (k, 8), and of the negative part, (k,)."""
        own = takes_context(self.flow.base)
        excess, mass = [], []
        for part in contexts.split(1 if own else _AT_ONCE):
            ratio = self.ratios(part, *self.nodes(round_, part if own else None)).double()
            over = self.flow._positive_part(ratio) - ratio
            excess.append(over.reshape(len(part), REPLICATES, -1).mean(2))
            mass.append((-ratio).clamp_min(0).mean(1))
        return torch.cat(excess), torch.cat(mass)

    @torch.no_grad()
    def ratios(self, contexts, x, base_score):
        """1 - A w of each context at each node, shape=(k, n_nodes)."""
        parts = zip(x.split(CHUNK), base_score.split(CHUNK), strict=True)
        return torch.cat([self._block(contexts, *part) for part in parts], dim=1)

    def _block(self, contexts, x, base_score):
        flow, field, sources = self.flow, self.flow.field, 0.0
        if isinstance(field, ConditionalSourceField):
            # linear in the charges: each node is seen once for all contexts
            sources = field.charges(contexts) @ field.responses(x, base_score).mT
            field = field.background
            if field is None:
                return 1 - sources
        if context_dim_of(field) == 0:
            ratio = flow._ratio_of(field, x, base_score)[1]
            return ratio.expand(len(contexts), -1) - sources
        rows = []
        for part in contexts.split(max(1, CHUNK // len(x))):
            points, scores, given = pairs(part, x, base_score)
            ratio = flow._ratio_of(Given(field, given), points, scores)[1]
            rows.append(ratio.reshape(len(part), len(x)))
        return torch.cat(rows) - sources

    def nodes(self, round_, context=None):
        """Nodes of a round, replicate by replicate, with scores of the base."""
        flow, size = self.flow, _size(round_)
        if context is not None:  # (1, dim): the same seeds for every context
            given = context.expand(REPLICATES * size, -1)
            x = seeded_sample(flow.base, len(given), round_, flow.device, given)
            return x, score(lambda y: flow._base_log_prob(y, given), x).detach()
        if round_ >= len(_SIZES):
            return flow._normalizer.nodes(round_ - len(_SIZES) + 1)
        start = sum(_SIZES[:round_])
        return tuple(
            column.unflatten(0, (REPLICATES, -1))[:, start : start + size].flatten(0, 1)
            for column in flow._normalizer.nodes(0)
        )


def _size(round_):
    return _SIZES[round_] if round_ < len(_SIZES) else 512 * 2 ** (round_ - len(_SIZES))


def pairs(contexts, x, base_score):
    """Each node with each context, contexts outermost: points, scores, contexts."""
    k, n = len(contexts), len(x)
    tile = [1] * (x.ndim - 1)
    return x.repeat(k, *tile), base_score.repeat(k, *tile), contexts.repeat_interleave(n, 0)


class _LogNormalizer(torch.autograd.Function):
    """Known values, with gradients that are estimated a few contexts at a time.

    Nodes are paired with contexts in chunks both ways, so that memory does not grow with
    their number.
    """

    @staticmethod
    def forward(ctx, normalizer, value, distinct, index, context, *parameters):
        ctx.normalizer = normalizer
        ctx.save_for_backward(value, distinct, index, context, *parameters)
        return value[index]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        normalizer, flow = ctx.normalizer, ctx.normalizer.flow
        value, contexts, index, context, *parameters = ctx.saved_tensors
        per_row = ctx.needs_input_grad[4]
        if per_row:  # rows of one context may come from different places
            contexts, value, weight = context.detach(), value[index], grad
        else:
            weight = torch.zeros_like(value).index_add(0, index, grad)
        weight = weight / value.exp()
        total = [torch.zeros_like(p) for p in parameters]
        to_context = torch.zeros_like(contexts)
        own, exact = takes_context(flow.base), flow._normalizer.exact_nodes()
        nodes = None
        if exact is not None:
            nodes, share = (exact[0], 0 * exact[0]), exact[1]
        elif not own:
            nodes = normalizer.nodes(1)
        size = 1 if nodes is None else max(1, CHUNK // len(nodes[0]))
        for rows in torch.arange(len(contexts), device=contexts.device).split(size):
            given = contexts[rows].requires_grad_(per_row)
            found = normalizer.nodes(1, contexts[rows]) if nodes is None else nodes
            if exact is None:
                share = found[0].new_full((len(found[0]),), 1 / len(found[0]))
            scale = (weight[rows, None] * share).flatten()
            wanted = [*parameters, given] if per_row else parameters
            for part in torch.arange(len(scale), device=given.device).split(CHUNK):
                with torch.enable_grad():
                    paired = pairs(given, *found)
                    ratio = flow._ratio(*(column[part] for column in paired))
                    excess = (scale[part] * (flow._positive_part(ratio) - ratio)).sum()
                    gradient = torch.autograd.grad(excess, wanted, allow_unused=True)
                for t, g in zip(total, gradient, strict=False):
                    t += 0 if g is None else g
                if per_row and gradient[-1] is not None:
                    to_context[rows] += gradient[-1]
        return None, None, None, None, to_context if per_row else None, *total
