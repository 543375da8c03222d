"""Fields and potentials: modules from points to ambient vectors, or to scalars.

Flows project fields on tangent spaces for themselves.
"""

from geoflow_plugin.networks.conditional_sources import ConditionalSourceField
from geoflow_plugin.networks.deep_potentials import (
    FourierPotential,
    InputConvexPotential,
    TimeDependentPotential,
)
from geoflow_plugin.networks.eigenfunctions import EigenfunctionField
from geoflow_plugin.networks.fields import FourierField
from geoflow_plugin.networks.groups import cyclic, generate, permutations, sign_flip
from geoflow_plugin.networks.lattice import LatticePotential, lattice_symmetries
from geoflow_plugin.networks.potentials import OneHiddenLayerPotential
from geoflow_plugin.networks.sources import SourceField
from geoflow_plugin.networks.symmetric import SymmetricPotential

__all__ = [
    "ConditionalSourceField",
    "EigenfunctionField",
    "FourierField",
    "FourierPotential",
    "InputConvexPotential",
    "LatticePotential",
    "OneHiddenLayerPotential",
    "SourceField",
    "SymmetricPotential",
    "TimeDependentPotential",
    "cyclic",
    "generate",
    "lattice_symmetries",
    "permutations",
    "sign_flip",
]
