"""A network as ONNX, checked against onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import replaced_whole
from .._text import named
from ..errors import InputError, require
from ..removal.inputs import tensors_of
from .base import Choices, Format
from .int8 import quantize_onnx
from .session import PACKAGES, ONNXNetwork, open_session
from .traced import TOLERANCE, Traced, traced

_logger = logging.getLogger(__name__)


def export_onnx(
    model: nn.Module, path: str | os.PathLike[str], example_inputs: Any, *, batch: bool = True, check: bool = True
) -> None:
    """Write a network as one ONNX file, in eval mode; an existing file is replaced whole or not at all.

    Args:
        model: any network, pruned or not; it is not changed.
        path: of the file, ``.onnx``.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments, batch first.
        batch: whether the file takes any number of images; otherwise it takes as many as the example has.
        check: run the file in onnxruntime before it is put in place, and compare the outputs (with ``batch`` for two
            numbers of images).

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is missing.
        ValueError: the network cannot be exported, or onnxruntime's output differs by more than 1e-4 of the largest
            absolute output.
        OSError: the file cannot be written.
    """
    require("export_onnx", PACKAGES, "onnx")
    given = traced(model, example_inputs, batch=batch)
    with replaced_whole(path) as scratch:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    given.twin,
                    given.arguments,
                    os.fspath(scratch),
                    kwargs=given.keywords,
                    dynamo=True,
                    dynamic_shapes=given.shapes,
                    external_data=False,
                    verbose=False,
                )
        except OSError:
            raise
        except Exception as error:
            raise InputError(f"model: torch.onnx.export fails on it ({named(error)}){given.cure}") from error
        if check:
            _check(scratch, given)


def _check(path: Path, given: Traced) -> None:
    session = open_session(path)
    names = [spec.name for spec in session.get_inputs()]

    def run(inputs: Any) -> list[Tensor]:
        feed = {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors_of(inputs), strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    worst = given.check(run, "onnxruntime", TOLERANCE)
    _logger.info("onnxruntime's output agrees to %.1e of its largest value", worst)


class ONNX(Format):
    """`export_onnx`; with ``int8``, `quantize_onnx` behind it."""

    suffix = ".onnx"
    quantizations = ("int8",)
    library = "onnx"
    packages = PACKAGES
    extra = "onnx"

    def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
        if choices.quantize is None:
            export_onnx(model, path, images)
            return
        assert choices.calibration is not None
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(model, Path(folder) / "float.onnx", images)
            quantize_onnx(Path(folder) / "float.onnx", path, choices.calibration)

    def read(self, path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
        return ONNXNetwork(path)

    def loading(self, name: str, new: str, removed: bool) -> str:
        return (
            "import onnxruntime\n\n"
            f"session = onnxruntime.InferenceSession({name!r}, providers=['CPUExecutionProvider'])\n"
            "logits = session.run(None, {session.get_inputs()[0].name: images})[0]  # images: a float32 array"
        )
