"""Complex spaces as real ones: every complex number is a pair.

geomstats keeps complex manifolds in a tree of their own, and their points are complex
arrays. ``RealView(space)`` is the same space as a real manifold, with the real part of the
Hermitian metric as geomstats computes it. Each class of complex spaces has its own
subclass, on which geometry is registered as for any other space.
"""

import math
from typing import Any

import numpy as np
import torch
from geomstats.geometry.complex_manifold import ComplexManifold
from geomstats.geometry.manifold import Manifold
from geomstats.geometry.product_manifold import ProductManifold

from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError

_VIEWS: dict[type, type] = {}


@geometry.is_compact.register(ComplexManifold)
@geometry.origin.register(ComplexManifold)
def _(space):
    raise UnsupportedError(
        f"space: points of {type(space).__qualname__} are complex arrays; "
        "geoflow_plugin.spaces.RealView(space) is the same space in real ones."
    )


class RealView(Manifold):
    """A complex space as a real manifold, its points ``torch.view_as_real`` of its own.

    Parameters
    ----------
    space : geomstats ComplexManifold, or a product with such a factor
        Its metric is the view's, also after either has been equipped anew.

    Attributes
    ----------
    complex_space : geomstats ComplexManifold
    shape : tuple of int
        ``(*space.shape, 2)``.
    dim : int
        The real dimension; geomstats' own is the complex one, save for Hermitian matrices.

    Raises
    ------
    TypeError
        For a real space, or one on whose view nobody registered a geometry.
    """

    complex_space: Any

    def __init_subclass__(cls, of=None, **kwargs):
        super().__init_subclass__(**kwargs)
        if of is not None:
            _VIEWS[of] = cls

    def __new__(cls, space=None):
        """Make an instance of the subclass for the nearest class of the space."""
        return super().__new__(_view_class(space) if cls is RealView else cls)

    def __init__(self, space):
        self.complex_space = space
        # by name: a product's own constructor wants factors
        Manifold.__init__(
            self,
            dim=self._real_dim(space),
            shape=(*space.shape, 2),
            intrinsic=space.intrinsic,
            equip=False,
        )
        if hasattr(space, "embedding_space"):
            self.embedding_space = _view(space.embedding_space)

    def _real_dim(self, space):
        return 2 * math.prod(space.shape)

    @property
    def metric(self):
        """The metric of the complex space."""
        return self.complex_space.metric

    @metric.setter
    def metric(self, metric):
        self.complex_space.metric = metric

    def default_metric(self):
        """Metric to equip the complex space with."""
        return self.complex_space.default_metric()

    def equip_with_metric(self, Metric=None, **metric_kwargs):
        """Equip the complex space with a metric."""
        self.complex_space.equip_with_metric(Metric, **metric_kwargs)
        return self

    @staticmethod
    def to_complex(point):
        """Complex points or vectors of real ones: tensors, or arrays, (..., *shape)."""
        if isinstance(point, torch.Tensor):
            return torch.complex(point[..., 0], point[..., 1])
        return point[..., 0] + 1j * point[..., 1]

    @staticmethod
    def to_real(point):
        """Real points or vectors (..., *shape) of complex ones: tensors, or arrays."""
        if isinstance(point, torch.Tensor):
            point = point.to(point.dtype.to_complex())
            return torch.view_as_real(point.resolve_conj())
        return np.stack([point.real, point.imag], axis=-1)

    # geomstats' own functions, of its own arrays

    def belongs(self, point, **kwargs):
        """Evaluate if points belong to the space."""
        return self.complex_space.belongs(self.to_complex(point), **kwargs)

    def is_tangent(self, vector, base_point=None, **kwargs):
        """Check whether vectors are tangent at base points."""
        base_point = None if base_point is None else self.to_complex(base_point)
        return self.complex_space.is_tangent(self.to_complex(vector), base_point, **kwargs)

    def to_tangent(self, vector, base_point):
        """Project vectors to tangent spaces."""
        arrays = self.to_complex(vector), self.to_complex(base_point)
        return self.to_real(self.complex_space.to_tangent(*arrays))

    def projection(self, point):
        """Project points to the space."""
        return self.to_real(self.complex_space.projection(self.to_complex(point)))

    def random_point(self, n_samples=1, bound=1.0):
        """Sample points of the space."""
        return self.to_real(self.complex_space.random_point(n_samples, bound))


def _view_class(space):
    for cls in type(space).__mro__:
        if cls in _VIEWS:
            return _VIEWS[cls]
    name = type(space).__qualname__
    if isinstance(space, ComplexManifold):
        raise UnsupportedError(f"space: geoflow_plugin has no real view of {name} yet.")
    raise UnsupportedError(f"space: {name} is no complex space; it is used as it is.")


def register_open_view(cls):
    """What every view has in common that fills an open set of a linear space."""
    geometry.is_compact.register(cls)(lambda space: False)
    # the default serves flat metrics and models, where ``intrinsic``'s would ask geomstats
    geometry.inner_product.register(cls)(geometry.inner_product.__wrapped__)


# Complex matrices as real ones of twice the size ----------------------------------------


def widen(array):
    """Matrices (..., n, m, 2) to (..., 2n, 2m): a + ib to the block [[a, -b], [b, a]].

    A homomorphism that takes adjoints to transposes, Hermitian positive definite to
    symmetric positive definite, and Cholesky factors to Cholesky factors; squared norms
    are doubled.
    """
    a, b = array.unbind(-1)
    rows = [torch.stack([a, -b], dim=-1), torch.stack([b, a], dim=-1)]
    block = torch.stack(rows, dim=-2).transpose(-3, -2)
    return block.flatten(-4, -3).flatten(-2)


def narrow(matrix):
    """Nearest complex matrices, (..., n, m, 2), of real ones (..., 2n, 2m)."""
    block = matrix.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).transpose(-3, -2)
    (a, minus_b), (b, d) = (row.unbind(-1) for row in block.unbind(-2))
    return torch.stack([(a + d) / 2, (b - minus_b) / 2], dim=-1)


# Products -------------------------------------------------------------------------------


class RealProduct(RealView, ProductManifold, of=ProductManifold):
    """The product of the factors' views; geometry is that of any product."""

    def __init__(self, space):
        if not _is_complex(space):
            raise UnsupportedError("space: no factor is complex; it is used as it is.")
        self.factors = tuple(_view(factor) for factor in space.factors)
        self._has_mixed_fields = False
        super().__init__(space)

    def _real_dim(self, space):
        return sum(factor.dim for factor in self.factors)


class RealAxis(RealView):
    """A real space among complex ones: imaginary parts are zero."""

    metric: Any = object()  # that of the real space counts, through the model

    def _real_dim(self, space):
        return geometry.dim(space)


def _is_complex(space):
    if isinstance(space, ProductManifold):
        return any(_is_complex(factor) for factor in space.factors)
    return isinstance(space, ComplexManifold)


def _view(space):
    return RealView(space) if _is_complex(space) else RealAxis(space)


def _with_zeros(array):
    return torch.stack([array, torch.zeros_like(array)], dim=-1)


@geometry.model.register(RealAxis)
def _(space):
    return geometry.Model(space.complex_space, lambda x: x[..., 0], _with_zeros)


@geometry.metrics.register(RealAxis)
def _(space):
    return geometry.metrics(space.complex_space)


@geometry.projection.register(RealAxis)
def _(space, point):
    return _with_zeros(geometry.projection(space.complex_space, point[..., 0]))


@geometry.to_tangent.register(RealAxis)
def _(space, vector, base_point):
    arrays = vector[..., 0], base_point[..., 0]
    return _with_zeros(geometry.to_tangent(space.complex_space, *arrays))


@geometry.tangent_basis.register(RealAxis)
def _(space, base_point):
    return _with_zeros(geometry.tangent_basis(space.complex_space, base_point[..., 0]))


@geometry.constraint_residual.register(RealAxis)
def _(space, point):
    off_axis = point[..., 1].abs().flatten(-len(space.complex_space.shape)).amax(-1)
    return off_axis + geometry.constraint_residual(space.complex_space, point[..., 0])
