"""Kendall's pre-shape space: centred k x m matrices of unit norm, a sphere in disguise."""

import torch
from geomstats.geometry.pre_shape import PreShapeMetric, PreShapeSpace

from geoflow_plugin import geometry
from geoflow_plugin.spaces.linear import helmert
from geoflow_plugin.spaces.sphere import sphere


@geometry.frobenius_scale.register(PreShapeMetric)
def _(metric):
    return 1.0


def _to_sphere(space, array):
    """Coordinates (..., m (k - 1)) of centred matrices; an isometry."""
    return (helmert(space.k_landmarks, array).mT @ array).flatten(-2)


def _from_sphere(space, array):
    rows = array.unflatten(-1, (space.k_landmarks - 1, space.ambient_dim))
    return helmert(space.k_landmarks, array) @ rows


@geometry.model.register(PreShapeSpace, geometry.FlatMetric)
def _sphere_model(space):
    return geometry.Model(
        sphere(space.dim),
        lambda x: _to_sphere(space, x),
        lambda z: _from_sphere(space, z),
    )


@geometry.is_compact.register(PreShapeSpace)
def _(space):
    return True


@geometry.projection.register(PreShapeSpace)
def _(space, point):
    centered = point - point.mean(-2, keepdim=True)
    return centered / torch.linalg.matrix_norm(centered, keepdim=True)


@geometry.to_tangent.register(PreShapeSpace)
def _(space, vector, base_point):
    centered = vector - vector.mean(-2, keepdim=True)
    return centered - (base_point * centered).sum((-2, -1), keepdim=True) * base_point


@geometry.tangent_basis.register(PreShapeSpace)
def _(space, base_point):
    found = _sphere_model(space)
    return found.from_model(geometry.tangent_basis(found.space, found.to_model(base_point)))


@geometry.constraint_residual.register(PreShapeSpace)
def _(space, point):
    defect = (torch.linalg.matrix_norm(point) - 1).abs()
    return defect + point.mean(-2).abs().amax(-1)
