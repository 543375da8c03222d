"""Torch-native geometry, one file per kin; importing this registers all of it."""

from geoflow_plugin.spaces import euclidean, orthogonal, product, sphere

__all__ = ["euclidean", "orthogonal", "product", "sphere"]
