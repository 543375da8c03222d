"""Maps between distributions, as normflows flows."""

from geoflow_plugin.layers.chart import Chart
from geoflow_plugin.layers.logit import Logit
from geoflow_plugin.layers.monge_ampere import MongeAmpere
from geoflow_plugin.layers.moser_transport import MoserTransport

__all__ = ["Chart", "Logit", "MongeAmpere", "MoserTransport"]
