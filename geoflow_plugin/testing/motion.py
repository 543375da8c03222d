"""Laws of exponentials, logarithms, distances and charts, likewise."""

import math

import torch
from torch.func import vmap

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import score
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.geometry.forward_mode import jvp
from geoflow_plugin.testing.case import first_order_error
from geoflow_plugin.testing.figures import size, worst


def _exponential_follows_tangents(case):
    return first_order_error(geometry.exp, case)


def _exponential_stays_on_the_space(case):
    _, _, near = case.near
    return worst(geometry.constraint_residual(case.space, near) / size(near))


def _geodesics_keep_their_speed(case):
    x, vector, _ = case.near
    middle, velocity = case.along
    before = geometry.inner_product(case.space, vector, vector, x).sqrt()
    after = geometry.inner_product(case.space, velocity, velocity, middle).sqrt()
    return worst(after - before) / case.unit


def _geodesics_go_on_as_geodesics(case):
    x, _, end = case.near
    middle, velocity = case.along
    other = geometry.exp(case.space, velocity / 2, middle)
    return worst((end - other).flatten(1).norm(dim=1) / size(x))


def _logarithm_undoes_the_exponential(case):
    x, vector, near = case.near
    back = geometry.log(case.space, near, x)
    return worst((back - vector).flatten(1).norm(dim=1) / size(x))


def _distance_is_the_length_of_the_logarithm(case):
    x, vector, near = case.near
    length = geometry.inner_product(case.space, vector, vector, x).sqrt()
    forth = geometry.dist(case.space, x, near)
    back = geometry.dist(case.space, near, x)
    error = torch.maximum((forth - length).abs(), (forth - back).abs())
    return worst(error) / case.unit


def _distance_is_symmetric(case):
    forth = geometry.dist(case.space, case.points, case.others)
    back = geometry.dist(case.space, case.others, case.points)
    found = forth.isfinite() & back.isfinite()  # iterations may end without one
    return worst(((forth - back) / (case.unit + forth))[found])


def _chart_is_undone(case):
    coordinates, log_det = geometry.chart(case.space, case.points)
    back, inverse_log_det = geometry.chart_inverse(case.space, coordinates)
    error = (back - case.points).flatten(1).norm(dim=1) / size(case.points)
    return max(worst(error), worst(log_det + inverse_log_det))


def _chart_has_the_volume_of_the_metric(case):
    coordinates, _ = geometry.chart(case.space, case.points)
    x, log_det = geometry.chart_inverse(case.space, coordinates)

    def along(direction):
        return jvp(
            lambda z: geometry.chart_inverse(case.space, z)[0],
            (coordinates,),
            (direction.expand_as(coordinates),),
        )[1]

    eye = torch.eye(geometry.dim(case.space)).to(coordinates)
    frame = vmap(along, out_dims=1)(eye).flatten(2)  # (n, dim, size)
    basis = geometry.tangent_basis(case.space, x).flatten(2)
    flat = torch.linalg.slogdet(frame @ basis.mT)[1]
    return worst(flat + geometry.log_volume_element(case.space, x) - log_det)


def _derivatives_are_finite_at_the_origin(case):
    space = case.space
    x = geometry.origin(space).to(case.points).expand_as(case.points[:2])
    functions = [
        lambda y: geometry.log_volume_element(space, y),
        lambda y: geometry.dist(space, y, x),
        lambda y: geometry.log(space, y, x).flatten(1).sum(1),
    ]
    if not geometry.is_compact(space):
        functions.append(case.law._log_prob)
    for function in functions:
        try:
            slope = score(function, x)
        except UnsupportedError:
            continue
        if not bool(slope.isfinite().all()):
            return math.inf
    return 0.0


LAWS = [
    _exponential_stays_on_the_space,
    _exponential_follows_tangents,
    _geodesics_keep_their_speed,
    _geodesics_go_on_as_geodesics,
    _logarithm_undoes_the_exponential,
    _distance_is_the_length_of_the_logarithm,
    _distance_is_symmetric,
    _chart_is_undone,
    _chart_has_the_volume_of_the_metric,
    _derivatives_are_finite_at_the_origin,
]
