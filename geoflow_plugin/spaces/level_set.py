"""Any other level set of a submersion, by automatic differentiation.

Serves a user's ``LevelSet`` with nothing but geomstats' obligatory methods, under
geomstats' pytorch backend: projectors are orthogonal, from the normals that the
submersion's derivative gives, or, where that has too small a rank, from the range of the
space's own ``to_tangent``.

A level set is taken to be compact; one that is not says so by
``geometry.is_compact.register(MyLevelSet)(lambda space: False)``, and a base is then the
user's to bring. The uniform law rests on an estimate, whose error ``log_volume_error``
states: random points of a thin shell round the set are pulled to it and weighted by the
Jacobian of that map (the co-area formula).
"""

import math
import weakref

import torch
from geomstats.geometry.base import LevelSet
from torch.func import vjp, vmap

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError, unsupported
from geoflow_plugin.spaces.frames import frame_from_projector
from geoflow_plugin.spaces.intrinsic import (
    in_double,
    metric_inner_product,
    register_fallback,
    require_autodiff,
    some_points,
)

_STEPS = 8  # of Gauss and Newton, which converge quadratically

# Normals from the submersion ------------------------------------------------------------


def codimension(space):
    """Number of equations that the submersion has to be worth."""
    return space.embedding_space.dim - space.dim


def value_and_rows(space, point):
    """Submersion (n, k) and its derivative (n, k, size) at points (n, *shape)."""

    def constraint(x):
        return in_double(space.submersion, x).reshape(len(x), -1)

    value, pullback = vjp(constraint, point)  # type: ignore[misc]
    k = value.shape[-1]
    eye = torch.eye(k, dtype=value.dtype, device=value.device)
    (rows,) = vmap(pullback)(eye.unsqueeze(1).expand(k, *value.shape))
    rows = geometry.to_tangent(space.embedding_space, rows, point.expand_as(rows))
    return value, rows.flatten(2).movedim(0, 1)


def row_gram(rows):
    """Products of the rows, with a ridge below rounding that keeps them invertible."""
    gram = rows @ rows.mT
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = torch.finfo(rows.dtype).eps * mean + 1e-30
    eye = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    return gram + ridge[:, None, None] * eye


def pseudo_inverse(space, rows):
    """Pseudo-inverse (n, size, k) of the submersion's derivative."""
    if rows.shape[-2] == 1:  # a hypersurface
        return rows.mT / row_gram(rows)
    if rows.shape[-2] == codimension(space):
        return torch.linalg.solve(row_gram(rows), rows).mT
    # more equations than the codimension, of a constant rank
    return torch.linalg.pinv(rows, rtol=torch.finfo(rows.dtype).eps ** 0.5)


def pull(space, point, steps=_STEPS):
    """Gauss-Newton steps (n, *shape) to the level zero."""
    for _ in range(steps):
        value, rows = value_and_rows(space, point)
        step = pseudo_inverse(space, rows) @ value.unsqueeze(-1)
        point = point - step.reshape(point.shape)
    return point


_REGULAR: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def is_regular(space):
    """Whether the submersion's derivative spans the normal spaces; asked once a space."""
    if space not in _REGULAR:
        require_autodiff(space)
        try:
            points = some_points(space)
            rows = value_and_rows(space, points)[1]
            regular = bool((_ranks(rows) == codimension(space)).all())
            fits = regular or bool((_ranks(_own_range(space, points)) == space.dim).all())
        except NotImplementedError:  # no random_point, or no to_tangent where it is needed
            fits = False
        if not fits:
            raise UnsupportedError(
                f"space: {type(space).__qualname__} needs a random_point, and a submersion "
                f"(or else a to_tangent) of the rank that dim = {space.dim} asks for."
            )
        _REGULAR[space] = regular
    return _REGULAR[space]


def _ranks(matrices):
    values = torch.linalg.svdvals(matrices)
    return (values > 1e-6 * values.amax(-1, keepdim=True)).sum(-1)


def _own_range(space, point):
    """Images (n, size, size) of a basis of the array under the space's ``to_tangent``."""
    n, size = len(point), math.prod(space.shape)
    eye = torch.eye(size, dtype=point.dtype, device=point.device)
    vectors = eye.expand(n, size, size).reshape(n * size, *space.shape)
    at = point.unsqueeze(1).expand(n, size, *space.shape).reshape(vectors.shape)
    return in_double(space.to_tangent, vectors, at).reshape(n, size, size)


def _flat(space, *arrays):
    """Arrays as (n, *shape), and the batch shape that was."""
    arrays = torch.broadcast_tensors(*arrays)
    batch = arrays[0].shape[: arrays[0].ndim - len(space.shape)]
    return *(array.reshape(-1, *space.shape) for array in arrays), batch


# Geometry -------------------------------------------------------------------------------


@register_fallback(LevelSet, geometry.is_compact, isometric=False)
def _(space):
    if type(space).__module__.startswith("geomstats."):
        raise unsupported(space, "is_compact")  # theirs are known one by one
    is_regular(space)
    return True


@register_fallback(LevelSet, geometry.origin, isometric=False)
def _(space):
    return geometry.projection(space, some_points(space)[0])


@geometry.projection.register(LevelSet)
def _(space, point):
    regular = is_regular(space)
    point, batch = _flat(space, geometry.projection(space.embedding_space, point))
    pulled = pull(space, point) if regular else in_double(space.projection, point)
    return pulled.reshape(*batch, *space.shape)


@geometry.to_tangent.register(LevelSet)
def _(space, vector, base_point):
    regular = is_regular(space)
    vector, base_point, batch = _flat(space, vector, base_point)
    if regular:
        vector = geometry.to_tangent(space.embedding_space, vector, base_point).flatten(1)
        rows = value_and_rows(space, base_point)[1]
        normal = rows @ vector.unsqueeze(-1)
        vector = vector - (pseudo_inverse(space, rows) @ normal).squeeze(-1)
    else:
        rows = _own_range(space, base_point)
        inverse = torch.linalg.pinv(rows, rtol=torch.finfo(rows.dtype).eps ** 0.5)
        vector = (inverse @ (rows @ vector.flatten(1).unsqueeze(-1))).squeeze(-1)
    return vector.reshape(*batch, *space.shape)


@geometry.tangent_basis.register(LevelSet)
def _(space, base_point):
    def project(vector, point):
        return geometry.to_tangent(space, vector, point)

    return frame_from_projector(project, base_point, space.dim, len(space.shape))


@geometry.constraint_residual.register(LevelSet)
def _(space, point):
    require_autodiff(space)
    around = geometry.constraint_residual(space.embedding_space, point)
    point, batch = _flat(space, point)
    value = in_double(space.submersion, point).reshape(len(point), -1)
    return torch.maximum(around, value.norm(dim=-1).reshape(batch))


@register_fallback(LevelSet, geometry.inner_product)
def _(space, tangent_vec_a, tangent_vec_b, base_point):
    return metric_inner_product(space, tangent_vec_a, tangent_vec_b, base_point)
