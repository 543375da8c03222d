"""Learnable, normalised densities on the spaces of geomstats.

Importing it gives every geomstats manifold ``equip_with_distribution`` and changes
nothing else; ``unregister`` takes that back.
"""

from geoflow_plugin import datasets, geometry, layers, networks, spaces, targets, testing
from geoflow_plugin.calculus import divergence, gradient, laplacian
from geoflow_plugin.diagnostics import check_invertibility, check_normalization
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.flow import Flow
from geoflow_plugin.distributions.free_form import FreeFormInjectiveFlow
from geoflow_plugin.distributions.injective import InjectiveFlow
from geoflow_plugin.distributions.kernel_density import KernelDensity
from geoflow_plugin.distributions.lattice_normal import LatticeNormal
from geoflow_plugin.distributions.mixture import Mixture
from geoflow_plugin.distributions.monge_ampere import MongeAmpereFlow
from geoflow_plugin.distributions.moser import MoserFlow
from geoflow_plugin.distributions.reverse_kl import free_energy
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal
from geoflow_plugin.equip import (
    available_distributions,
    equip_with_distribution,
    register,
    register_distribution,
    unregister,
)
from geoflow_plugin.outliers import OutlierStump, outlier_scores
from geoflow_plugin.volume_change import log_volume_change, log_volume_change_and_error

__version__ = "0.1.0"

__all__ = [
    "Distribution",
    "Flow",
    "FreeFormInjectiveFlow",
    "InjectiveFlow",
    "KernelDensity",
    "LatticeNormal",
    "Mixture",
    "MongeAmpereFlow",
    "MoserFlow",
    "OutlierStump",
    "Uniform",
    "WrappedNormal",
    "available_distributions",
    "check_invertibility",
    "check_normalization",
    "datasets",
    "divergence",
    "equip_with_distribution",
    "free_energy",
    "geometry",
    "gradient",
    "laplacian",
    "layers",
    "log_volume_change",
    "log_volume_change_and_error",
    "networks",
    "outlier_scores",
    "register",
    "register_distribution",
    "spaces",
    "targets",
    "testing",
    "unregister",
]

register()
