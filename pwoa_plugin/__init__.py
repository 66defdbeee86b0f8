"""Prune adversarially robust networks without adversarial examples (PwoA), in NNI and Torch-Pruning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PwoAConfig
    from .masks import load_masks, save_masks
    from .method.loss import PwoALoss
    from .nni import PwoADistiller, PwoAPruner, make_evaluator
    from .nni.evaluators.lightning import LightningEvaluator
    from .nni.evaluators.transformers import TransformersEvaluator
    from .removal import speedup
    from .robustness import Report, compare, evaluate
    from .torch_pruning import PwoAGroupPruner

__version__ = "0.1.0"

__all__ = [
    "LightningEvaluator",
    "PwoAConfig",
    "PwoADistiller",
    "PwoAGroupPruner",
    "PwoALoss",
    "PwoAPruner",
    "Report",
    "TransformersEvaluator",
    "__version__",
    "compare",
    "evaluate",
    "load_masks",
    "make_evaluator",
    "save_masks",
    "speedup",
]

# Imported at first use, so that `import pwoa_plugin` takes milliseconds and no toolkit.
_HOME = {
    "LightningEvaluator": "nni.evaluators.lightning",
    "PwoAConfig": "config",
    "PwoADistiller": "nni",
    "PwoAGroupPruner": "torch_pruning",
    "PwoALoss": "method.loss",
    "PwoAPruner": "nni",
    "Report": "robustness",
    "TransformersEvaluator": "nni.evaluators.transformers",
    "compare": "robustness",
    "evaluate": "robustness",
    "load_masks": "masks",
    "make_evaluator": "nni",
    "save_masks": "masks",
    "speedup": "removal",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
