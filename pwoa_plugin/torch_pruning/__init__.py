"""The door into Torch-Pruning: channels that are really gone."""

from .importance import PwoAImportance
from .onnx import export_onnx
from .pruner import PwoAGroupPruner
from .saving import load_pruned, save_pruned

__all__ = ["PwoAGroupPruner", "PwoAImportance", "export_onnx", "load_pruned", "save_pruned"]
