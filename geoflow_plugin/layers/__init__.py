"""Maps between distributions, as normflows flows, and embeddings."""

from geoflow_plugin.layers.chain import smooth_couplings
from geoflow_plugin.layers.chart import Chart
from geoflow_plugin.layers.embedding import Embedding, LinearEmbedding, Reshape
from geoflow_plugin.layers.logit import Logit
from geoflow_plugin.layers.monge_ampere import MongeAmpere
from geoflow_plugin.layers.moser_transport import MoserTransport

__all__ = [
    "Chart",
    "Embedding",
    "LinearEmbedding",
    "Logit",
    "MongeAmpere",
    "MoserTransport",
    "Reshape",
    "smooth_couplings",
]
