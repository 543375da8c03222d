"""Arrays of a triangle mesh: checks, edges, conormals, and closest points of triangles."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = ["Tables", "as_arrays", "closest_point", "make_sites", "make_tables"]


class Tables(NamedTuple):
    """What is known of each face and each edge."""

    corners: torch.Tensor  # (faces, 3, 3)
    area: torch.Tensor  # (faces,)
    basis: torch.Tensor  # (faces, 2, 3), orthonormal
    normal: torch.Tensor  # (faces, 3), of unit length
    edge: torch.Tensor  # (faces, 3), the edge opposite to each corner
    sign: torch.Tensor  # (faces, 3), +1 or -1: the edge's conormal points out, or in
    nodes: torch.Tensor  # (edges, 2, 3), those of Gauss
    conormal: torch.Tensor  # (edges, 2, 3), mean of its faces', tangent at each node


def as_arrays(vertices, faces):
    """Checked vertices and faces as tensors."""
    try:
        vertices = np.array(vertices, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("vertices: expected an array of real numbers.") from error
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices: expected shape (n, 3), got {vertices.shape}.")
    if not np.isfinite(vertices).all():
        raise ValueError("vertices: expected finite numbers, got NaN or infinity.")
    faces = np.atleast_1d(np.array(faces))
    if faces.dtype.kind not in "iu" or faces.shape != (len(faces), 3) or not faces.size:
        raise ValueError(
            f"faces: expected integers of shape (n, 3), got {faces.dtype} of shape "
            f"{faces.shape}."
        )
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(
            f"faces: expected indices from 0 to {len(vertices) - 1}, got some from "
            f"{faces.min()} to {faces.max()}."
        )
    faces = faces.astype(np.int64)
    corners = vertices[faces]
    sides = corners - np.roll(corners, 1, axis=1)
    doubled = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1)
    flat = doubled <= 1e-12 * np.square(sides).sum((1, 2))
    if flat.any():
        raise ValueError(
            f"faces: {flat.sum()} without an area, the first of them face {flat.argmax()}."
        )
    _check_manifold(faces)
    return torch.from_numpy(vertices), torch.from_numpy(faces)


def _half_edges(faces):
    """Directed sides (faces, 3, 2), each opposite to its corner."""
    return faces[:, [[1, 2], [2, 0], [0, 1]]]


def _check_manifold(faces):
    sides = _half_edges(faces).reshape(-1, 2)
    _, side_edge, count = np.unique(
        np.sort(sides, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    if (count != 2).any():
        raise ValueError(
            "faces: expected a closed manifold, where every edge is in two faces; "
            f"{(count == 1).sum()} edges are in one, {(count > 2).sum()} in more than two."
        )
    if len(np.unique(sides, axis=0)) != len(sides):
        raise ValueError(
            "faces: expected one orientation, but neighbours run along their common edge "
            "in the same direction."
        )
    # corners that meet along an edge belong together: one fan round each vertex
    first, second = np.argsort(side_edge.reshape(-1), kind="stable").reshape(-1, 2).T
    rank = np.arange(3)
    tail = (3 * np.arange(len(faces))[:, None] + (rank + 1) % 3).reshape(-1)
    head = (3 * np.arange(len(faces))[:, None] + (rank + 2) % 3).reshape(-1)
    rows = np.concatenate([tail[first], head[first]])
    columns = np.concatenate([head[second], tail[second]])
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(faces.size,) * 2)
    fans, vertices = connected_components(graph, directed=False)[0], len(np.unique(faces))
    if fans != vertices:
        raise ValueError(
            f"faces: expected a manifold, but {vertices} vertices have {fans} fans of faces."
        )


def make_tables(vertices, faces):
    """Tables of a checked mesh."""
    corners = vertices[faces]
    sides = vertices[_half_edges(faces)]
    along = sides[:, :, 1] - sides[:, :, 0]
    normal = torch.linalg.cross(along[:, 0], along[:, 1])
    length = normal.norm(dim=-1, keepdim=True)
    normal = normal / length
    first = along[:, 0] / along[:, 0].norm(dim=-1, keepdim=True)
    basis = torch.stack([first, torch.linalg.cross(normal, first)], dim=1)

    half_edges = _half_edges(faces).reshape(-1, 2)
    ends, edge = half_edges.sort(dim=1).values.unique(dim=0, return_inverse=True)
    sign = 1.0 - 2.0 * (half_edges[:, 0] > half_edges[:, 1]).to(vertices)
    outward = torch.linalg.cross(along, normal.unsqueeze(1).expand_as(along)).reshape(-1, 3)
    conormal = vertices.new_zeros(len(ends), 3)
    conormal.index_add_(0, edge, 0.5 * sign[:, None] * outward)
    share = 0.5 + 12**-0.5 * vertices.new_tensor([-1.0, 1.0])[:, None]
    start, stop = vertices[ends].unsqueeze(2).unbind(1)
    nodes = start + share * (stop - start)
    # normals that turn steadily: a field's normal part must not leak by the tilt of edges
    first, last = _vertex_normals(vertices, faces)[ends].unsqueeze(2).unbind(1)
    smooth = torch.nn.functional.normalize(first + share * (last - first), dim=-1)
    conormal = conormal.unsqueeze(1)
    conormal = conormal - (conormal * smooth).sum(-1, keepdim=True) * smooth
    return Tables(
        corners,
        0.5 * length.squeeze(-1),
        basis,
        normal,
        edge.reshape(-1, 3),
        sign.reshape(-1, 3),
        nodes,
        conormal,
    )


def _vertex_normals(vertices, faces):
    """Unit normals at vertices by the weights of Max (1999), exact where all lie on a sphere.

    The sum over the faces round a vertex of a x b / (|a|^2 |b|^2), a and b being its sides.
    """
    corners = vertices[faces]
    ahead, back = corners.roll(-1, 1) - corners, corners.roll(1, 1) - corners
    size = ahead.square().sum(-1, keepdim=True) * back.square().sum(-1, keepdim=True)
    normal = torch.zeros_like(vertices).index_add_(
        0, faces.reshape(-1), (torch.linalg.cross(ahead, back) / size).reshape(-1, 3)
    )
    return torch.nn.functional.normalize(normal, dim=-1)


def closest_point(point, corners):
    """Closest point of triangles (..., 3, 3) to points (..., 3)."""
    start, along = corners.roll(-1, -2), corners.roll(-2, -2) - corners.roll(-1, -2)
    normal = torch.linalg.cross(along[..., 0, :], along[..., 1, :])
    height = ((point - corners[..., 0, :]) * normal).sum(-1) / normal.square().sum(-1)
    foot = point - height.unsqueeze(-1) * normal
    outward = torch.linalg.cross(along, normal.unsqueeze(-2).expand_as(along))
    inside = (((foot.unsqueeze(-2) - start) * outward).sum(-1) <= 0).all(-1, keepdim=True)
    offset = point.unsqueeze(-2) - start
    share = (offset * along).sum(-1) / along.square().sum(-1)
    on_sides = start + share.clamp(0, 1).unsqueeze(-1) * along
    gap = (on_sides - point.unsqueeze(-2)).square().sum(-1)
    nearest = gap.argmin(-1)[..., None, None].expand(*gap.shape[:-1], 1, 3)
    return torch.where(inside, foot, on_sides.gather(-2, nearest).squeeze(-2))


def make_sites(corners, reach):
    """Points such that every point of the mesh is within reach of one on its own face.

    Centroids of faces, which are bisected until they are small enough.

    Returns
    -------
    sites : torch.Tensor, shape=(n_sites, 3)
    face : torch.Tensor of int, shape=(n_sites,)
    reach : float
        No more than was asked for.
    """
    face = torch.arange(len(corners))
    while True:
        sites = corners.mean(1)
        radius = (corners - sites[:, None]).norm(dim=-1).amax(1)
        wide = radius > reach
        if not wide.any():
            return sites, face, float(radius.max())
        # the longest side first: corners 1 and 2 are its ends
        parts = corners[wide]
        sides = (parts.roll(-1, 1) - parts.roll(-2, 1)).norm(dim=-1)
        order = (sides.argmax(1, keepdim=True) + torch.arange(3)) % 3
        a, b, c = parts.gather(1, order[..., None].expand_as(parts)).unbind(1)
        halves = [torch.stack([a, b, (b + c) / 2], 1), torch.stack([a, (b + c) / 2, c], 1)]
        corners = torch.cat([corners[~wide], *halves])
        face = torch.cat([face[~wide], face[wide], face[wide]])
