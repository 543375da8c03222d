"""Solvers on a space: torchdiffeq in the ambient array, projected onto the space."""

import torch
from torchdiffeq import odeint

from geoflow_plugin import geometry

__all__ = ["integrate"]


def integrate(space, velocity, point, start, end, *, rtol=1e-5, atol=1e-6,
              method="dopri5"):
    """Move points along a time-dependent tangent field, adaptively.

    The field is extended off the space as its value at the projection, which keeps the
    exact solution on it; the numerical one is projected at the end.

    Parameters
    ----------
    space : geomstats Manifold
    velocity : callable
        (t, points) to (tangent vectors, growth), the growth being the rate, shape=(n,),
        of a scalar that is carried along.
    point : torch.Tensor, shape=(n, *space.shape)
    start, end : float
    rtol, atol : float
    method : str
        Of torchdiffeq.

    Returns
    -------
    point : torch.Tensor, shape=(n, *space.shape)
    growth : torch.Tensor, shape=(n,)
        Integral of the growth.
    n_evaluations : int
        Of ``velocity``, each on the whole batch.
    """
    n_evaluations = 0

    def rate(t, state):
        nonlocal n_evaluations
        n_evaluations += 1
        return velocity(t, geometry.projection(space, state[0]))

    times = torch.tensor([start, end], dtype=point.dtype, device=point.device)
    state = (point, point.new_zeros(len(point)))
    points, growth = odeint(rate, state, times, rtol=rtol, atol=atol, method=method)
    return geometry.projection(space, points[-1]), growth[-1], n_evaluations
