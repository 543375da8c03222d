"""Normal laws of R^3 restricted to a triangle mesh, as kernels of density estimates.

The integral of exp(-|y - c|^2 / 2 h^2) over the mesh depends on the centre c. In the plane
of a face, at the height H over which c stands, it is exp(-H^2 / 2 h^2) times that of a
round Gaussian over a triangle, which is a sum over its sides, in polar coordinates round
the foot of c: a side at the distance q that runs from a to b, both counted from the foot
of the perpendicular, gives h^2 (F(b) - F(a)), where F(t) = atan(t / q) - 2 pi T(q / h, t / q)
and T is the function of Owen. Faces that are small against h are left to Gauss' nodes,
whose error is less than 1e-5.
"""

import math

import torch
from scipy import special

from geoflow_plugin import geometry
from geoflow_plugin.spaces.mesh import MeshSurface

_PAIRS = 2**17  # of centres and faces held at a time
_FAR = 50.0  # squared distance over that of the bandwidth, beyond which all is rounding


def _orbit(near, far):
    return [[far if i == j else near for j in range(3)] for i in range(3)]


# Radius of faces over h up to which a rule serves, its nodes and their weights.
_ROOT = math.sqrt(15)
_RULES = (
    (0.2, _orbit(1 / 6, 2 / 3), [1 / 3] * 3),
    (  # Radon's, of degree five
        0.7,
        [[1 / 3] * 3]
        + _orbit((6 - _ROOT) / 21, (9 + 2 * _ROOT) / 21)
        + _orbit((6 + _ROOT) / 21, (9 - 2 * _ROOT) / 21),
        [9 / 40] + [(155 - _ROOT) / 1200] * 3 + [(155 + _ROOT) / 1200] * 3,
    ),
)


def _double(space, like):
    """Tables of the mesh in double precision on a tensor's device."""
    return space.tables(torch.empty(0, dtype=torch.float64, device=like.device))


def _radius(corners):
    """Radii (faces,) of faces about their centroids."""
    return (corners - corners.mean(1, keepdim=True)).norm(dim=-1).amax(1)


def _gaps(corners, normal, center):
    """Squared distances (n, faces) to planes, and in them from feet to faces at least."""
    middle = corners.mean(1)
    height = (center @ normal.mT - (middle * normal).sum(-1)).square()
    squared = _half_square(center) + _half_square(middle).mT - center @ middle.mT
    gap = (2 * squared - height).clamp_min(0).sqrt() - (1 + 1e-6) * _radius(corners)
    # what was subtracted may be lost to rounding
    gap = gap - 1e-7 * _half_square(middle).max().sqrt()
    return height, gap.clamp_min(0).square()


def _half_square(vector):
    return 0.5 * vector.square().sum(-1, keepdim=True)


# Integrals ------------------------------------------------------------------------------


@geometry.log_kernel_integral.register(MeshSurface)
@torch.no_grad()
def _(space, bandwidth, centers):
    tables, center = _double(space, centers), centers.double()
    order = _radius(tables.corners).argsort()
    tables = tables._replace(
        **{key: getattr(tables, key)[order] for key in ("corners", "area", "basis", "normal")}
    )
    shape = bandwidth.shape[:-1], len(center)
    if bandwidth.shape[-1] == 1:  # shared by the centres
        parts = center.split(max(1, _PAIRS // len(order)))
        widths = [bandwidth.flatten().tolist()] * len(parts)
    else:
        parts, widths = center.split(1), bandwidth.reshape(-1, len(center)).mT.tolist()
    value = [
        _integrals(tables, width, part) for width, part in zip(widths, parts, strict=True)
    ]
    return torch.cat(value, dim=-1).log().reshape(*shape[0], shape[1]).to(bandwidth)


def _integrals(tables, bandwidths, center):
    """Integrals (b, n) at centres (n, 3); faces are in the order of their radii."""
    height, gap = _gaps(tables.corners, tables.normal, center)
    radius, least, total = _radius(tables.corners), height + gap, []
    for h in bandwidths:
        value, start = torch.zeros_like(center[:, 0]), 0
        for limit, nodes, weights in _RULES:
            stop = int(torch.searchsorted(radius, limit * h))
            if stop > start:
                some = slice(start, stop)
                points = tables.corners.new_tensor(nodes) @ tables.corners[some]
                area = tables.corners.new_tensor(weights) * tables.area[some, None]
                value = value + _on_nodes(points.flatten(0, 1), area.flatten(), center, h)
            start = max(start, stop)
        at, face = (least[:, start:] < _FAR * h**2).nonzero(as_tuple=True)
        face = face + start
        exact = _over_triangles(tables, center[at], face, h)
        exact = exact * (-0.5 * height[at, face] / h**2).exp()
        total.append(value.index_add(0, at, exact))
    return torch.stack(total)


def _on_nodes(points, weight, center, h):
    """Weighted sums (n,) of kernels over points (k, 3)."""
    half = _half_square(center) + _half_square(points).mT - center @ points.mT
    return (half / -(h**2)).exp() @ weight


def _over_triangles(tables, center, face, h):
    """Integrals (pairs,) of round Gaussians about the feet of centres in faces."""
    corner = (tables.corners[face] - center.unsqueeze(1)) @ tables.basis[face].mT
    side = corner.roll(-1, 1) - corner
    length = side.norm(dim=-1)
    start = (corner * side).sum(-1) / length
    turn = corner[..., 0] * side[..., 1] - corner[..., 1] * side[..., 0]
    distance = (turn.abs() / length).clamp_min(1e-150)
    value = torch.zeros_like(turn)
    for end, sign in ((start + length, 1), (start, -1)):
        slope = (end / distance).cpu().numpy()
        owen = special.owens_t((distance / h).cpu().numpy(), slope)
        angle = torch.atan2(end, distance) - 2 * math.pi * torch.from_numpy(owen).to(end)
        value = value + sign * angle
    return h**2 * (turn.sign() * value).sum(-1).clamp_min(0)


# Draws ----------------------------------------------------------------------------------


@geometry.random_kernel.register(MeshSurface)
@torch.no_grad()
def _(space, center, bandwidth, generator=None):
    tables, drawn = _double(space, center), []
    bandwidth = bandwidth.double().expand(len(center))
    size = max(1, _PAIRS // len(tables.area))
    for part in zip(center.double().split(size), bandwidth.split(size), strict=True):
        drawn.append(_draw(tables, *part, generator))
    return torch.cat(drawn).to(center)


def _draw(tables, center, h, generator):
    """By rejection: a face with a bound of its integral, then a point of its plane.

    In a face smaller than the Gaussian the point is uniform; in a larger one it has the law
    of the Gaussian outside the circle round the foot of c that cannot meet the face.
    """
    options = {"generator": generator, "device": center.device, "dtype": center.dtype}
    height, gap = _gaps(tables.corners, tables.normal, center)
    # of the largest bound, without which all of them may underflow
    exponent = -0.5 * (height + gap) / h.unsqueeze(-1).square()
    bound = (exponent - exponent.amax(1, keepdim=True)).exp()
    disc = 2 * math.pi * h.square()
    total = (bound * torch.minimum(tables.area, disc.unsqueeze(-1))).cumsum(1)
    drawn, pending = center.clone(), torch.arange(len(center), device=center.device)
    while len(pending):
        level, u, v, w = torch.rand(4, len(pending), **options)
        some, x, variance = total[pending], center[pending], h[pending].square()
        level = level.unsqueeze(-1) * some[:, -1:]
        face = torch.searchsorted(some, level, right=True).squeeze(-1)
        face = face.clamp_max(len(tables.area) - 1)
        corners, normal, near = tables.corners[face], tables.normal[face], gap[pending, face]
        foot = x - ((x - corners[:, 0]) * normal).sum(-1, keepdim=True) * normal
        root = u.sqrt()
        share = torch.stack([1 - root, root * (1 - v), root * v], dim=-1)
        uniform = (share.unsqueeze(-1) * corners).sum(1)
        length = (near - 2 * variance * (1 - u).log()).sqrt()
        angle = 2 * math.pi * v
        turned = torch.stack([angle.cos(), angle.sin()], dim=-1).unsqueeze(1)
        gaussian = foot + length.unsqueeze(-1) * (turned @ tables.basis[face]).squeeze(1)
        small = tables.area[face] < disc[pending]
        point = torch.where(small.unsqueeze(-1), uniform, gaussian)
        excess = (point - foot).square().sum(-1) - near
        accepted = w.log() < -0.5 * excess / variance
        kept = torch.where(small, accepted, _inside(point, corners, normal))
        drawn[pending[kept]] = point[kept]
        pending = pending[~kept]
    return drawn


def _inside(point, corners, normal):
    """Whether points of the planes of triangles (n, 3, 3) are in them."""
    side = corners.roll(-1, 1) - corners
    turn = torch.linalg.cross(side, point.unsqueeze(1) - corners)
    return ((turn * normal.unsqueeze(1)).sum(-1) >= 0).all(-1)
