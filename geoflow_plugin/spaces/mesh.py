"""Closed triangle meshes in R^3, and fields whose fluxes agree across their edges.

Tangent planes jump across an edge, so that what a projected ambient field lets out of one
face is not what the next one takes in, and Stokes' theorem fails. A field is therefore
interpolated: the flux through an edge is that along the mean of its faces' conormals, made
tangent by a normal that turns steadily, and in a face with corners p_i, area A and outward
fluxes F_i through the edges opposite to them, the field of Raviart and Thomas

    w(x) = sum_i F_i (x - p_i) / (2 A),    div w = sum_i F_i / A

has these very fluxes. The divergence is constant in each face, and its integral over the
mesh is zero, since every flux is counted once with either sign.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from geomstats.geometry.manifold import Manifold
from scipy.spatial import cKDTree

from geoflow_plugin import geometry
from geoflow_plugin.geometry.checks import check_counts
from geoflow_plugin.spaces.euclidean import euclidean
from geoflow_plugin.spaces.mesh_spectrum import edge_fluxes, laplacian_eigenfunctions
from geoflow_plugin.spaces.mesh_tables import (
    Tables,
    as_arrays,
    closest_point,
    make_sites,
    make_tables,
)

__all__ = ["MeshSurface"]

_PAIRS = 2**18  # of points and candidate faces held at a time


class MeshSurface(Manifold):
    """Surface of a closed triangle mesh, with the metric of its flat faces.

    Points are points of R^3 on the surface. A mesh of several components is fine, but a
    Moser flow moves no mass from one to another.

    Parameters
    ----------
    vertices : array-like, shape=(n_vertices, 3)
    faces : array-like of int, shape=(n_faces, 3)
        Corners of each triangle, all in one sense of rotation as seen from outside.

    Attributes
    ----------
    vertices : torch.Tensor, shape=(n_vertices, 3)
    faces : torch.Tensor of int, shape=(n_faces, 3)
    areas : torch.Tensor, shape=(n_faces,)
    centroids : torch.Tensor, shape=(n_faces, 3)

    Raises
    ------
    ValueError
        For anything but a closed, consistently oriented manifold mesh with finite
        vertices and triangles that have an area.
    """

    def __init__(self, vertices, faces):
        super().__init__(dim=2, shape=(3,), intrinsic=False, equip=False)
        self.embedding_space = euclidean(3)  # products ask for it
        self.vertices, self.faces = as_arrays(vertices, faces)
        self._tables: dict = {None: make_tables(self.vertices, self.faces)}
        corners = self._tables[None].corners
        self.areas, self.centroids = self._tables[None].area, corners.mean(1)
        middle = (self.areas[:, None] * self.centroids).sum(0) / self.areas.sum()
        self._radius = float((corners - middle).norm(dim=-1).max())
        sites, self._site_face, self._reach = make_sites(
            corners, 0.7 * self.areas.mean().sqrt()
        )
        self._tree = cKDTree(sites.numpy())

    @classmethod
    def from_file(cls, path):
        """Read a mesh with trimesh: .obj, .ply, .stl, .off, ..., also gzipped (.gz).

        Corners with equal positions are one vertex, whatever their texture coordinates.

        Parameters
        ----------
        path : str or Path

        Returns
        -------
        space : MeshSurface
        """
        import trimesh  # the optional extra "mesh"

        path = Path(path)
        zipped = path.suffix == ".gz"
        kind = Path(path.stem).suffix if zipped else path.suffix
        with (gzip.open if zipped else open)(path, "rb") as file:
            mesh = trimesh.load_mesh(file, file_type=kind[1:], process=False)
        mesh.merge_vertices(merge_tex=True, merge_norm=True)
        return cls(mesh.vertices, mesh.faces)

    def tables(self, like):
        """Corners, normals, edges and the like, in the dtype and on the device of a tensor."""
        key = like.dtype, like.device
        if key not in self._tables:
            self._tables[key] = Tables(
                *(
                    table.to(like) if table.is_floating_point() else table.to(like.device)
                    for table in self._tables[None]
                )
            )
        return self._tables[key]

    def nearest_face(self, point):
        """Index of the face nearest to each point, (..., 3) -> (...,); no derivative."""
        return _NearestFace.apply(point, self)

    def eigenfunctions(self, n):
        """Eigenfunctions of minus the Laplacian of the surface, smoothest first.

        By linear finite elements with lumped masses. Constants are left out.

        Parameters
        ----------
        n : int
            How many, at most: there are no more than vertices.

        Returns
        -------
        eigenvalues : torch.Tensor, shape=(n,)
            Ascending and positive.
        functions : torch.Tensor, shape=(n_vertices, n)
            Values at the vertices, orthonormal under the area.
        """
        check_counts(n=n)
        return laplacian_eigenfunctions(self.vertices, self.faces, n)

    # What geomstats asks of a manifold: arrays in, arrays out, and tensors for tensors

    def belongs(self, point, atol=1e-6):
        """Whether points are within ``atol`` of the surface, relative to its size."""
        return _answer(geometry.belongs, self, point, atol=atol)

    def is_tangent(self, vector, base_point, atol=1e-6):
        """Whether vectors lie in the planes of the faces of their base points."""
        off = vector - self.to_tangent(vector, base_point)
        return (off**2).sum(-1) <= atol**2

    def to_tangent(self, vector, base_point):
        """Project vectors on the planes of the faces of their base points."""
        return _answer(geometry.to_tangent, self, vector, base_point)

    def projection(self, point):
        """Closest point of the surface."""
        return _answer(geometry.projection, self, point)

    def random_point(self, n_samples=1, bound=None):
        """Uniform points, as an array; ``bound`` is unused."""
        drawn = geometry.random_uniform(self, n_samples, dtype=torch.float64).numpy()
        return drawn[0] if n_samples == 1 else drawn


def _answer(function, space, *arrays, **options):
    if isinstance(arrays[0], torch.Tensor):
        return function(space, *arrays, **options)
    tensors = (torch.as_tensor(np.asarray(array, dtype=np.float64)) for array in arrays)
    return function(space, *tensors, **options).numpy()


# Where points are -----------------------------------------------------------------------


class _NearestFace(torch.autograd.Function):
    """Search on the CPU, a constant to every derivative and to vmap one more batch axis."""

    @staticmethod
    def forward(point, space):
        rounding = 4 * torch.finfo(point.dtype).eps * space._radius
        face = _search(space, point.detach().double().cpu().reshape(-1, 3), rounding)
        return face.reshape(point.shape[:-1]).to(point.device)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, gradient):
        return None, None

    @staticmethod
    def jvp(ctx, *tangents):
        return None

    @staticmethod
    def vmap(info, in_dims, point, space):
        return _NearestFace.apply(point.movedim(in_dims[0], 0), space), 0


def _search(space, point, rounding):
    corners, n_sites = space.tables(point).corners, len(space._site_face)
    face = torch.zeros(len(point), dtype=torch.int64)
    pending, count = torch.nonzero(point.isfinite().all(-1)).squeeze(-1), 2
    while len(pending):
        count = min(count, n_sites)
        left = []
        for rows in pending.split(max(1, _PAIRS // count)):
            x = point[rows]
            away, site = space._tree.query(x.numpy(), np.arange(1, count + 1))
            candidate = space._site_face[torch.from_numpy(site)]
            gap = (closest_point(x[:, None], corners[candidate]) - x[:, None]).norm(dim=-1)
            least = gap.min(1)
            face[rows] = candidate.gather(1, least.indices[:, None]).squeeze(1)
            # no part of a face whose site is farther than this can be nearer
            sure = torch.from_numpy(away[:, -1]) >= least.values + space._reach
            left.append(rows[~sure & (least.values > rounding)])  # not on the face already
        pending = torch.cat(left) if count < n_sites else pending[:0]
        count *= 4
    return face


# Geometry -------------------------------------------------------------------------------


@geometry.is_compact.register(MeshSurface)
def _(space):
    return True


@geometry.origin.register(MeshSurface)
def _(space):
    return space.centroids[0]


@geometry.projection.register(MeshSurface)
def _(space, point):
    return closest_point(point, space.tables(point).corners[space.nearest_face(point)])


@geometry.constraint_residual.register(MeshSurface)
def _(space, point):
    gap = (geometry.projection(space, point) - point).norm(dim=-1)
    return gap / space._radius


@geometry.to_tangent.register(MeshSurface)
def _(space, vector, base_point):
    normal = space.tables(vector).normal[space.nearest_face(base_point)]
    return vector - (vector * normal).sum(-1, keepdim=True) * normal


@geometry.tangent_basis.register(MeshSurface)
def _(space, base_point):
    return space.tables(base_point).basis[space.nearest_face(base_point)]


geometry.inner_product.register(MeshSurface)(geometry.inner_product.__wrapped__)


@geometry.log_volume.register(MeshSurface)
def _(space):
    return float(space.areas.sum().log())


@geometry.unit_cube_dim.register(MeshSurface)
def _(space):
    return 3


@geometry.uniform_from_cube.register(MeshSurface)
def _(space, cube):
    total = space.areas.cumsum(0).to(cube.device)
    face = torch.searchsorted(total, cube[:, 0].double() * total[-1], right=True)
    root, share = cube[:, 1:2].sqrt(), cube[:, 2:]
    weight = torch.cat([1 - root, root * (1 - share), root * share], dim=1)
    corners = space.tables(cube).corners[face.clamp_max(len(total) - 1)]
    return (weight.unsqueeze(-1) * corners).sum(1)


@geometry.uniform_quadrature.register(MeshSurface)
def _(space, like):
    # ratios are constant in each face
    return space.centroids.to(like), (space.areas / space.areas.sum()).to(like)


@geometry.interpolation.register(MeshSurface)
def _(space):
    def interpolate(field, points):
        tables = space.tables(points)
        face = space.nearest_face(points)
        edge = tables.edge[face]
        if hasattr(field, "fluxes"):
            flux = _known_fluxes(field, tables)[edge]
        elif edge.numel() < len(tables.conormal):
            flux = _fluxes(field, tables.nodes[edge], tables.conormal[edge])
        else:  # every edge once
            flux = _fluxes(field, tables.nodes, tables.conormal)[edge]
        density = tables.sign[face] * flux / tables.area[face].unsqueeze(-1)
        offset = points.unsqueeze(1) - tables.corners[face]
        return 0.5 * (density.unsqueeze(-1) * offset).sum(1), density.sum(1)

    return interpolate


@geometry.smooth_fluxes.register(MeshSurface)
def _(space, n):
    eigenvalues, functions = space.eigenfunctions(n)
    density = space.areas.sum().sqrt() * functions[space.faces].mean(1)
    return eigenvalues, edge_fluxes(space._tables[None], -density)


def _known_fluxes(field, tables):
    flux = field.fluxes()
    if flux.shape != tables.conormal.shape[:1]:
        raise ValueError(
            f"field: expected one of this mesh, which has {len(tables.conormal)} edges, got "
            f"fluxes of shape {tuple(flux.shape)}."
        )
    return flux


def _fluxes(field, nodes, conormal):
    """Flux (...,) of a field along conormals (..., 2, 3) that are given at nodes."""
    value = field(nodes.reshape(-1, 3)).reshape(nodes.shape)
    return (value * conormal).sum(-1).mean(-1)
