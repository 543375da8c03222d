"""Potentials averaged over a finite group, exactly."""

import functools

import torch
from torch import nn

from geoflow_plugin.networks.context import context_dim_of
from geoflow_plugin.networks.groups import as_elements, check_group

__all__ = ["SymmetricPotential"]


class _WherePotentialHas:
    """Method that is there where the potential has one of the same name."""

    def __init__(self, method):
        self.method, self.__doc__ = method, method.__doc__

    def __get__(self, instance, owner):
        if instance is None:
            return self.method
        getattr(instance.potential, self.method.__name__)  # or AttributeError
        return self.method.__get__(instance, owner)


class SymmetricPotential(nn.Module):
    r"""Average of a potential over a finite group, hence invariant under it.

    .. math::
        \bar\varphi(x) = \frac{1}{|G|} \sum_{g \in G} \varphi(g x), \qquad
        \nabla\bar\varphi(x) = \frac{1}{|G|} \sum_g g^T \nabla\varphi(g x)

    The gradient flow then commutes with the group, and pushes invariant densities to
    invariant ones. Where the potential has ``gradient``, ``gradient_and_trace`` or
    ``as_hidden_layer``, so has the average; otherwise ``hasattr`` says False.

    Parameters
    ----------
    potential : callable
        Points (n, *shape) to scalars (n,), and possibly what they are conditioned on.
    group : sequence
        All elements of a finite group: permutations (sequences or tensors of dim
        integers), pairs (permutation, signs) or orthogonal matrices (tensors or arrays,
        (dim, dim)), which act on flattened points. ``generate`` completes a few of them.

    Raises
    ------
    TypeError, ValueError
        For what is no such element, or elements that are no group.
    """

    index: torch.Tensor
    sign: torch.Tensor
    matrix: torch.Tensor

    def __init__(self, potential, group):
        super().__init__()
        if not callable(potential):
            raise TypeError(f"potential: expected a callable, got {potential!r}.")
        self.potential = potential
        elements = as_elements(group, "group")
        check_group(elements)
        self.dim = elements.shape[-1]
        if elements.ndim == 3:
            self.register_buffer("matrix", elements)
        else:
            index, sign = elements.abs() - 1, elements.sign().to(torch.int8)
            inverse = index.argsort(-1)
            self.register_buffer("index", torch.stack([index, inverse]))
            self.register_buffer("sign", torch.stack([sign, sign.gather(-1, inverse)]))

    @property
    def order(self):
        """Number of elements of the group."""
        return len(self.matrix) if hasattr(self, "matrix") else self.index.shape[1]

    @property
    def context_dim(self):
        """Number of conditioning variables of the potential, None if it does not say."""
        is_module = isinstance(self.potential, nn.Module)
        return context_dim_of(self.potential) if is_module else None

    def forward(self, x, *context):
        """Scalars (n,) at points (n, *shape), given what the potential is conditioned on."""
        return self._average(self.potential, x, *context)

    @_WherePotentialHas
    def at(self, time):
        """The average of a time-dependent potential at a time, as a callable."""
        return functools.partial(self._average, self.potential.at(time))

    @_WherePotentialHas
    def gradient(self, x):
        """Euclidean gradient, of the shape of the points."""
        return self._pulled_back(self.potential.gradient(self._images(x)), x)

    @_WherePotentialHas
    def gradient_and_trace(self, x, basis=None, context=None):
        """Gradient, and the trace of the Hessian over a basis, given a context.

        Parameters
        ----------
        x : torch.Tensor, shape=(n, *shape)
        basis : torch.Tensor, shape=(k, n, *shape), optional
            Default: an orthonormal basis of the whole array.

        Returns
        -------
        gradient : torch.Tensor, shape=(n, *shape)
        trace : torch.Tensor, shape=(n,)
            Sum of <e_i, Hess e_i>.
        """
        if basis is not None:
            n_vectors = len(basis)
            basis = self._act(basis.flatten(0, 1)).unflatten(1, (n_vectors, len(x)))
            basis = basis.transpose(0, 1).reshape(n_vectors, -1, *x.shape[1:])
        given = {} if context is None else {"context": context.repeat(self.order, 1)}
        vector, trace = self.potential.gradient_and_trace(self._images(x), basis, **given)
        return self._pulled_back(vector, x), trace.reshape(self.order, len(x)).mean(0)

    @_WherePotentialHas
    def as_hidden_layer(self):
        """The same potential as one hidden layer, its width times the order of the group.

        Returns
        -------
        weight : torch.Tensor, shape=(width, dim)
        bias, amplitude : torch.Tensor, shape=(width,)
        activation : str
        """
        weight, bias, amplitude, activation = self.potential.as_hidden_layer()
        # the rows w^T g, in another order: g^T = g^-1 is an element as well
        weight = self._act(weight).flatten(0, 1)
        amplitude = amplitude.repeat(self.order) / self.order
        return weight, bias.repeat(self.order), amplitude, activation

    def _average(self, potential, x, *context):
        repeated = (c.repeat(self.order, *[1] * (c.ndim - 1)) for c in context)
        return potential(self._images(x), *repeated).reshape(self.order, len(x)).mean(0)

    def _images(self, x):
        """The points g x, (order * n, *shape)."""
        return self._act(x).reshape(-1, *x.shape[1:])

    def _act(self, x):
        """Images of points (n, *shape), flattened: (order, n, dim)."""
        x = x.flatten(1)
        if x.shape[1] != self.dim:
            raise ValueError(
                f"x: expected points of {self.dim} coordinates, as the group has, got "
                f"{x.shape[1]}."
            )
        if hasattr(self, "matrix"):
            return x @ self.matrix.to(x).mT
        return x[:, self.index[0]].transpose(0, 1) * self.sign[0].unsqueeze(1)

    def _pulled_back(self, vector, x):
        """Mean of g^T v_g over vectors (order * n, *shape) at the images of x."""
        vector = vector.reshape(self.order, len(x), self.dim)
        if hasattr(self, "matrix"):
            vector = vector @ self.matrix.to(x)
        else:
            index = self.index[1].unsqueeze(1).expand_as(vector)
            vector = vector.gather(-1, index) * self.sign[1].unsqueeze(1)
        return vector.mean(0).reshape(x.shape)
