"""Lower triangular matrices with a positive diagonal and rows of unit length.

Each row but the first is a point of an open hemisphere, its diagonal entry the height.
geomstats gives the space the dimension of all lower triangular matrices.
"""

import torch
from geomstats.geometry.positive_lower_triangular_matrices import (
    UnitNormedRowsPLTMatrices,
    UnitNormedRowsPLTMatricesPullbackMetric,
)

from geoflow_plugin import geometry
from geoflow_plugin.spaces.sphere import complement_basis


@geometry.dim.register(UnitNormedRowsPLTMatrices)
def _(space):
    return space.n * (space.n - 1) // 2


def _rows(matrix):
    """Rows of lower triangular matrices, their diagonal entries last; not the first."""
    return [matrix[..., i, : i + 1] for i in range(1, matrix.shape[-1])]


def _from_rows(first, rows):
    """Matrices of given rows, of which the first has a single entry, (...,)."""
    n = len(rows) + 1
    rows = [first.unsqueeze(-1), *rows]
    padded = [torch.nn.functional.pad(row, (0, n - row.shape[-1])) for row in rows]
    return torch.stack(padded, dim=-2)


def _hemispheres(space, isometric):
    sizes = list(range(2, space.n + 1))

    def to_model(x):
        return torch.cat([row.flip(-1) for row in _rows(x)], dim=-1)

    def from_model(y):
        rows = [row.flip(-1) for row in y.split(sizes, dim=-1)]
        return _from_rows(torch.ones_like(y[..., 0]), rows)

    return geometry.Model(space.image_space, to_model, from_model, isometric)


@geometry.model.register(UnitNormedRowsPLTMatrices, UnitNormedRowsPLTMatricesPullbackMetric)
def _(space):
    return _hemispheres(space, isometric=True)


@geometry.model.register(UnitNormedRowsPLTMatrices)
def _(space):
    return _hemispheres(space, isometric=False)


@geometry.is_compact.register(UnitNormedRowsPLTMatrices)
def _(space):
    return False


@geometry.projection.register(UnitNormedRowsPLTMatrices)
def _(space, point):
    found = geometry.model(space)
    return found.from_model(geometry.projection(found.space, found.to_model(point)))


@geometry.to_tangent.register(UnitNormedRowsPLTMatrices)
def _(space, vector, base_point):
    vector = vector.expand(torch.broadcast_shapes(vector.shape, base_point.shape))
    rows = [
        v - (x * v).sum(-1, keepdim=True) * x
        for x, v in zip(_rows(base_point), _rows(vector), strict=True)
    ]
    return _from_rows(torch.zeros_like(vector[..., 0, 0]), rows)


@geometry.tangent_basis.register(UnitNormedRowsPLTMatrices)
def _(space, base_point):
    n, blocks = space.n, []
    for i, row in enumerate(_rows(base_point), start=1):
        basis = complement_basis(row.flip(-1)).flip(-1)
        basis = torch.nn.functional.pad(basis, (0, n - 1 - i)).unsqueeze(-2)
        blocks.append(torch.nn.functional.pad(basis, (0, 0, i, n - 1 - i)))
    return torch.cat(blocks, dim=-3)


@geometry.constraint_residual.register(UnitNormedRowsPLTMatrices)
def _(space, point):
    found = geometry.model(space)
    rows = geometry.constraint_residual(found.space, found.to_model(point))
    above = (point - point.tril()).abs().amax((-2, -1))
    return rows + above + (point[..., 0, 0] - 1).abs()
