"""Architectures, and the robust network that the package ships."""

from .lenet import LeNet
from .robust import robust_lenet

__all__ = ["LeNet", "robust_lenet"]
