"""ONNX files in 8 bits, by onnxruntime's static quantization."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import check_file, named_path, replaced_whole
from .._text import named
from ..errors import InputError, require
from .session import PACKAGES, ONNXNetwork


def quantize_onnx(
    source: str | os.PathLike[str], path: str | os.PathLike[str], images: Tensor, *, batch_size: int = 64
) -> None:
    """Quantize a float ONNX file to 8 bits; an existing file is replaced whole or not at all.

    Weights have one scale for each output channel, activations one for each tensor, from the smallest and largest
    value that ``images`` give (onnxruntime's ``quantize_static``, QDQ format). An exact 0 stays 0.

    Args:
        source: the float file, with one input.
        path: of the new file.
        images: natural images to calibrate on, ``(N, C, H, W)`` float32, as the network gets them; hundreds will do.
        batch_size: of these, at a time.

    Raises:
        ModuleNotFoundError: onnx or onnxruntime is missing.
        ValueError: ``source`` is no usable ONNX file, or does not take the images; or onnxruntime cannot quantize it.
        OSError: a file cannot be read or written.
    """
    require("int8", PACKAGES, "onnx")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quant_pre_process, quantize_static

    check_file(named_path("source", source), "ONNX file")
    if images.dim() < 2 or not len(images):
        raise InputError(f"images {tuple(images.shape)}: give natural images (N, C, H, W) to calibrate on")
    network = ONNXNetwork(source)
    try:
        network(images[:1])
    except Exception as error:
        raise InputError(
            f"{os.fspath(source)}: does not take images {tuple(images.shape[1:])} ({named(error)})"
        ) from None
    with replaced_whole(path) as scratch, tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(os.fspath(source), os.fspath(prepared), skip_symbolic_shape=True)
            quantize_static(
                os.fspath(prepared),
                os.fspath(scratch),
                _reader(network.input, images, batch_size),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        except OSError:
            raise
        except Exception as error:
            raise InputError(f"onnxruntime cannot quantize the network ({named(error)}); ship it in float") from error
        found = ONNXNetwork(scratch)(images[:2])
        if not all(output.isfinite().all() for output in (found if isinstance(found, tuple) else (found,))):
            raise InputError("the quantized network returns NaN or infinity; ship it in float")


def _reader(name: str, images: Tensor, batch_size: int) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.to(torch.float32).cpu().split(batch_size))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.contiguous().numpy()}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what onnxruntime prints, and advises at each call."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
