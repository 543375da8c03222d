"""Coordinates of a space as a layer, so that any normflows model works in them."""

import torch
from normflows.flows import Flow

from geoflow_plugin import geometry

__all__ = ["Chart"]


class Chart(Flow):
    """Coordinates in R^d to points of a space, with the volume change of its metric.

    Spaces diffeomorphic to R^d (SPD, hyperbolic, Cholesky, correlation matrices, positive
    reals, the simplex ...) take coordinates that fill R^d, which makes every normflows
    model a density there; tori take angles in radians (``inverse`` returns them in
    (-pi, pi]). docs/spaces.md says which spaces have one. In a normflows
    model whose base lives on the space, put ``normflows.flows.Reverse(Chart(space))`` first.

    Parameters
    ----------
    space : geomstats Manifold

    Raises
    ------
    TypeError
        If no chart of the space covers it up to a null set.
    """

    def __init__(self, space):
        super().__init__()
        geometry.chart(space, geometry.origin(space)[None])
        self.space = space

    def forward(self, z):
        """Coordinates (n, dim) to points (n, *space.shape) and log |det|, (n,)."""
        if not isinstance(z, torch.Tensor) or not z.is_floating_point():
            raise TypeError(f"z: expected a floating-point tensor, got {z!r}.")
        if z.ndim != 2 or z.shape[1] != geometry.dim(self.space):
            dim = geometry.dim(self.space)
            raise ValueError(f"z: expected shape (n, {dim}), got {tuple(z.shape)}.")
        try:
            finite = torch.compiler.is_compiling() or bool(z.detach().isfinite().all())
        except RuntimeError:  # under vmap values cannot be looked at
            finite = True
        if not finite:
            raise ValueError("z: expected finite coordinates, got NaN or infinity.")
        return geometry.chart_inverse(self.space, z)

    def inverse(self, z):
        """Points (n, *space.shape) to coordinates (n, dim) and log |det|, (n,)."""
        geometry.check_points(self.space, z, "z")
        return geometry.chart(self.space, z)
