"""The gradient flow of a potential (Zhang, E, Wang 2018), on any space."""

import torch
from normflows.flows import Flow
from torch import nn

from geoflow_plugin import geometry
from geoflow_plugin.calculus import gradient_and_laplacian, is_transformed
from geoflow_plugin.geometry.checks import check_counts, check_positive
from geoflow_plugin.integrators import hidden_layer_flow, integrate, reversible, runge_kutta
from geoflow_plugin.networks import (
    FourierPotential,
    OneHiddenLayerPotential,
    SymmetricPotential,
)
from geoflow_plugin.networks.context import Given, context_dim_of

__all__ = ["MongeAmpere"]

_SOLVERS = {"runge_kutta": runge_kutta, "reversible": reversible}


class MongeAmpere(Flow):
    r"""Map of points along the gradient of a potential, for a time.

    .. math::
        \dot x = \operatorname{grad} \varphi(x), \qquad
        \frac{d}{dt} \log |\det| = \Delta \varphi(x),

    with the Riemannian gradient and the Laplace-Beltrami operator of the space.

    Parameters
    ----------
    space : geomstats Manifold
    potential : nn.Module, optional
        Points (n, *space.shape), as ``geometry.embed`` shows them, to scalars (n,), or
        points and context. With a method ``at(t)``, the potential depends on time, which
        runs from 0 (base) to ``n_steps * step_size`` (data). Default: on Euclidean space
        a ``OneHiddenLayerPotential``, elsewhere a ``FourierPotential``.
    n_steps : int
    step_size : float
    symmetry : sequence, optional
        A finite group, as ``networks.SymmetricPotential`` takes it: the map commutes with
        its elements.
    solver : {"runge_kutta", "reversible", "adaptive"}
        Fourth order in ``step_size``, forward and back; the same forward with an inverse
        that is exact to rounding, and memory that does not grow with ``n_steps``;
        Dormand and Prince's of order five, to a tolerance.
    context_dim : int
        Of contexts (n, context_dim) that the default potential is conditioned on. A layer
        whose potential takes none leaves them aside, as normflows' own do.

    References
    ----------
    .. [ZEW18] L. Zhang, W. E, L. Wang. "Monge-Ampère Flow for Generative Modeling",
       2018. https://arxiv.org/abs/1809.10188
    """

    def __init__(
        self,
        space,
        potential=None,
        *,
        n_steps=20,
        step_size=0.05,
        symmetry=None,
        solver="runge_kutta",
        dtype=None,
        context_dim=0,
    ):
        super().__init__()
        geometry.log_volume_element(space, geometry.origin(space)[None])  # refuses by name
        if geometry.interpolation(space) is not None:
            raise TypeError("space: gradients jump at its edges, so that nothing flows along.")
        check_counts(0, context_dim=context_dim)
        if potential is None:
            potential = _default_potential(space, dtype, context_dim)
        elif context_dim:
            raise ValueError(
                f"context_dim: is for the default potential, got {context_dim!r} beside a "
                f"{type(potential).__name__}; make that one conditional."
            )
        if not isinstance(potential, nn.Module):
            raise TypeError(
                f"potential: expected a torch.nn.Module, got {type(potential).__name__}; wrap "
                "a plain function in a module."
            )
        check_counts(n_steps=n_steps)
        check_positive(step_size=step_size)
        if solver not in (*_SOLVERS, "adaptive"):
            expected = sorted([*_SOLVERS, "adaptive"])
            raise ValueError(f"solver: expected one of {expected}, got {solver!r}.")
        if symmetry is not None:
            try:
                potential = SymmetricPotential(potential, symmetry)
            except (TypeError, ValueError) as error:
                raise type(error)(f"symmetry: {error}") from error
        self.space = space
        self.potential = potential
        self.n_steps, self.step_size, self.solver = n_steps, float(step_size), solver

    @property
    def context_dim(self):
        """Columns of the context that the potential needs; None if it does not say."""
        return context_dim_of(self.potential)

    def forward(self, z, context=None):
        """Base points to data points and log |det|, shapes (n, *shape) and (n,)."""
        geometry.check_points(self.space, z, "z")
        return self.solve(z, 0.0, self.end, context)

    def inverse(self, z, context=None):
        """Data points to base points and log |det|, shapes (n, *shape) and (n,)."""
        geometry.check_points(self.space, z, "z")
        return self.solve(z, self.end, 0.0, context)

    @property
    def end(self):
        """Time at which the data are, that of the base being zero."""
        return self.n_steps * self.step_size

    def solve(self, x, start, end, context=None):
        """Move points, which are not checked, from one time to another."""
        if context is not None and context_dim_of(self.potential) == 0:
            context = None
        if self.solver == "runge_kutta" and context is None and not is_transformed():
            layer = self._hidden_layer()
            if layer is not None:
                weight, bias, amplitude, activation = layer
                step_size = (end - start) / self.n_steps
                flat, log_det = hidden_layer_flow(
                    x.flatten(1), weight, bias, amplitude, activation, step_size, self.n_steps
                )
                return flat.reshape(x.shape), log_det
        velocity = _GradientFlow(self.space, self.potential, context)
        if self.solver == "adaptive":
            return integrate(self.space, velocity, x, start, end)[:2]
        solve = _SOLVERS[self.solver]
        return solve(self.space, velocity, x, start, end, self.n_steps)[:2]

    def draw(self, z):
        """Base points, not checked, to data points, log |det|, and the doubt about it, (n,).

        The doubt is that of ``integrators.runge_kutta``. Training on samples looks for
        what makes the determinant large, and finds steps that are too long; the doubt,
        added to the loss, keeps it honest. It is zero for the other solvers, and for one
        hidden layer on Euclidean space.
        """
        if self.solver == "runge_kutta" and self._hidden_layer() is None:
            velocity = _GradientFlow(self.space, self.potential, None)
            return runge_kutta(self.space, velocity, z, 0.0, self.end, self.n_steps)
        x, log_det = self.solve(z, 0.0, self.end)
        return x, log_det, torch.zeros_like(log_det)

    def _hidden_layer(self):
        """Weight, bias, amplitude and activation, where two matmuls say it all, or None."""
        if not geometry.is_euclidean(self.space) or context_dim_of(self.potential):
            return None
        as_hidden_layer = getattr(self.potential, "as_hidden_layer", None)
        if as_hidden_layer is None:
            return None
        weight, bias, amplitude, activation = as_hidden_layer()
        return weight, bias, amplitude / geometry.metric_scale(self.space), activation

    def extra_repr(self):
        """Steps and solver, for print."""
        return f"n_steps={self.n_steps}, step_size={self.step_size}, solver={self.solver!r}"


def _default_potential(space, dtype, context_dim):
    shape = geometry.embed(space, geometry.origin(space)[None]).shape[1:]
    if geometry.is_euclidean(space):
        return OneHiddenLayerPotential(shape.numel(), dtype=dtype, context_dim=context_dim)
    return FourierPotential(shape, dtype=dtype, context_dim=context_dim)


class _GradientFlow(nn.Module):
    """Gradient and Laplacian of a potential as velocity and growth."""

    def __init__(self, space, potential, context):
        super().__init__()
        self.space, self.potential, self.context = space, potential, context

    def tensors(self):
        """What derivatives may be wanted for."""
        tensors = [p for p in self.potential.parameters() if p.requires_grad]
        if self.context is not None and self.context.requires_grad:
            tensors.append(self.context)
        return tensors

    def forward(self, t, x):
        potential = self.potential
        if hasattr(potential, "at"):
            potential = potential.at(t)
        if self.context is not None:
            potential = Given(potential, self.context)
        return gradient_and_laplacian(self.space, potential, x)
