"""Categorical and multinomial laws: the open simplex under the Fisher-Rao metric.

Square roots of probabilities are unit vectors, and the metric is that of the sphere times
four and the number of draws: geodesics are arcs of great circles, which leave the orthant
in finite time. Normal laws, kernels and charts are therefore those of the log-ratios.
"""

import math

import torch
from geomstats.information_geometry.multinomial import (
    MultinomialDistributions,
    MultinomialMetric,
)

from geoflow_plugin import geometry
from geoflow_plugin.spaces.euclidean import euclidean
from geoflow_plugin.spaces.information import into_orthant, outside_orthant
from geoflow_plugin.spaces.linear import helmert
from geoflow_plugin.spaces.sphere import sphere


@geometry.projection.register(MultinomialDistributions)
def _(space, point):
    point = into_orthant(point)
    return point / point.sum(-1, keepdim=True)


@geometry.to_tangent.register(MultinomialDistributions)
def _(space, vector, base_point):
    return vector - vector.mean(-1, keepdim=True)


@geometry.tangent_basis.register(MultinomialDistributions)
def _(space, base_point):
    basis = helmert(space.dim + 1, base_point).mT
    return basis.expand(*base_point.shape[:-1], *basis.shape)


@geometry.constraint_residual.register(MultinomialDistributions)
def _(space, point):
    return torch.maximum(outside_orthant(point), (point.sum(-1) - 1).abs())


@geometry.inner_product.register(MultinomialDistributions, MultinomialMetric)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    value = (tangent_vec_a * tangent_vec_b / base_point).sum(-1)
    return geometry.outer_scale(space) * space.n_draws * value


@geometry.log_volume_element.register(MultinomialDistributions, MultinomialMetric)
def _(space, point):
    scale = geometry.outer_scale(space) * space.n_draws
    log_det = space.dim * math.log(scale) - math.log(space.dim + 1) - point.log().sum(-1)
    return 0.5 * log_det


@geometry.model.register(MultinomialDistributions)
def _(space):
    return geometry.Model(
        euclidean(space.dim),
        lambda x: x.log() @ helmert(space.dim + 1, x),
        lambda z: (z @ helmert(space.dim + 1, z).mT).softmax(-1),
        isometric=False,
    )


# Geodesics ----------------------------------------------------------------------------


@geometry.exp.register(MultinomialDistributions, MultinomialMetric)
def _(space, tangent_vec, base_point):
    root = base_point.sqrt()
    image = geometry.exp(sphere(space.dim), tangent_vec / (2 * root), root)
    # signed squares: what leaves the orthant leaves the simplex, where geomstats folds it
    return image * image.abs()


@geometry.log.register(MultinomialDistributions, MultinomialMetric)
def _(space, point, base_point):
    root = base_point.sqrt()
    return 2 * root * geometry.log(sphere(space.dim), point.sqrt(), root)


@geometry.dist.register(MultinomialDistributions, MultinomialMetric)
def _(space, point_a, point_b):
    angle = geometry.dist(sphere(space.dim), point_a.sqrt(), point_b.sqrt())
    return 2 * math.sqrt(geometry.outer_scale(space) * space.n_draws) * angle
