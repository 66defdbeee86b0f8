"""The door into Torch-Pruning: channels that are really gone."""

from ..export.onnx import export_onnx
from .importance import PwoAImportance
from .pruner import PwoAGroupPruner
from .saving import load_pruned, save_pruned

__all__ = ["PwoAGroupPruner", "PwoAImportance", "export_onnx", "load_pruned", "save_pruned"]
