"""Distributions on a space: bases, baselines and flows."""
