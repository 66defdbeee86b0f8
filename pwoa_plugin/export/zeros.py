"""Formats that store what pruning left of the weights: sparse files, and 2:4 for torch's own kernels."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from .._wrapped import deep_copy
from .base import Choices, Format
from .pt2 import PT2, export_pt2
from .semi_structured import to_semi_structured
from .sparse import load_sparse, save_sparse

_BF16 = 2e-2  # relative difference of outputs in bfloat16


class Sparse(Format):
    """``save_sparse`` of `sparse`."""

    suffix = ".sparse.safetensors"
    values = ("float32", "float16", "bfloat16")

    def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
        save_sparse(model, path, values=choices.values or "float32")  # type: ignore[arg-type]

    def read(self, path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
        twin = deep_copy(model)
        load_sparse(twin, path)
        return twin

    def loading(self, name: str, new: str, removed: bool) -> str:
        load = f"load_sparse(network, {name!r})"
        if removed:
            load = f"network = load_pruned(network, {name!r}, example_inputs=images[:1])"
        return (
            f"from pwoa_plugin import {'load_pruned' if removed else 'load_sparse'}\n"
            "from pwoa_plugin.runs.network import make_network\n\n"
            f"network = {new}\n{load}\nlogits = network(images)"
        )


class SemiStructured(PT2):
    """``to_semi_structured`` of `semi_structured` in bfloat16 on a GPU, then `export_pt2`."""

    exact = False

    def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
        twin = deep_copy(model)
        if torch.cuda.is_available():  # without one, the conversion says what it needs
            twin, images = twin.to("cuda", torch.bfloat16), images.to("cuda", torch.bfloat16)
        to_semi_structured(twin)
        export_pt2(twin, path, images, tolerance=_BF16)

    def loading(self, name: str, new: str, removed: bool) -> str:
        return (
            "import torch\n\n"
            "# Any semi-structured tensor makes torch ready to run those of the file.\n"
            'torch.sparse.to_sparse_semi_structured(torch.zeros(64, 64, dtype=torch.bfloat16, device="cuda"))\n'
            f"network = torch.export.load({name!r}).module()  # load only files that you trust\n"
            'logits = network(images.to("cuda", torch.bfloat16))'
        )
