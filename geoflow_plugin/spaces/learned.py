"""Learned submanifolds of R^D as geomstats spaces: coordinates, and the pullback metric.

They are ordinary ``ImmersedSet``s under geomstats' pytorch backend, on which its exp, log,
geodesics and Fréchet means run. Derivatives are taken here, all points at a time and in
forward mode, where geomstats would loop over points and entries of a Hessian.
"""

import warnings

import torch
from geomstats.geometry.base import ImmersedSet
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.pullback_metric import PullbackMetric
from geomstats.numerics.geodesic import ExpODESolver, LogSolver
from geomstats.numerics.ivp import GSIVPIntegrator
from torch.func import vmap

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError, open_function
from geoflow_plugin.geometry.forward_mode import jvp
from geoflow_plugin.spaces.euclidean import euclidean

__all__ = ["LearnedManifold", "centered_chart"]


@open_function
def centered_chart(space, center):
    """Coordinates about a point: maps of points (n, *shape) to (n, dim), and back.

    The chart of the space (``geometry.chart``) if it has one, else normal coordinates,
    which cover what the exponential does not fold.
    """
    try:
        geometry.chart(space, center[None])
        return (
            lambda point: geometry.chart(space, point)[0],
            lambda coordinates: geometry.chart_inverse(space, coordinates)[0],
        )
    except UnsupportedError:
        basis = geometry.tangent_basis(space, center[None])[0].flatten(1)

        def coordinates(point):
            tangent_vec = geometry.log(space, point, center.expand(point.shape))
            return tangent_vec.flatten(1) @ basis.mT

        def point(coordinates):
            tangent_vec = (coordinates @ basis).reshape(-1, *space.shape)
            return geometry.exp(space, tangent_vec, center.expand(tangent_vec.shape))

        return coordinates, point


@centered_chart.register(Hypersphere)
def _(space, center):
    if space.dim == 1:
        return _angle(center)
    # stereographic, from the antipode, which is all that they leave out
    basis = geometry.tangent_basis(space, center[None])[0]

    def coordinates(point):
        return 2 * (point @ basis.mT) / (1 + point @ center).unsqueeze(-1)

    def point(coordinates):
        squared = coordinates.square().sum(-1, keepdim=True)
        return ((4 - squared) * center + 4 * coordinates @ basis) / (4 + squared)

    return coordinates, point


def _angle(center):
    """Counterclockwise from a point of the circle, (n, 2) to (n, 1), and back."""
    frame = torch.stack([center, torch.stack([-center[1], center[0]])])

    def coordinates(point):
        cosine, sine = (point @ frame.mT).unbind(-1)
        return torch.atan2(sine, cosine).unsqueeze(-1)

    def point(coordinates):
        return torch.cat([coordinates.cos(), coordinates.sin()], dim=-1) @ frame

    return coordinates, point


class LearnedManifold(ImmersedSet):
    """The image of a latent space under an injective map, in coordinates of that space.

    Points are coordinates (..., dim); ``immersion`` shows them in R^D, ``projection`` takes
    points of R^D to coordinates. Coordinates are those of a ``centered_chart``: angles on
    circles and tori, whose immersion goes around; stereographic on spheres of two dimensions
    and more, whose antipode of the centre they miss.

    Parameters
    ----------
    latent_space : geomstats Manifold
    ambient_dim : int
        D.
    embedding : callable
        Latent points (n, *shape) to points (n, D), differentiable in float64.
    left_inverse : callable
        Points (n, D) to latent points.
    draw : callable, optional
        Number to random latent points, for ``random_point``.
    center : torch.Tensor, shape=latent_space.shape, optional
        Latent point at which the coordinates are centred. Default: the origin.

    Raises
    ------
    UnsupportedError
        Unless geomstats runs on its pytorch backend.
    """

    def __init__(
        self, latent_space, ambient_dim, embedding, left_inverse, draw=None, center=None
    ):
        self._euclidean = euclidean(ambient_dim)
        if not isinstance(self._euclidean.basis, torch.Tensor):  # of geomstats' backend
            raise UnsupportedError(
                "manifold: geomstats differentiates a learned map under its pytorch backend "
                "alone; set the environment variable GEOMSTATS_BACKEND=pytorch before "
                "geomstats is imported."
            )
        self.latent_space = latent_space
        self._embedding, self._left_inverse, self._draw = embedding, left_inverse, draw
        center = geometry.origin(latent_space) if center is None else center
        self._coordinates, self._point = centered_chart(latent_space, center.double())
        super().__init__(geometry.dim(latent_space))

    @staticmethod
    def default_metric():
        """The metric of R^D, pulled back."""
        return LearnedMetric

    def _define_embedding_space(self):
        return self._euclidean

    def latent(self, point):
        """Points of the latent space, (..., *latent_space.shape), of coordinates."""
        flat = self._point(point.reshape(-1, self.dim))
        return flat.reshape(*point.shape[:-1], *self.latent_space.shape)

    def immersion(self, point):
        """Points of R^D, (..., D), of coordinates (..., dim)."""
        flat = self._embedding(self._point(point.reshape(-1, self.dim)))
        return flat.reshape(*point.shape[:-1], self._euclidean.dim)

    def tangent_immersion(self, tangent_vec, base_point):
        """Vectors of R^D, (..., D), of tangent vectors in coordinates."""
        tangent_vec, base_point = torch.broadcast_tensors(tangent_vec, base_point)
        return jvp(self.immersion, (base_point.contiguous(),), (tangent_vec.contiguous(),))[1]

    def jacobian_immersion(self, base_point):
        """Differential of the immersion, (..., D, dim)."""
        return _derivative(self.immersion, base_point)

    def hessian_immersion(self, base_point):
        """Second derivatives of the immersion, (..., D, dim, dim)."""
        return _derivative(self.jacobian_immersion, base_point)

    def projection(self, point):
        """Coordinates (..., dim) of points of R^D, by the left inverse."""
        flat = self._coordinates(self._left_inverse(point.reshape(-1, self._euclidean.dim)))
        return flat.reshape(*point.shape[:-1], self.dim)

    def to_tangent(self, vector, base_point):
        """Coordinates (..., dim) of the nearest tangent vectors to vectors of R^D."""
        jacobian = self.jacobian_immersion(base_point)
        gram = jacobian.mT @ jacobian
        return torch.linalg.solve(gram, (jacobian.mT @ vector.unsqueeze(-1))).squeeze(-1)

    def belongs(self, point, atol=1e-6):
        """Whether arrays are coordinates: finite, and dim of them; shape=(...,)."""
        if point.shape[-1] != self.dim:
            return torch.zeros(point.shape[:-1], dtype=torch.bool)
        return point.isfinite().all(-1)

    def is_tangent(self, vector, base_point, atol=1e-6):
        """Whether arrays are tangent vectors in coordinates; shape=(...,)."""
        return self.belongs(vector)

    def random_point(self, n_samples=1, bound=1.0):
        """Coordinates of samples of the flow, shape=(n_samples, dim), or (dim,) for one."""
        if self._draw is None:
            raise NotImplementedError("random_point: this manifold was given no distribution.")
        point = self._coordinates(self._draw(n_samples))
        return point[0] if n_samples == 1 else point


class LearnedMetric(PullbackMetric):
    """Pullback of the metric of R^D, with solvers that take many points at once."""

    def _instantiate_solvers(self):
        # geomstats' default steps are Euler's
        integrator = GSIVPIntegrator(n_steps=40, step_type="rk4")
        self.exp_solver = ExpODESolver(self._space, integrator=integrator)
        self.log_solver = _Shooting(self._space)

    def metric_matrix(self, base_point):
        """J^T J of the immersion, shape=(..., dim, dim)."""
        jacobian = self._space.jacobian_immersion(base_point)
        return jacobian.mT @ jacobian

    def geodesic_equation(self, state):
        """Velocity and acceleration (..., 2, dim) of position and velocity (..., 2, dim).

        The acceleration cancels the tangential part of the second derivative along the
        velocity. Derivatives are differences of order four, good to about 1e-9: one call of
        the immersion, where nested forward mode took 25 times as long.
        """
        position, velocity = state[..., 0, :], state[..., 1, :]
        dim, step = self._space.dim, 2e-3
        speed = velocity.norm(dim=-1, keepdim=True)
        along = velocity / speed.clamp_min(torch.finfo(speed.dtype).tiny)
        eye = torch.eye(dim, dtype=state.dtype).expand(*position.shape[:-1], dim, dim)
        directions = torch.cat([eye, along.unsqueeze(-2)], dim=-2)
        offsets = step * torch.tensor([-2.0, -1, 0, 1, 2], dtype=state.dtype)
        nodes = position[..., None, None, :] + offsets[:, None] * directions.unsqueeze(-2)
        images = self._space.immersion(nodes)  # (..., dim + 1, 5, D)
        slope = torch.tensor([1.0, -8, 0, 8, -1], dtype=state.dtype) / (12 * step)
        bend = torch.tensor([-1.0, 16, -30, 16, -1], dtype=state.dtype) / (12 * step**2)
        jacobian = (slope[:, None] * images[..., :dim, :, :]).sum(-2)
        second = speed.square() * (bend[:, None] * images[..., dim, :, :]).sum(-2)
        pulled = jacobian @ second.unsqueeze(-1)
        gram = jacobian @ jacobian.mT
        acceleration = -torch.linalg.solve_ex(gram, pulled)[0].squeeze(-1)
        return torch.stack([velocity, acceleration], dim=-2)


class _Shooting(LogSolver):
    """Logarithms by Levenberg-Marquardt steps on the velocity, all pairs at once.

    What is made small is the distance in R^D by which a geodesic misses its end; the first
    velocity is the chord's, which on a curved manifold is a little short.
    """

    def __init__(self, space, n_iterations=50, tolerance=1e-8):
        super().__init__()
        self._space, self.n_iterations, self.tolerance = space, n_iterations, tolerance

    def log(self, point, base_point):
        """Velocities (..., dim) that take base points to points in unit time."""
        space = self._space
        point, base_point = torch.broadcast_tensors(point, base_point)
        start, target = base_point.reshape(-1, space.dim), space.immersion(point)
        target = target.reshape(len(start), -1)
        chord = target - space.immersion(start)
        velocity = space.to_tangent(chord, start)
        gram = space.metric.metric_matrix(start)
        length = (velocity.unsqueeze(1) @ gram @ velocity.unsqueeze(2)).flatten().sqrt()
        velocity = velocity * (chord.norm(dim=1) / length.clamp_min(1e-300))[:, None]
        miss, jacobian = self._shoot(velocity, start, target)
        damping = torch.full_like(length, 1e-3)
        for _ in range(self.n_iterations):
            error = miss.norm(dim=1)
            if bool((error <= self.tolerance * (1 + length)).all()):
                return velocity.reshape(point.shape)
            normal = jacobian.mT @ jacobian + damping[:, None, None] * gram
            descent = jacobian.mT @ miss.unsqueeze(-1)
            trial = velocity - torch.linalg.solve_ex(normal, descent)[0].squeeze(-1)
            new_miss, new_jacobian = self._shoot(trial, start, target)
            better = new_miss.norm(dim=1) < error  # not if it flew off to NaN
            velocity = torch.where(better[:, None], trial, velocity)
            miss = torch.where(better[:, None], new_miss, miss)
            jacobian = torch.where(better[:, None, None], new_jacobian, jacobian)
            damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e12)
        warnings.warn(
            f"log: a geodesic misses its end by {float(miss.norm(dim=1).max()):.2g}. Points "
            "far apart may have none that the solver finds; coordinates centred near them "
            "(manifold(base_point)) help.",
            stacklevel=4,
        )
        return velocity.reshape(point.shape)

    def _shoot(self, velocity, start, target):
        """By how much geodesics miss in R^D, (n, D), and its derivative (n, D, dim)."""
        step = 1e-5
        eye = torch.eye(velocity.shape[1], dtype=velocity.dtype)
        shifts = step * torch.cat([torch.zeros_like(eye[:1]), eye])
        velocities = velocity + shifts.unsqueeze(1)
        arrived = self._space.metric.exp(velocities, start.expand_as(velocities))
        images = self._space.immersion(arrived)
        return images[0] - target, ((images[1:] - images[0]) / step).movedim(0, -1)


def _derivative(function, point):
    """Partial derivatives of a function of coordinates, in a new last axis."""
    point = point.contiguous()
    eye = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
    directions = eye.reshape(-1, *[1] * (point.ndim - 1), len(eye)).expand(-1, *point.shape)
    return vmap(
        lambda direction: jvp(function, (point,), (direction,))[1],
        out_dims=-1,
    )(directions.contiguous())
