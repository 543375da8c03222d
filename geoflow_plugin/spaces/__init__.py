"""Torch-native geometry, one file per kin; importing this registers all of it."""

from geoflow_plugin.spaces import linear, orthogonal, product, sphere

__all__ = ["linear", "orthogonal", "product", "sphere"]
