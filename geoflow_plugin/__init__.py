"""Learnable, normalised densities on the spaces of geomstats."""

from geoflow_plugin import geometry, layers, networks, spaces
from geoflow_plugin.calculus import divergence, gradient, laplacian
from geoflow_plugin.distributions.kernel_density import KernelDensity
from geoflow_plugin.distributions.mixture import Mixture
from geoflow_plugin.distributions.moser import MoserFlow
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
