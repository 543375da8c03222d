"""The normaliser of a Moser flow: Z = 1 + E_nu[rho(r) - r], and its gradient.

Estimated on nodes of the base in independent replicates, whose scatter is the error, and
cached for the flow's weights; exact where finitely many values make a density.
"""

import hashlib
import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import score, seeded_sample
from geoflow_plugin.distributions.uniform import Uniform

__all__ = ["CHUNK", "REPLICATES", "Normalizer", "in_parts"]

REPLICATES = 8  # independent node sets, whose scatter is the normaliser's error
CHUNK = 4096  # points whose divergence is taken at a time


class Normalizer:
    """Z of a Moser flow for the weights that it has when asked.

    Attributes
    ----------
    cache : dict
        What is known for these weights; others start an empty one.
    """

    def __init__(self, flow):
        self.flow = flow
        self.cache = {}

    def log_value(self):
        """Log Z as a tensor whose value is cached and whose gradient is the estimate's."""
        flow, cache = self.flow, self.state()
        value = flow._anchor.new_tensor(math.log(cache["normalizer"]))
        parameters = [p for p in flow.parameters() if p.requires_grad]
        if not (torch.is_grad_enabled() and parameters):
            return value
        if "gradient" not in cache:
            cache["gradient"] = self._gradient(parameters, cache["normalizer"])
        linear = sum((g * p).sum() for g, p in zip(cache["gradient"], parameters, strict=True))
        return value + linear - linear.detach()

    def _gradient(self, parameters, normalizer):
        flow = self.flow
        exact = self.exact_nodes()
        x, base_score = self.nodes(1) if exact is None else (exact[0], 0 * exact[0])
        share = x.new_full((len(x),), 1 / len(x)) if exact is None else exact[1]
        total = [torch.zeros_like(p) for p in parameters]
        with torch.enable_grad():
            parts = zip(*in_parts(x, base_score), share.split(CHUNK), strict=True)
            for *part, weight in parts:
                ratio = flow._ratio(*part)
                excess = (weight * (flow._positive_part(ratio) - ratio)).sum()
                gradient = torch.autograd.grad(excess, parameters, allow_unused=True)
                for t, g in zip(total, gradient, strict=True):
                    t += 0 if g is None else g
        return [t / normalizer for t in total]

    @torch.no_grad()
    def state(self):
        """Z, its error and the negative mass, for these weights."""
        cache = self.renewed()
        if "normalizer" not in cache:
            exact = self.exact_nodes()
            found = self._estimate() if exact is None else self._integrate(*exact)
            names = "normalizer", "standard_error", "negative_mass"
            cache |= dict(zip(names, found, strict=True))
        return cache

    def renewed(self):
        """The cache, emptied of all but nodes if it belongs to other weights."""
        fingerprint = self._fingerprint()
        if self.cache.get("fingerprint") != fingerprint:
            nodes = self.cache.get("nodes", {})
            self.cache = {"fingerprint": fingerprint, "nodes": nodes}
        return self.cache

    def exact_nodes(self):
        """Points and shares of the uniform law that integrate the ratio exactly, or None."""
        flow = self.flow
        if not isinstance(flow.base, Uniform):
            return None
        return geometry.uniform_quadrature(flow.space, flow._anchor)

    def _integrate(self, x, weight):
        flow = self.flow
        ratio, weight = flow._ratio_at(x, torch.zeros_like(x)).double(), weight.double()
        excess = (weight * (flow._positive_part(ratio) - ratio)).sum()
        return 1 + float(excess), 0.0, float((weight * (-ratio).clamp_min(0)).sum())

    def _estimate(self):
        """Nodes are doubled until the scatter of their replicates is small."""
        flow = self.flow
        means, negative, doublings = [], [], 0
        while True:
            ratio = flow._ratio_at(*self.nodes(doublings)).double()
            excess = flow._positive_part(ratio) - ratio
            means.append(excess.reshape(REPLICATES, -1).mean(1))
            negative.append((-ratio).clamp_min(0).mean())
            # every round has as many nodes as all before it
            sizes = torch.tensor([2.0 ** max(0, k - 1) for k in range(len(means))])
            weight = (sizes / sizes.sum()).to(ratio)
            replicates = (weight[:, None] * torch.stack(means)).sum(0)
            error = float(replicates.std() / math.sqrt(REPLICATES))
            doublings += 1
            if error <= flow.normalizer_tolerance or doublings > 5:
                break
        mass = float((weight * torch.stack(negative)).sum())
        return 1 + float(replicates.mean()), error, mass

    def _fingerprint(self):
        """Digest of every weight, so that no way of changing one goes unnoticed."""
        flow = self.flow
        return _digest(flow), str(flow.device), flow.dtype

    def nodes(self, doublings):
        """Fixed points of the base law, in equal independent replicates, with scores."""
        flow = self.flow
        nodes = self.cache.setdefault("nodes", {})
        key = (doublings, str(flow.device), flow.dtype, _digest(flow.base))
        if key not in nodes:
            if any(k[3] != key[3] for k in nodes):
                nodes.clear()
            size = 512 * 2 ** max(0, doublings - 1)
            x = torch.cat(
                [
                    self._node_set(size, 100 * doublings + replicate)
                    for replicate in range(REPLICATES)
                ]
            )
            base_score = torch.cat(
                [score(flow._base_log_prob, p).detach() for p in x.split(CHUNK)]
            )
            nodes[key] = x, base_score
        return nodes[key]

    def _node_set(self, n, seed):
        flow = self.flow
        if isinstance(flow.base, Uniform):
            return geometry.quasi_uniform(flow.space, n, seed, flow.device, flow.dtype)
        return seeded_sample(flow.base, n, seed, flow.device)


def in_parts(*columns):
    """Points, scores of the base and perhaps contexts, in chunks."""
    return tuple(column.split(CHUNK) for column in columns)


def _digest(module):
    digest = hashlib.blake2b(digest_size=16)
    for tensor in module.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
