"""A network as a program of ExecuTorch, ``.pte``, for phones and other small devices."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .._files import replaced_whole
from .._text import named
from ..errors import InputError, require
from ..removal.inputs import tensors_of
from .base import Choices, Format
from .traced import TOLERANCE, traced

_logger = logging.getLogger(__name__)


def export_pte(model: nn.Module, path: str | os.PathLike[str], example_inputs: Any, *, check: bool = True) -> None:
    """Write a network as a ``.pte`` file, in eval mode; an existing file is replaced whole or not at all.

    What ExecuTorch's XNNPACK backend can run goes to it; the rest runs in portable kernels. The file takes as many
    images as the example has: its memory is planned ahead, and ExecuTorch 1.5.1 with torch 2.14 plans for 15 images
    whatever bound a free number has.

    Args:
        model: any network, pruned or not; it is not changed.
        path: of the file, ``.pte``.
        example_inputs: a tensor or a tuple of tensors, batch first; one image suits most devices.
        check: run the file in ExecuTorch before it is put in place, and compare the outputs.

    Raises:
        ModuleNotFoundError: executorch is missing.
        ValueError: the network cannot be exported, or the file's output differs by more than 1e-4 of the largest
            absolute output.
        OSError: the file cannot be written.
    """
    require("export_pte", ("executorch",), "executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    given = traced(model, example_inputs, batch=False)
    with replaced_whole(path) as scratch, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():
                lowered = to_edge_transform_and_lower(
                    given.program(), partitioner=[XnnpackPartitioner()]
                ).to_executorch()
        except Exception as error:
            raise InputError(f"model: ExecuTorch's export fails on it ({named(error)}); try pt2 or onnx") from error
        scratch.write_bytes(lowered.buffer)
        if check:
            loaded = PTENetwork(scratch)
            worst = given.check(lambda inputs: tensors_of(loaded(*tensors_of(inputs))), "ExecuTorch", TOLERANCE)
            _logger.info("ExecuTorch's output agrees to %.1e of its largest value", worst)


class PTENetwork(nn.Module):
    """A ``.pte`` file as a network without gradients, on the CPU; it takes any number of images, in several calls."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        from executorch.runtime import Runtime

        self.program = Runtime.get().load_program(os.fspath(path))
        self.method = self.program.load_method("forward")
        self.images: int = self.method.metadata.input_tensor_meta(0).sizes()[0]  # of a call

    def forward(self, *inputs: Tensor) -> Any:
        count = len(inputs[0])
        # The last call's images are filled up by copies of the last.
        index = torch.arange(count + -count % self.images).clamp_max(count - 1)
        # What execute() returns lies in the program's own memory, which the next call writes to.
        found = [
            [part.clone() for part in self.method.execute([each.detach()[few].contiguous() for each in inputs])]
            for few in index.split(self.images)
        ]
        whole = tuple(torch.cat(parts)[:count] for parts in zip(*found, strict=True))
        return whole[0] if len(whole) == 1 else whole


class PTE(Format):
    """`export_pte`."""

    suffix = ".pte"
    library = "executorch"
    packages = ("executorch",)
    extra = "executorch"

    def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
        export_pte(model, path, images[:1])

    def read(self, path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
        return PTENetwork(path)

    def loading(self, name: str, new: str, removed: bool) -> str:
        return (
            "from executorch.runtime import Runtime\n\n"
            f"program = Runtime.get().load_program({name!r})\n"
            "(logits,) = program.load_method('forward').execute([images])  # one image, (1, C, H, W)"
        )
