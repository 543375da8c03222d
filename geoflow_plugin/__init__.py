"""Learnable, normalised densities on the spaces of geomstats.

Importing it gives every geomstats manifold ``equip_with_distribution`` and changes
nothing else; ``unregister`` takes that back.
"""

from geoflow_plugin import datasets, geometry, layers, networks, spaces, targets, testing
from geoflow_plugin import saved_classes as saved_classes
from geoflow_plugin.calculus import divergence, gradient, laplacian
from geoflow_plugin.calibration import calibration
from geoflow_plugin.diagnostics import (
    check_invertibility,
    check_normalization,
    check_sampling,
)
from geoflow_plugin.distributions.at_context import AtContext
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.conditional_kernel_density import (
    ConditionalKernelDensity,
)
from geoflow_plugin.distributions.conditional_wrapped_normal import ConditionalWrappedNormal
from geoflow_plugin.distributions.flow import Flow
from geoflow_plugin.distributions.free_form import FreeFormInjectiveFlow
from geoflow_plugin.distributions.injective import InjectiveFlow
from geoflow_plugin.distributions.kernel_density import KernelDensity
from geoflow_plugin.distributions.lattice_normal import LatticeNormal
from geoflow_plugin.distributions.low_rank_normal import LowRankNormal
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
from geoflow_plugin.estimator import FlowDensity
from geoflow_plugin.outliers import OutlierStump, outlier_scores
from geoflow_plugin.persistence import load, register_saved, save
from geoflow_plugin.report import report
from geoflow_plugin.two_sample import classifier_test, maximum_mean_discrepancy
from geoflow_plugin.volume_change import log_volume_change, log_volume_change_and_error

__version__ = "0.1.0"

__all__ = [
    "AtContext",
    "ConditionalKernelDensity",
    "ConditionalWrappedNormal",
    "Distribution",
    "Flow",
    "FlowDensity",
    "FreeFormInjectiveFlow",
    "InjectiveFlow",
    "KernelDensity",
    "LatticeNormal",
    "LowRankNormal",
    "Mixture",
    "MongeAmpereFlow",
    "MoserFlow",
    "OutlierStump",
    "Uniform",
    "WrappedNormal",
    "available_distributions",
    "calibration",
    "check_invertibility",
    "check_normalization",
    "check_sampling",
    "classifier_test",
    "datasets",
    "divergence",
    "equip_with_distribution",
    "free_energy",
    "geometry",
    "gradient",
    "laplacian",
    "layers",
    "load",
    "log_volume_change",
    "log_volume_change_and_error",
    "maximum_mean_discrepancy",
    "networks",
    "outlier_scores",
    "register",
    "register_distribution",
    "register_saved",
    "report",
    "save",
    "spaces",
    "targets",
    "testing",
    "unregister",
]

register()
