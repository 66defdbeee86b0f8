"""A network as ONNX, checked against onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._files import replaced_whole
from .._text import named
from .._wrapped import deep_copy, unwrapped
from ..errors import InputError, missing
from ..removal.inputs import call_saying_where, check_model, largest_difference, map_tensors, tensors_of

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TOLERANCE = 1e-4  # relative to the largest absolute output

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
        check: run the file in onnxruntime before it is put in place, and compare the outputs.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is missing.
        ValueError: the network cannot be exported, or onnxruntime's output differs by more than 1e-4 of the largest
            absolute output.
        OSError: the file cannot be written.
    """
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise missing("export_onnx", ", ".join(absent), "onnx")
    check_model(model := unwrapped(model))
    twin = deep_copy(model).eval()
    inputs = map_tensors(Tensor.detach, example_inputs)
    with torch.no_grad():
        expected = tensors_of(call_saying_where(twin, inputs))
    keywords = dict(inputs) if isinstance(inputs, Mapping) else None
    arguments = () if keywords is not None else tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    shapes: Any = None
    if batch:
        first = torch.export.Dim("batch")
        shapes = map_tensors(lambda tensor: {0: first} if tensor.dim() else None, keywords or arguments)
    with replaced_whole(path) as scratch:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    twin,
                    arguments,
                    os.fspath(scratch),
                    kwargs=keywords,
                    dynamo=True,
                    dynamic_shapes=shapes,
                    external_data=False,
                    verbose=False,
                )
        except Exception as error:
            cure = "; try batch=False, for files that take as many images as the example has" if batch else ""
            raise InputError(f"model: torch.onnx.export fails on it ({named(error)}){cure}") from error
        if check:
            _check(os.fspath(scratch), tensors_of(inputs), expected)


def _check(path: str, inputs: list[Tensor], expected: list[Tensor]) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {spec.name: tensor.cpu().numpy() for spec, tensor in zip(session.get_inputs(), inputs, strict=True)}
    found = [torch.from_numpy(output) for output in session.run(None, feed)]
    worst = largest_difference([output.cpu() for output in expected], found)
    if worst > _TOLERANCE:
        raise InputError(
            f"onnxruntime's output differs by {worst:.1e} of its largest value; give check=False to write it"
        )
    _logger.info("onnxruntime's output agrees to %.1e of its largest value", worst)
