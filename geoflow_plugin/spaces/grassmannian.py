"""Grassmannians Gr(n, p): p-planes in R^n, as orthogonal projectors, n x n matrices.

geomstats' metric is the Frobenius product of projectors, so that turning a plane by an
angle t moves it by sqrt(2) t. Normal laws and kernels are carried by the graph map: the
tangent vector C B^T + B C^T at C C^T (C a frame, B^T C = 0) goes to the plane of C + B, the
graph of a linear map. Unlike the exponential it is a diffeomorphism of the whole tangent
space, onto all planes but the null set of those with a line orthogonal to the centre. (The
Cayley map, which turns by 2 arctan instead of arctan, reaches planes more than once.)
"""

import math

import torch
from geomstats.geometry.grassmannian import Grassmannian, GrassmannianCanonicalMetric

from geoflow_plugin import geometry
from geoflow_plugin.spaces.carried_normal import register_carried_normal
from geoflow_plugin.spaces.frames import orthonormal_complement, orthonormal_rows
from geoflow_plugin.spaces.rotation_vector import rotation_group
from geoflow_plugin.spaces.rotations import polar_factor
from geoflow_plugin.spaces.stiefel import (
    accretive_inverse,
    log_volume_of_frames,
    pairs_last,
    sum_of_squares,
    times,
    uniform_frames,
)


@geometry.frobenius_scale.register(GrassmannianCanonicalMetric)
def _(metric):
    return 1.0


def _frame(space, projector):
    """Orthonormal columns (..., n, p) that span planes; smooth near each one."""
    vectors = torch.linalg.eigh(projector.detach()).eigenvectors.detach()
    start = vectors[..., space.n - space.p :]
    return orthonormal_rows((projector @ start).mT).mT


def _bracket(a, b):
    return a @ b - b @ a


# The flat tangent geometry ------------------------------------------------------------


@geometry.projection.register(Grassmannian)
def _(space, point):
    # The spectral projector on the p largest eigenvalues is a matrix sign function,
    # whose derivatives exist for repeated eigenvalues too
    symmetric = (point + point.mT) / 2
    values = torch.linalg.eigvalsh(symmetric.detach())
    border = (values[..., space.n - space.p] + values[..., space.n - space.p - 1]) / 2
    eye = torch.eye(space.n, dtype=point.dtype, device=point.device)
    sign = polar_factor(symmetric - border.detach()[..., None, None] * eye)
    return (eye + (sign + sign.mT) / 2) / 2


@geometry.to_tangent.register(Grassmannian)
def _(space, vector, base_point):
    symmetric = (vector + vector.mT) / 2
    return _bracket(base_point, _bracket(base_point, symmetric))


@geometry.tangent_basis.register(Grassmannian)
def _(space, base_point):
    frame = _frame(space, base_point)
    rest = orthonormal_complement(frame)
    outer = frame.mT[..., :, None, :, None] * rest.mT[..., None, :, None, :]
    return (outer + outer.mT).flatten(-4, -3) / math.sqrt(2)


@geometry.origin.register(Grassmannian)
def _(space):
    ones, zeros = torch.ones(space.p), torch.zeros(space.n - space.p)
    return torch.cat([ones, zeros]).double().diag()


@geometry.constraint_residual.register(Grassmannian)
def _(space, point):
    defect = (point @ point - point).abs() + (point - point.mT).abs()
    rank = point.diagonal(dim1=-2, dim2=-1).sum(-1)
    return defect.flatten(-2).amax(-1) + (rank - space.p).abs()


# Moving on the space ------------------------------------------------------------------


@geometry.exp.register(Grassmannian, geometry.FlatMetric)
def _(space, tangent_vec, base_point):
    rotation = torch.linalg.matrix_exp(_bracket(tangent_vec, base_point))
    return rotation @ base_point @ rotation.mT


@geometry.log.register(Grassmannian, geometry.FlatMetric)
def _(space, point, base_point):
    # the product of the reflections in two planes turns by twice the angles between them
    eye = torch.eye(space.n, dtype=point.dtype, device=point.device)
    rotation = (2 * point - eye) @ (2 * base_point - eye)
    twice = geometry.log(rotation_group(space.n), rotation, eye)
    return geometry.to_tangent(space, _bracket(twice, base_point) / 2, base_point)


@geometry.retraction.register(Grassmannian)
def _graph(space, tangent_vec, base_point):
    frame = _frame(space, base_point)
    rows = orthonormal_rows((frame + tangent_vec @ frame).mT)
    return rows.mT @ rows


# The uniform measure ------------------------------------------------------------------


@geometry.is_compact.register(Grassmannian)
def _(space):
    return True


@geometry.log_volume.register(Grassmannian, geometry.FlatMetric)
def _(space):
    # frames over the frames of one plane; the quotient metric is half of Frobenius
    frames = log_volume_of_frames(space.n, space.p) - log_volume_of_frames(space.p, space.p)
    return frames + 0.5 * space.dim * math.log(2 * geometry.metric_scale(space))


@geometry.unit_cube_dim.register(Grassmannian, geometry.FlatMetric)
def _(space):
    return space.n * space.p


@geometry.uniform_from_cube.register(Grassmannian, geometry.FlatMetric)
def _(space, cube):
    frame = uniform_frames(cube, space.n, space.p)
    return frame @ frame.mT


# Normal laws and kernels, carried by the graph map ------------------------------------


def _graph_separation(space, point, center):
    """Squared length of the tangent vector whose graph is a point, and log volume change.

    With C a frame of the centre and P the point, the graph is (I - C C^T) P C M^-1 with
    M = C^T P C, and the volume grows by det(M)^(n / 2). All is formed from the difference
    of projectors, so that near points keep their digits and equal ones are at exactly 0.
    """
    frame = pairs_last(_frame(space, center))
    step = times(pairs_last(point) - pairs_last(center), frame)
    along = times(frame.transpose(0, 1), step)
    eye = torch.eye(space.p, dtype=along.dtype, device=along.device)
    eye = eye.reshape(space.p, space.p, *[1] * (along.ndim - 2))
    weight, log_det, reached = accretive_inverse(eye + along)
    gram = times(step.transpose(0, 1), step) - times(along.transpose(0, 1), along)
    squared = 2 * geometry.metric_scale(space) * sum_of_squares(gram, weight)
    log_volume = space.n / 2 * log_det
    # planes that the map does not reach are infinitely far, and have no derivative
    return torch.where(reached, squared, math.inf), torch.where(reached, log_volume, 0)


register_carried_normal((Grassmannian, geometry.FlatMetric), _graph_separation, _graph)
