"""Measurements behind the figures in the docs; not part of the package."""
