"""Data sets."""

from .embedded import mnist_sample

__all__ = ["mnist_sample"]
