"""Injective maps of flat vectors into more dimensions, with left inverses."""

import math

import torch
from normflows.flows import Flow
from torch import nn

from geoflow_plugin.geometry.checks import as_dtype, as_shape, check_counts

__all__ = ["Embedding", "LinearEmbedding", "Reshape"]


class Embedding(nn.Module):
    """Zero padding of R^k to R^D; its left inverse keeps the first k coordinates.

    What a subclass writes is ``forward``, differentiable and one-to-one, and ``inverse``,
    which undoes it and maps all of R^D.

    Parameters
    ----------
    dim : int
        k, the number of entries of a point before.
    ambient_dim : int
        D, the number after, k or more.

    Raises
    ------
    ValueError
        If they are no such integers.
    """

    names = "embedding", "embedding"  # of the arguments that its map and its inverse are

    def __init__(self, dim, ambient_dim):
        super().__init__()
        check_counts(dim=dim, ambient_dim=ambient_dim)
        if ambient_dim < dim:
            raise ValueError(f"ambient_dim: expected {dim} or more, got {ambient_dim}.")
        self.dim, self.ambient_dim = dim, ambient_dim

    @property
    def is_identity(self):
        """Whether it does nothing, so that layers' own log-determinants say it all."""
        return type(self) is Embedding and self.dim == self.ambient_dim

    def forward(self, z):
        """Vectors (n, k) to (n, D)."""
        return nn.functional.pad(z, (0, self.ambient_dim - self.dim))

    def inverse(self, x):
        """Vectors (n, D) to (n, k)."""
        return x[:, : self.dim]

    def extra_repr(self):
        """Sizes, for print."""
        return f"dim={self.dim}, ambient_dim={self.ambient_dim}"


class LinearEmbedding(Embedding):
    """z to W z for a learned W of full column rank, and its pseudo-inverse.

    Parameters
    ----------
    dim, ambient_dim : int
        As for ``Embedding``.
    generator : torch.Generator, optional
    dtype : torch.dtype, optional
        Default: torch's default dtype, as for any module.

    Attributes
    ----------
    weight : torch.nn.Parameter, shape=(ambient_dim, dim)
        With orthonormal columns at first.
    """

    def __init__(self, dim, ambient_dim, generator=None, dtype=None):
        super().__init__(dim, ambient_dim)
        dtype = as_dtype(dtype)
        normal = torch.randn(ambient_dim, dim, generator=generator, dtype=dtype)
        self.weight = nn.Parameter(torch.linalg.qr(normal)[0])

    def forward(self, z):
        """Vectors (n, k) to (n, D)."""
        return z @ self.weight.mT

    def inverse(self, x):
        """Vectors (n, D) to coefficients (n, k) of the nearest vectors in the image."""
        q, r = torch.linalg.qr(self.weight)
        return torch.linalg.solve_triangular(r, (x @ q).mT, upper=True).mT


class Reshape(Flow):
    """Arrays of one shape to arrays of another, for layers that work on images.

    Parameters
    ----------
    shape_in, shape_out : tuple of int
        Of a point before and after; with as many entries.

    Raises
    ------
    ValueError
        If the numbers of entries differ.
    """

    def __init__(self, shape_in, shape_out):
        super().__init__()
        self.shape_in = as_shape(shape_in, "shape_in")
        self.shape_out = as_shape(shape_out, "shape_out")
        if math.prod(self.shape_in) != math.prod(self.shape_out):
            raise ValueError(
                f"shape_out: expected {math.prod(self.shape_in)} entries, as shape_in "
                f"{self.shape_in} has, got {self.shape_out}."
            )

    def forward(self, z):
        """Arrays (n, *shape_in) to (n, *shape_out), and log-determinants of zero."""
        return z.reshape(len(z), *self.shape_out), z.new_zeros(len(z))

    def inverse(self, z):
        """Arrays (n, *shape_out) to (n, *shape_in), and log-determinants of zero."""
        return z.reshape(len(z), *self.shape_in), z.new_zeros(len(z))

    def extra_repr(self):
        """Shapes, for print."""
        return f"{self.shape_in}, {self.shape_out}"
