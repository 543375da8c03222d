"""Fields and potentials: modules from points to ambient vectors, or to scalars.

Flows project fields on tangent spaces for themselves.
"""

from geoflow_plugin.networks.fields import FourierField
from geoflow_plugin.networks.sources import SourceField

__all__ = ["FourierField", "SourceField"]
