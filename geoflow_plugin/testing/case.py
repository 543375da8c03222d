"""What laws are tried on."""

import functools
import math

import torch

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.distributions.checks import as_device
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
from geoflow_plugin.geometry.forward_mode import jvp
from geoflow_plugin.testing.figures import worst


class Case:
    """A space with points, tangent vectors and functions to try on them."""

    def __init__(self, space, n, seed, dtype, device):
        self.space = space
        device = as_device(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        # the unit of lengths, so that a space passes whatever the scale of its metric
        self.unit = math.sqrt(geometry.outer_scale(space))
        compact = geometry.is_compact(space)
        law = (
            Uniform(space, dtype=dtype)
            if compact
            else WrappedNormal(space, scale=0.5 * self.unit, dtype=dtype)
        )
        self.law = law.to(device)
        self.points, self.others = self.law.sample(2 * n, generator=self.generator).split(n)
        size = geometry.embed(space, self.points[:1]).numel()
        weight = torch.randn(4, size, generator=self.generator, device=device, dtype=dtype)
        self.weight = weight / weight.norm(dim=1, keepdim=True)
        # in one dimension, nothing else tells the four waves apart
        self.phase = torch.arange(4).to(weight)

    def potential(self, x):
        """A bounded smooth function of points as ``geometry.embed`` shows them."""
        return (x.flatten(1) @ self.weight.mT + self.phase).sin() @ self.weight.new_tensor(
            [1, -2, 1, 2]
        )

    def potential_at(self, x):
        """The same as a function of arrays."""
        return self.potential(geometry.embed(self.space, x))

    def field(self, x):
        """A bounded smooth field of ambient vectors, likewise."""
        return ((x.flatten(1) @ self.weight.mT + self.phase).cos() @ self.weight).reshape(
            x.shape
        )

    def tangent(self, x):
        """The tangent vectors of ``field``."""
        return value_and_divergence(self.space, self.field, x)[0]

    @functools.cached_property
    def near(self):
        """Points, tangent vectors of 0.1 units or less, and where they lead.

        Geodesics of a metric that is not complete may leave the space; nine in ten must not.
        """
        x, vector = self.points, self.tangent(self.points)
        length = geometry.inner_product(self.space, vector, vector, x).sqrt()
        short = 0.1 * self.unit
        shrink = (short / length.clamp_min(short)).reshape(-1, *[1] * (vector.ndim - 1))
        vector = vector * shrink
        end = geometry.exp(self.space, vector, x)
        stays = geometry.belongs(self.space, end)
        if float(stays.double().mean()) < 0.9:
            stays = torch.ones_like(stays)
        return x[stays], vector[stays], end[stays]

    @functools.cached_property
    def along(self):
        """Points and velocities half way along these geodesics."""
        x, vector, _ = self.near
        half = x.new_full((len(x), *[1] * (x.ndim - 1)), 0.5)
        return jvp(
            lambda t: geometry.exp(self.space, t * vector, x),
            (half,),
            (torch.ones_like(half),),
        )

    @property
    def finite_atol(self):
        """What rounding may leave, relative to sizes of order one."""
        return 1e-6 if self.points.dtype == torch.float64 else 5e-3


def first_order_error(function, case):
    """How far a retraction is from one, by what a curvature of 100 would bend it."""
    step = 1e-3 if case.points.dtype == torch.float64 else 1e-2
    vector = case.tangent(case.points)
    moved = function(case.space, step * vector, case.points)
    error = (moved - case.points - step * vector).flatten(1).norm(dim=1)
    length = vector.flatten(1).norm(dim=1).clamp_min(1e-3)
    curvature = error / (step * length).square()
    # what rounding may do is allowed for
    return worst((curvature - 100).clamp_min(0) * (error > case.finite_atol * step).to(error))
