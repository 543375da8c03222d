"""Eigenfunctions of a mesh's Laplacian, and fields that have them as divergences."""

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse import csc_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh, splu

__all__ = ["edge_fluxes", "laplacian_eigenfunctions"]

_DENSE = 500  # vertices up to which a dense solver is the faster one
_MORE = 20


def laplacian_eigenfunctions(vertices, faces, n):
    """Least positive eigenvalues of minus the cotangent Laplacian, and what belongs to them.

    Functions are linear in each face; mass is lumped at the vertices. Those that are constant
    in each component, with the eigenvalue zero, are left out.

    Parameters
    ----------
    vertices : torch.Tensor, shape=(n_vertices, 3)
    faces : torch.Tensor of int, shape=(n_faces, 3)
    n : int
        How many, at most: a mesh has no more than its faces have vertices.

    Returns
    -------
    eigenvalues : torch.Tensor, shape=(n,)
        Ascending.
    functions : torch.Tensor, shape=(n_vertices, n)
        Values at the vertices, orthonormal under the area, with an integral of zero over each
        component; zero at vertices of no face.
    """
    used, corner = np.unique(faces.numpy(), return_inverse=True)
    corner, point = corner.reshape(-1, 3), vertices.numpy()[used]
    size = len(used)
    ends, weights, mass = [], [], np.zeros(size)
    for apex, first, last in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        a, b = (point[corner[:, k]] - point[corner[:, apex]] for k in (first, last))
        doubled = np.linalg.norm(np.cross(a, b), axis=1)
        weights.append(0.5 * (a * b).sum(1) / doubled)
        ends.append(corner[:, [first, last]])
        np.add.at(mass, corner[:, apex], doubled / 6)
    row, column = np.concatenate(ends).T
    sides = csc_matrix((np.ones(len(row)), (row, column)), (size, size))
    stiffness = csc_matrix((-np.concatenate(weights), (row, column)), (size, size))
    stiffness = stiffness + stiffness.T
    stiffness -= diags(np.asarray(stiffness.sum(1)).ravel())
    n_constant, _ = connected_components(sides, directed=False)
    n = min(n + n_constant, size)
    # with half the power of the mass on either side, the problem is an ordinary one
    root = np.sqrt(mass)
    symmetric = (diags(1 / root) @ stiffness @ diags(1 / root)).tocsc()
    if size <= max(_DENSE, 2 * (n + _MORE)):
        values, vectors = eigh(symmetric.toarray(), subset_by_index=[0, n - 1])
    else:
        start = np.random.default_rng(0).standard_normal(size)  # ARPACK's own is not seeded
        below = -1e-3 / mass.sum()  # the matrix is singular at zero
        # of equal eigenvalues the last ones come late: a few more are asked for, and left out
        values, vectors = eigsh(symmetric, n + _MORE, sigma=below, v0=start)
    # signs are free: the largest value is positive
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    vectors = vectors * np.sign(largest)
    functions = np.zeros((len(vertices), n - n_constant))
    functions[used] = (vectors / root[:, None])[:, n_constant:n]
    return torch.from_numpy(values[n_constant:n]), torch.from_numpy(functions)


def edge_fluxes(tables, density):
    """Fluxes through the edges of gradient fields of which densities are the divergence.

    Parameters
    ----------
    tables : Tables
    density : torch.Tensor, shape=(n_faces, k)
        Its integral over each component of the mesh is zero.

    Returns
    -------
    flux : torch.Tensor, shape=(n_edges, k)
        Along the conormals of ``tables``, which point from one face into the other.
    """
    n_faces, n_edges = len(tables.area), len(tables.conormal)
    face = torch.arange(n_faces).unsqueeze(1).expand_as(tables.edge)
    ends = []
    for sign in (1, -1):
        there, side = tables.sign == sign, torch.empty(n_edges, dtype=torch.int64)
        side[tables.edge[there]] = face[there]
        ends.append(side.numpy())
    near, far = ends
    centroid = tables.corners.mean(1).numpy()
    length = tables.conormal.mean(1).norm(dim=-1).numpy()
    weight = length / np.linalg.norm(centroid[far] - centroid[near], axis=1)
    rows, columns = np.concatenate([near, far]), np.concatenate([far, near])
    links = csc_matrix((np.tile(weight, 2), (rows, columns)), (n_faces, n_faces))
    laplacian = diags(np.asarray(links.sum(1)).ravel()) - links
    # potentials are known up to a constant in each component: one face of each has zero
    _, component = connected_components(links, directed=False)
    free = np.ones(n_faces, dtype=bool)
    free[np.unique(component, return_index=True)[1]] = False
    mass = (tables.area.unsqueeze(1) * density).numpy()
    potential = np.zeros_like(mass)
    potential[free] = -splu(laplacian.tocsc()[free][:, free]).solve(mass[free])
    return torch.from_numpy(weight[:, None] * (potential[far] - potential[near]))
