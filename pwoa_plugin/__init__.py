"""Prune adversarially robust networks without adversarial examples (PwoA), in NNI and Torch-Pruning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PwoAConfig
    from .masks import load_masks, save_masks
    from .nni import PwoAPruner
    from .removal import speedup
    from .robustness import Report, compare, evaluate

__version__ = "0.1.0"

__all__ = [
    "PwoAConfig",
    "PwoAPruner",
    "Report",
    "__version__",
    "compare",
    "evaluate",
    "load_masks",
    "save_masks",
    "speedup",
]

# Imported at first use, so that `import pwoa_plugin` takes milliseconds and no toolkit.
_HOME = {
    "PwoAConfig": "config",
    "PwoAPruner": "nni",
    "Report": "robustness",
    "compare": "robustness",
    "evaluate": "robustness",
    "load_masks": "masks",
    "save_masks": "masks",
    "speedup": "removal",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
