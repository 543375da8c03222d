"""The classical Runge-Kutta method with a fixed step, on a space."""

import math

from geoflow_plugin import geometry

__all__ = ["onto", "runge_kutta", "step"]


def onto(space, point):
    """Points near the space to points on it; arrays of an open set stay as they are.

    Open sets of coordinates need no projection, and where they have a seam it would jump
    in the middle of a step.
    """
    if geometry.dim(space) == math.prod(space.shape):
        return point
    return geometry.projection(space, point)


def step(space, velocity, point, time, size):
    """One step of order four: new points, the growth on the way, and its doubt, (n,) both.

    The doubt is by how much the midpoint rule differs from Simpson's about the growth.
    Stages are steps in the array, retracted to the space. The field that they see is
    smooth and tangent, so that the retraction costs no order.
    """
    first, growth = velocity(time, point)
    middle = time + size / 2
    second, growth_b = velocity(middle, onto(space, point + size / 2 * first))
    third, growth_c = velocity(middle, onto(space, point + size / 2 * second))
    fourth, growth_d = velocity(time + size, onto(space, point + size * third))
    moved = point + size / 6 * (first + 2 * (second + third) + fourth)
    doubt = size / 6 * (growth - growth_b - growth_c + growth_d)
    growth = size / 6 * (growth + 2 * (growth_b + growth_c) + growth_d)
    return onto(space, moved), growth, doubt


def runge_kutta(space, velocity, point, start, end, n_steps):
    """Move points along a time-dependent tangent field, in equal steps of order four.

    Parameters
    ----------
    space : geomstats Manifold
    velocity : callable
        (t, points) to (tangent vectors, growth), the growth being the rate, shape=(n,),
        of a scalar that is carried along.
    point : torch.Tensor, shape=(n, *space.shape)
    start, end : float
        Backward in time if start > end, which undoes the way forward up to the order.
    n_steps : int

    Returns
    -------
    point : torch.Tensor, shape=(n, *space.shape)
    growth : torch.Tensor, shape=(n,)
        Integral of the growth. Derivatives keep every stage in memory.
    doubt : torch.Tensor, shape=(n,)
        Sum over the steps of the squared difference between two quadratures of the growth,
        Simpson's (the one returned) and the midpoint rule: small where steps are short for
        the field, and large where a learned field makes something of their being long.
    """
    size = (end - start) / n_steps
    total, doubts = 0.0, 0.0
    for k in range(n_steps):
        point, growth, doubt = step(space, velocity, point, start + k * size, size)
        total, doubts = total + growth, doubts + doubt.square()
    return geometry.projection(space, point), total, doubts
