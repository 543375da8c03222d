"""The Heisenberg group as R^3 with a left- or right-invariant metric.

Translations have unit Jacobian, so the volume is Lebesgue's. geomstats' exponential is the
group's, not the metric's; normal laws and kernels here are those of the coordinates, which
are normal coordinates of the group at the identity.
"""

import math

import torch
from geomstats.geometry.heisenberg import HeisenbergVectors

from geoflow_plugin import geometry
from geoflow_plugin.spaces.linear import euclidean, register_open_set
from geoflow_plugin.spaces.rotation_vector import InvariantVectorMetric

register_open_set(HeisenbergVectors)


def _at_identity(space, vector, point):
    """Tangent vectors translated to the identity by the inverse of the point."""
    metric = getattr(space.metric, "underlying_metric", space.metric)
    sign = 1 if metric.left else -1
    turn = point[..., 1] * vector[..., 0] - point[..., 0] * vector[..., 1]
    height = vector[..., 2] + sign * turn / 2
    plane = vector[..., :2].expand(*height.shape, 2)
    return torch.cat([plane, height.unsqueeze(-1)], dim=-1)


@geometry.inner_product.register(HeisenbergVectors, InvariantVectorMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    a = _at_identity(space, tangent_vec_a, base_point)
    b = _at_identity(space, tangent_vec_b, base_point)
    return geometry.outer_scale(space) * (a * b).sum(-1)


@geometry.log_volume_element.register(HeisenbergVectors, InvariantVectorMetric)
def _(space, point):
    value = 1.5 * math.log(geometry.outer_scale(space))
    return torch.full(point.shape[:-1], value, dtype=point.dtype, device=point.device)


@geometry.model.register(HeisenbergVectors)
def _(space):
    return geometry.Model(euclidean(3), lambda x: x, lambda z: z, isometric=False)


@geometry.projection.register(HeisenbergVectors)
def _(space, point):
    return point


@geometry.constraint_residual.register(HeisenbergVectors)
def _(space, point):
    return torch.zeros_like(point[..., 0])
