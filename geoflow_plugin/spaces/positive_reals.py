"""Positive reals under dx^2 / x^2: the line, by the logarithm."""

import math

import torch
from geomstats.geometry.positive_reals import PositiveReals, PositiveRealsMetric

from geoflow_plugin import geometry
from geoflow_plugin.spaces.euclidean import euclidean


@geometry.model.register(PositiveReals, PositiveRealsMetric)
def _(space):
    return geometry.Model(euclidean(1), torch.log, torch.exp)


@geometry.is_compact.register(PositiveReals)
def _(space):
    return False


@geometry.projection.register(PositiveReals)
def _(space, point):
    return point.clamp_min(torch.finfo(point.dtype).eps ** 2)


@geometry.to_tangent.register(PositiveReals)
def _(space, vector, base_point):
    return vector


@geometry.tangent_basis.register(PositiveReals)
def _(space, base_point):
    return torch.ones_like(base_point).unsqueeze(-2)


@geometry.constraint_residual.register(PositiveReals)
def _(space, point):
    value = point[..., 0]
    return torch.where(value > 0, 0.0, 1 - value)


@geometry.inner_product.register(PositiveReals, PositiveRealsMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    product = tangent_vec_a / base_point * (tangent_vec_b / base_point)
    return geometry.outer_scale(space) * product[..., 0]


@geometry.sharp.register(PositiveReals, PositiveRealsMetric)
def _(space, covector, base_point):
    return base_point.square() * covector / geometry.outer_scale(space)


@geometry.log_volume_element.register(PositiveReals, PositiveRealsMetric)
def _(space, point):
    return 0.5 * math.log(geometry.outer_scale(space)) - point[..., 0].log()
