"""Unnormalised densities with exactly known integrals, as normflows targets.

Mixtures and other toys are in ``normflows.distributions`` already.
"""

from geoflow_plugin.targets.ising import CRITICAL_TEMPERATURE, IsingTarget, exact_log_partition
from geoflow_plugin.targets.lattice_field import Phi4Target

__all__ = ["CRITICAL_TEMPERATURE", "IsingTarget", "Phi4Target", "exact_log_partition"]
