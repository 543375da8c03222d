"""Geodesics where nobody has them in closed form.

``register_geodesics`` gives exp and log to a space that has an inner product and fills R^d
by its ``model``. The acceleration of a geodesic in those coordinates is an unknown at Gauss
nodes; velocities and positions are its integrals, all nodes at once. From the start, for
exp, they are found piece by piece by Picard's iteration; between both ends, for log, by
Newton's method. Where an iteration does not converge the result is NaN.
"""

import functools

import numpy as np
import torch
from torch.func import vmap

from geoflow_plugin import geometry
from geoflow_plugin.geometry.forward_mode import jvp

_ORDERS = 4  # of derivatives that an implicit solution has
_N_PIECES = 16  # of a geodesic from its start
_N_NODES = {"exp": 6, "log": 12}  # of a piece, and of the whole
_N_STEPS = {"exp": 8, "log": 8}  # of the iteration


@functools.cache
def _gauss_integration(n):
    """Gauss nodes c in (0, 1), and matrices of once and twice integrated functions.

    The last rows of the matrices are the integrals up to one.
    """
    nodes, _ = np.polynomial.legendre.leggauss(n)
    values = np.polynomial.legendre.legvander(nodes, n - 1)
    ends, integrals = np.append(nodes, 1.0), []
    for order in (1, 2):
        rows = [
            np.polynomial.legendre.legval(
                ends, np.polynomial.legendre.legint(unit, m=order, lbnd=-1, scl=1)
            )
            for unit in np.eye(n)
        ]
        integrals.append(np.linalg.solve(values.T, np.array(rows)).T / 2**order)
    return (nodes + 1) / 2, *integrals


def _metric(space, found, coordinates):
    """Inner products of the coordinate directions, (..., d, d)."""
    axis, d = coordinates.ndim, coordinates.shape[-1]
    eye = torch.eye(d, dtype=coordinates.dtype, device=coordinates.device)

    def push(direction):
        inputs = (coordinates,), (direction.expand(coordinates.shape).contiguous(),)
        return jvp(found.from_model, *inputs)[1]

    basis, point = vmap(push)(eye), found.from_model(coordinates)
    product = geometry.inner_product(space, basis.unsqueeze(1), basis.unsqueeze(0), point)
    return product.movedim((0, 1), (axis - 1, axis))


def _acceleration(space, found, coordinates, velocity):
    """Second derivative of the geodesic through coordinates with a velocity, (..., d)."""
    d = coordinates.shape[-1]
    eye = torch.eye(d, dtype=coordinates.dtype, device=coordinates.device)

    def along(direction):
        inputs = (coordinates,), (direction.expand(coordinates.shape).contiguous(),)
        return jvp(lambda z: _metric(space, found, z), *inputs)[1]

    slope = vmap(along, out_dims=-1)(eye)
    turned = torch.einsum("...ijk,...j->...ik", slope, velocity)
    force = torch.einsum("...ik,...k->...i", turned, velocity)
    force = force - torch.einsum("...ik,...i->...k", turned, velocity) / 2
    # not solve: torch differentiates its forward derivative wrongly
    inverse = _inverse(_metric(space, found, coordinates))
    return -(inverse @ force.unsqueeze(-1)).squeeze(-1)


def _inverse(matrix):
    """The inverse; whatever it may be, without an error, where there is none."""
    return torch.linalg.inv_ex(matrix).inverse


def _onwards(space, found, line, slope, position, velocity, first):
    """Accelerations (..., s, d) at the nodes of a short geodesic; see ``_between``."""
    a = last = first
    for _ in range(_N_STEPS["exp"]):
        last, a = a, _acceleration(space, found, line + position @ a, slope + velocity @ a)
    return _where_converged(a - last, a)


def _where_converged(error, a):
    """Accelerations, NaN all along a geodesic on which their error is not small."""
    error, size = (x.detach().abs().amax((-2, -1), keepdim=True) for x in (error, a))
    return torch.where(error < torch.finfo(a.dtype).eps ** 0.5 * (1 + size), a, torch.nan)


def _between(space, found, line, slope, position, velocity):
    """Accelerations (..., s, d) at the nodes of the geodesic, NaN without a solution.

    The geodesic is line + position @ acceleration, its velocity slope + velocity @
    acceleration: lines (..., s, d), slopes (..., 1, d), matrices (s, s).
    """

    def excess(a, line, slope):
        found_a = _acceleration(space, found, line + position @ a, slope + velocity @ a)
        return a - found_a

    def jacobian(a):
        z, u = line.detach() + position @ a, slope.detach() + velocity @ a
        eye = torch.eye(2 * z.shape[-1], dtype=z.dtype, device=z.device)

        def along(direction):
            pair = [part.expand(z.shape).contiguous() for part in direction.chunk(2)]
            return jvp(lambda *x: _acceleration(space, found, *x), (z, u), tuple(pair))[1]

        of_z, of_u = vmap(along, out_dims=-1)(eye).detach().chunk(2, dim=-1)
        full = of_z.unsqueeze(-2) * position[:, None, :, None]
        full = full + of_u.unsqueeze(-2) * velocity[:, None, :, None]
        full = full.flatten(-4, -3).flatten(-2)
        full = torch.eye(full.shape[-1], dtype=z.dtype, device=z.device) - full
        return _inverse(full)

    def step(inverse, value):
        return (inverse @ value.flatten(-2).unsqueeze(-1)).reshape(value.shape)

    fixed = line.detach(), slope.detach()
    a = torch.zeros_like(line.detach())
    for _ in range(_N_STEPS["log"]):
        change = step(jacobian(a), excess(a, *fixed)).detach()
        # damped while far: no farther at once than the coordinates by a factor of e
        size = torch.cat([position @ change, velocity @ change], dim=-1).abs()
        a = a - change / size.amax((-2, -1), keepdim=True).clamp_min(1)
    inverse = jacobian(a)
    for _ in range(_ORDERS):  # each makes one more order of derivatives right
        a = a - step(inverse, excess(a, line, slope))
    return _where_converged(excess(a.detach(), *fixed), a)


def polish_logarithm(space, start, point, base_point):
    """Newton's method on exp(V) = point from a tangent vector that is close.

    Parameters
    ----------
    space : geomstats Manifold
        A space with an exponential and a tangent basis.
    start : torch.Tensor, shape=(..., *shape)
        Tangent vectors at the base points; no derivative is taken of them.
    point, base_point : torch.Tensor, shape=(..., *shape)

    Returns
    -------
    log : torch.Tensor, shape=(..., *shape)
        Differentiable to a few orders; NaN where the steps did not converge.
    """
    axis = point.ndim - len(space.shape)
    basis = geometry.tangent_basis(space, base_point).flatten(axis + 1)
    target = geometry.tangent_basis(space, point).detach().flatten(axis + 1)

    def miss(weight, basis, base, end):
        vector = (weight.unsqueeze(-2) @ basis).squeeze(-2).reshape(base.shape)
        missed = (geometry.exp(space, vector, base) - end).flatten(axis)
        return (target @ missed.unsqueeze(-1)).squeeze(-1), missed

    def newton(weight):
        def along(direction):
            step = direction.expand(weight.shape).contiguous()
            return jvp(lambda w: miss(w, *fixed)[0], (weight,), (step,))[1]

        inverse = _inverse(vmap(along, out_dims=-1)(eye).detach())
        return miss(weight, *fixed)[0].detach(), inverse

    fixed = basis.detach(), base_point.detach(), point.detach()
    weight = (fixed[0] @ start.detach().flatten(axis).unsqueeze(-1)).squeeze(-1)
    eye = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    value, inverse = newton(weight)
    weight = (weight - (inverse @ value.unsqueeze(-1)).squeeze(-1)).detach()
    _, inverse = newton(weight)
    # each step divides the error by that of the start, and makes one more order of
    # derivatives right
    for _ in range(_ORDERS):
        value, _ = miss(weight, basis, base_point, point)
        weight = weight - (inverse @ value.unsqueeze(-1)).squeeze(-1)
    tolerance = torch.finfo(weight.dtype).eps ** 0.5
    missed = miss(weight.detach(), *fixed)[1].norm(dim=-1, keepdim=True)
    weight = torch.where(missed < tolerance, weight, torch.nan)
    return (weight.unsqueeze(-2) @ basis).squeeze(-2).reshape(base_point.shape)


def register_geodesics(cls, metric_class):
    """Register exp and log of a class of spaces under a class of metrics.

    They need ``inner_product`` and a ``model`` in Euclidean space, where the metric is
    smooth. A geodesic that leaves the space in finite time, or is too long for the
    iteration, is NaN; errors of finite lengths are those of polynomials at the nodes.
    """

    def nodes(like, n):
        c, once, twice = (torch.as_tensor(x).to(like) for x in _gauss_integration(n))
        return c.unsqueeze(-1), once[:-1], once[-1:], twice[:-1], twice[-1:]

    @geometry.exp.register(cls, metric_class)
    def _(space, tangent_vec, base_point):
        found = geometry.model(space)
        tangent_vec, base_point = torch.broadcast_tensors(tangent_vec, base_point)
        inputs = (base_point.contiguous(),), (tangent_vec.contiguous(),)
        start, slope = (x.unsqueeze(-2) for x in jvp(found.to_model, *inputs))
        slope = slope / _N_PIECES
        c, once, all_once, twice, all_twice = nodes(start, _N_NODES["exp"])
        a = torch.zeros_like(start + c)
        for _ in range(_N_PIECES):
            # from where the last piece left off
            first = a[..., -1:, :].expand(a.shape)
            a = _onwards(space, found, start + c * slope, slope, twice, once, first)
            start, slope = start + slope + all_twice @ a, slope + all_once @ a
        return found.from_model(start.squeeze(-2))

    @geometry.log.register(cls, metric_class)
    def _(space, point, base_point):
        found = geometry.model(space)
        point, base_point = torch.broadcast_tensors(point, base_point)
        start, end = (found.to_model(x).unsqueeze(-2) for x in (base_point, point))
        slope = end - start
        c, once, _, twice, all_twice = nodes(start, _N_NODES["log"])
        lines = start + c * slope, slope
        # the velocity at the start is such that the geodesic ends at the end
        matrices = twice - c * all_twice, once - all_twice
        a = _between(space, found, *lines, *matrices)
        velocity = (slope - all_twice @ a).squeeze(-2)
        inputs = (start.squeeze(-2).contiguous(),), (velocity.contiguous(),)
        return jvp(found.from_model, *inputs)[1]
