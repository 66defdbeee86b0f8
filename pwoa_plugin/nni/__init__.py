"""The door into NNI 3.0."""

from .distiller import PwoADistiller
from .evaluators import make_evaluator
from .pruner import PwoAPruner

__all__ = ["PwoADistiller", "PwoAPruner", "make_evaluator"]
