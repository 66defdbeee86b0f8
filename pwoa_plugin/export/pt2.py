"""A network as a program of `torch.export`, ``.pt2``."""

from __future__ import annotations

import io
import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .._files import replaced_whole
from .._text import named
from ..errors import InputError
from ..removal.inputs import call, tensors_of
from .base import Choices, Format
from .traced import TOLERANCE, traced

_logger = logging.getLogger(__name__)


def export_pt2(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    batch: bool = True,
    check: bool = True,
    tolerance: float = TOLERANCE,
) -> None:
    """Write a network as a ``.pt2`` file of `torch.export`, in eval mode; see `export_onnx`.

    ``torch.export.load(path).module()`` reads it without the network's code. Load only files that you trust: torch may
    unpickle parts of one.

    Args:
        model: any network, pruned or not; it is not changed.
        path: of the file, ``.pt2``.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments, batch first.
        batch: whether the file takes any number of images; otherwise it takes as many as the example has.
        check: load the file before it is put in place, and compare the outputs.
        tolerance: of these, relative to the largest absolute output.

    Raises:
        ValueError: the network cannot be exported, or the file's output differs by more than ``tolerance``.
        OSError: the file cannot be written.
    """
    given = traced(model, example_inputs, batch=batch)
    with replaced_whole(path) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = io.BytesIO()  # on a full disk, torch's own writer ends the process
        try:
            torch.export.save(given.program(), written)
        except Exception as error:
            raise InputError(f"model: torch.export fails on it ({named(error)}){given.cure}") from error
        scratch.write_bytes(written.getbuffer())
        if check:
            loaded = _loaded(scratch)
            with torch.no_grad():
                worst = given.check(lambda inputs: tensors_of(call(loaded, inputs)), "the exported program", tolerance)
            _logger.info("the exported program's output agrees to %.1e of its largest value", worst)


def _loaded(path: str | os.PathLike[str]) -> nn.Module:
    """The network of a file that this process has written."""
    with open(path, "rb") as file:
        return torch.export.load(file).module()


class _Program(nn.Module):
    """An exported network, which has no modes to switch."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> _Program:
        return self

    def forward(self, x: Tensor) -> Any:
        return self.program(x)


class PT2(Format):
    """`export_pt2`."""

    suffix = ".pt2"

    def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
        export_pt2(model, path, images)

    def read(self, path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
        return _Program(_loaded(path))

    def loading(self, name: str, new: str, removed: bool) -> str:
        return (
            "import torch\n\n"
            f"network = torch.export.load({name!r}).module()  # load only files that you trust\n"
            "logits = network(images)"
        )
