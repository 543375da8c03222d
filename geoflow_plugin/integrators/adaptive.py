"""Solvers on a space: torchdiffeq in the ambient array, projected onto the space."""

import torch
from torch import nn
from torchdiffeq import odeint_adjoint

from geoflow_plugin import geometry
from geoflow_plugin.integrators.runge_kutta import onto

__all__ = ["integrate"]


def integrate(
    space,
    velocity,
    point,
    start,
    end,
    *,
    rtol=1e-5,
    atol=1e-6,
    method="dopri5",
    max_steps=10_000,
):
    """Move points along a time-dependent tangent field, adaptively.

    The field is extended off the space as its value at the projection, which keeps the
    exact solution on it; the numerical one is projected at the end. Gradients come from
    the adjoint equation, so that memory does not grow with the number of steps.

    Parameters
    ----------
    space : geomstats Manifold
    velocity : nn.Module
        (t, points) to (tangent vectors, growth), the growth being the rate, shape=(n,),
        of a scalar that is carried along.
    point : torch.Tensor, shape=(n, *space.shape)
    start, end : float
    rtol, atol : float
    method : str
        Of torchdiffeq.
    max_steps : int
        Bound on the solver's steps.

    Returns
    -------
    point : torch.Tensor, shape=(n, *space.shape)
    growth : torch.Tensor, shape=(n,)
        Integral of the growth.
    n_evaluations : int
        Of ``velocity``, each on the whole batch.

    Raises
    ------
    RuntimeError
        If the solver needs more than ``max_steps`` steps.
    """
    rate = _Rate(space, velocity)
    times = torch.tensor([start, end], dtype=point.dtype, device=point.device)
    state = (point, point.new_zeros(len(point)))
    try:
        points, growth = odeint_adjoint(
            rate,
            state,
            times,
            rtol=rtol,
            atol=atol,
            method=method,
            options={"max_num_steps": max_steps},
        )
    except AssertionError as error:  # how torchdiffeq says that it gave up
        raise RuntimeError(
            f"integrate: gave up after {rate.n_evaluations} evaluations ({error}); the "
            "field is too stiff for these tolerances. Loosen rtol and atol."
        ) from error
    return geometry.projection(space, points[-1]), growth[-1], rate.n_evaluations


class _Rate(nn.Module):
    """Right-hand side of the equation, which counts its evaluations."""

    def __init__(self, space, velocity):
        super().__init__()
        self.space, self.velocity, self.n_evaluations = space, velocity, 0

    def forward(self, t, state):
        self.n_evaluations += 1
        return self.velocity(t, onto(self.space, state[0]))
