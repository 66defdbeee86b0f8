"""Formats that store what pruning left of the weights: sparse files, and 2:4 for torch's own kernels."""

from __future__ import annotations

import importlib
import os

from torch import Tensor, nn

from .._wrapped import deep_copy
from .base import Choices, Format
from .pt2 import PT2, export_pt2


class Sparse(Format):
    """``save_sparse`` of `sparse`."""

    suffix = ".sparse.safetensors"
    values = ("float16", "bfloat16")

    def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
        importlib.import_module(".sparse", __package__).save_sparse(model, path, values=choices.values)

    def read(self, path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
        loaded = importlib.import_module(".sparse", __package__).load_sparse(twin := deep_copy(model), path)
        return loaded if isinstance(loaded, nn.Module) else twin

    def loading(self, name: str) -> str:
        return (
            "from pwoa_plugin.export.sparse import load_sparse\n\n"
            f"load_sparse(network, {name!r})  # network: a new one of the same architecture\n"
            "logits = network.eval()(images)"
        )


class SemiStructured(PT2):
    """``to_semi_structured`` of `semi_structured`, then `export_pt2`."""

    def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
        twin = deep_copy(model)
        made = importlib.import_module(".semi_structured", __package__).to_semi_structured(twin)
        made = made[0] if isinstance(made, tuple) else made
        export_pt2(made if isinstance(made, nn.Module) else twin, path, images, tolerance=1e-2)
