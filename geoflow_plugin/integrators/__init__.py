"""Solvers on a space, and the fast path of one-hidden-layer potentials."""

from geoflow_plugin.integrators.adaptive import integrate
from geoflow_plugin.integrators.hidden_layer import hidden_layer_flow
from geoflow_plugin.integrators.reversible import reversible
from geoflow_plugin.integrators.runge_kutta import runge_kutta

__all__ = ["hidden_layer_flow", "integrate", "reversible", "runge_kutta"]
