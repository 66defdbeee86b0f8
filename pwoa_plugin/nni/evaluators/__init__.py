"""NNI's evaluators: made in one call, or mended where today's Lightning and Transformers broke them."""

from .torch_evaluator import make_evaluator

__all__ = ["make_evaluator"]
