"""The door into NNI 3.0."""

from .pruner import PwoAPruner

__all__ = ["PwoAPruner"]
