"""Samples of a Moser flow by rejection: what is proposed, and under which envelope."""

import math
from typing import Any

import torch

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import sample_from, seeded_sample, takes_context
from geoflow_plugin.distributions.conditional_kernels import ConditionalKernelMixture
from geoflow_plugin.distributions.flow import Flow
from geoflow_plugin.distributions.kernel_mixture import KernelMixture
from geoflow_plugin.distributions.mixture import Mixture
from geoflow_plugin.distributions.rejection import (
    conditional_rejection_sample,
    rejection_sample,
)
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.networks import ConditionalSourceField, SourceField

__all__ = ["RejectionSampled"]

_PILOTS = 64  # proposals for each of many contexts, from which an envelope is guessed


class RejectionSampled(Flow):
    """A Moser flow as far as it is sampled: the part of ``MoserFlow`` that draws."""

    # what the rest of it has
    field: Any
    _normalizer: Any
    _conditional_normalizer: Any
    _ratio_at: Any
    _base_score: Any
    _positive_part: Any

    def _draw(self, n, generator, context=None):
        return self.sample_with_count(n, generator, context)[0], None

    @torch.no_grad()
    def sample_with_count(self, n, generator=None, context=None):
        """Exact samples of the reported density, and how many proposals they took.

        By rejection (``rejection_sample``) from the base, helped by kernels on the
        sources of the field. Given contexts, each has an envelope of its own, guessed from
        its own proposals and raised where they exceed it.

        Parameters
        ----------
        n : int
        generator : torch.Generator, optional
        context : torch.Tensor, shape=(n, k), optional

        Returns
        -------
        x : torch.Tensor, shape=(n, *space.shape)
        n_proposals : int
            Each cost one evaluation of the field with its divergence.
        """
        check_counts(0, n=n)
        given = self._given(context, n)
        if not n:
            return self._anchor.new_zeros(0, *self.space.shape), 0
        if given:
            return self._conditional_sample(given["context"], generator)
        proposal = self._proposal()
        return rejection_sample(
            n,
            proposal,
            lambda x: self._log_over(proposal, x),
            self._log_envelope(proposal),
            generator,
        )

    def _conditional_sample(self, context, generator):
        proposal = self._proposal()
        distinct, group = torch.unique(context, dim=0, return_inverse=True)
        return conditional_rejection_sample(
            group,
            lambda rows: sample_from(proposal, len(rows), generator, context[rows]),
            lambda x, rows: self._log_over(proposal, x, context[rows]),
            self._log_envelopes(proposal, distinct),
            generator,
        )

    def _proposal(self):
        """The base, helped by kernels on the sources of the field where it has any."""
        cache = self._normalizer.renewed()
        if "proposal" not in cache:
            proposal = self.base
            if isinstance(self.field, SourceField) and self._has_chord_kernels():
                proposal = Mixture(
                    self.space, [self.base, self._source_kernels()], weights=[0.3, 0.7]
                ).to(self.device, self.dtype)
            cache["proposal"] = proposal  # at once: other threads look
        return cache["proposal"]

    def _has_chord_kernels(self):
        """Whether kernels fall with the distance in the array, as sources do."""
        if takes_context(self.base):  # which may itself be where the data are
            return False
        x = self._normalizer.nodes(0)[0][:2]
        if geometry.embed(self.space, x) is not x:
            return False
        try:
            geometry.metric_scale(self.space)
            geometry.log_kernel_normalizer(self.space, x.new_ones(1))
            squared, log_volume = geometry.kernel_separation(self.space, x, x)
            chord = geometry.squared_chord(self.space, x, x)
        except TypeError:
            return False
        return log_volume is None and torch.allclose(squared, chord)

    def _source_kernels(self):
        # A t law with two degrees of freedom is a normal law whose precision is
        # exponential: kernels at a geometric grid of it cover centre and tail.
        level = 3.0 ** torch.arange(-7, 2, dtype=torch.float64)
        share = (-level / math.sqrt(3)).exp() - (-level * math.sqrt(3)).exp()
        scale = math.sqrt(geometry.metric_scale(self.space))
        free = self.field.centers.detach()
        centers = geometry.projection(self.space, free)
        # a centre that left the space looks, from there, like a wider source
        gap = (free - centers).flatten(1).square().sum(-1)
        widths = scale * (self.field.widths.detach().square() + gap).sqrt()
        widths = (0.5 / level).sqrt().to(widths)[:, None] * widths
        widths = widths.clamp_max(4.0)
        if isinstance(self.field, ConditionalSourceField):
            shares = self.field.log_shares, self.field.context_dim
            return ConditionalKernelMixture(
                self.space, centers, widths, share.to(widths), *shares
            )
        weights = self.field.shares.detach().clamp_min(1e-12)
        weights = share.to(weights)[:, None] * weights
        return KernelMixture(self.space, centers, widths, weights)

    def _log_over(self, proposal, x, context=None):
        """Log of the unnormalised positive part of the model over the proposal."""
        given = [] if context is None else [context]
        ratio = self._ratio_at(x, self._base_score(x, *given).detach(), *given)
        value = self._positive_part(ratio).log()
        if proposal is not self.base:
            given = given if takes_context(proposal) else []
            value = value + self._base_log_prob(x, context) - proposal._log_prob(x, *given)
        return value

    def _log_envelope(self, proposal):
        if "log_envelope" not in self._normalizer.cache:
            nodes, _ = self._normalizer.nodes(0)
            own = seeded_sample(proposal, 2048, 1, self.device)
            x = torch.cat([nodes[:1024], own])
            peak = float(self._log_over(proposal, x).max())
            self._normalizer.cache["log_envelope"] = peak + math.log(1.2)
        return self._normalizer.cache["log_envelope"]

    def _log_envelopes(self, proposal, contexts):
        """A first guess for each context: from its own proposals, and nodes of the base."""
        peaks = []
        for part in contexts.split(256):
            given = part.repeat_interleave(_PILOTS, 0)
            x = seeded_sample(proposal, len(given), 1, self.device, given)
            own = self._log_over(proposal, x, given).reshape(len(part), -1)
            if proposal is self.base and not takes_context(self.base):
                nodes = self._conditional_normalizer.nodes(0)
                ratio = self._conditional_normalizer.ratios(part, *nodes)
                own = torch.cat([own, self._positive_part(ratio).log()], dim=1)
            peaks.append(own.amax(1))
        return torch.cat(peaks) + math.log(1.2)
