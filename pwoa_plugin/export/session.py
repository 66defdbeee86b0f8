"""ONNX files in onnxruntime."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from .._files import check_file, named_path
from .._text import named
from ..errors import InputError, require

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def open_session(path: str | os.PathLike[str], threads: int = 0) -> Any:
    """onnxruntime on a file, on the CPU; InputError if it is no usable ONNX file. ``threads`` 0: all cores."""
    import onnxruntime

    check_file(named_path("path", path), "ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{os.fspath(path)}: is no usable ONNX file ({named(error)})") from None


class ONNXNetwork(nn.Module):
    """An ONNX file as a network without gradients: images ``(N, C, H, W)`` to what the file returns, on the CPU.

    `pwoa_plugin.evaluate` judges it by attacks that need no gradient, such as Square.

    Args:
        path: of a file with one input.

    Raises:
        ModuleNotFoundError: onnxruntime is missing.
        InputError: the file is none, is damaged, or has several inputs.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        require("an ONNX file", ("onnxruntime",), "onnx")
        self.session = open_session(path)
        inputs = [spec.name for spec in self.session.get_inputs()]
        if len(inputs) != 1:
            raise InputError(f"{os.fspath(path)}: takes {len(inputs)} inputs ({', '.join(inputs)}); one is wanted")
        (self.input,) = inputs

    def forward(self, x: Tensor) -> Any:
        outputs = self.session.run(None, {self.input: x.detach().cpu().contiguous().numpy()})
        found = tuple(torch.from_numpy(output) for output in outputs)
        return found[0] if len(found) == 1 else found
