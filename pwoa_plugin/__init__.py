"""Prune adversarially robust networks without adversarial examples (PwoA), in NNI and Torch-Pruning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PwoAConfig
    from .export import export_onnx, load_sparse, save_sparse, to_semi_structured
    from .masks import load_masks, save_masks
    from .method.loss import PwoALoss
    from .nni import PwoADistiller, PwoAPruner, make_evaluator
    from .nni.evaluators.lightning import LightningEvaluator as LightningEvaluator
    from .nni.evaluators.transformers import TransformersEvaluator as TransformersEvaluator
    from .removal import speedup
    from .robustness import Report, compare, evaluate
    from .torch_pruning import PwoAGroupPruner, load_pruned, save_pruned
    from .trackers import MLflow, TensorBoard, WandB

__version__ = "0.1.0"

# What every installation has: `from pwoa_plugin import *` needs no optional package.
__all__ = [
    "MLflow",
    "PwoAConfig",
    "PwoADistiller",
    "PwoAGroupPruner",
    "PwoALoss",
    "PwoAPruner",
    "Report",
    "TensorBoard",
    "WandB",
    "__version__",
    "compare",
    "evaluate",
    "export_onnx",
    "load_masks",
    "load_pruned",
    "load_sparse",
    "make_evaluator",
    "save_masks",
    "save_pruned",
    "save_sparse",
    "speedup",
    "to_semi_structured",
]

# Imported at first use, so that `import pwoa_plugin` takes milliseconds and no toolkit.
_HOME = {
    "LightningEvaluator": "nni.evaluators.lightning",
    "MLflow": "trackers",
    "PwoAConfig": "config",
    "PwoADistiller": "nni",
    "PwoAGroupPruner": "torch_pruning",
    "PwoALoss": "method.loss",
    "PwoAPruner": "nni",
    "Report": "robustness",
    "TensorBoard": "trackers",
    "TransformersEvaluator": "nni.evaluators.transformers",
    "WandB": "trackers",
    "compare": "robustness",
    "evaluate": "robustness",
    "export_onnx": "export",
    "load_masks": "masks",
    "load_pruned": "torch_pruning",
    "load_sparse": "export",
    "make_evaluator": "nni",
    "save_masks": "masks",
    "save_pruned": "torch_pruning",
    "save_sparse": "export",
    "speedup": "removal",
    "to_semi_structured": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOME})
