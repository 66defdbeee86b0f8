"""Safetensors files in which every byte is checked: tensors, facts as JSON in the header, and a checksum of each."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ._files import read_tensors, write_tensors
from .errors import InputError


def write_sealed(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any], form: str
) -> None:
    """Write tensors and JSON-ready facts as a file of that form; one of that name is replaced whole or not at all."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sums = {name: _checksum(tensor) for name, tensor in whole.items()}
    header = json.dumps({"facts": facts, "checksums": sums}, allow_nan=False)
    write_tensors(path, whole, {"format": form, "header": header, "checksum": str(zlib.crc32(header.encode()))})


def read_sealed(path: str | os.PathLike[str], form: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_sealed` wrote, and check every byte. An error calls the file ``what``.

    Raises:
        InputError: the file is missing, damaged or of another form.
    """
    tensors, metadata = read_tensors(path, what)
    header = metadata.get("header", "")
    if metadata.get("format") != form:
        raise InputError(f"{path}: is no {what}")
    if metadata.get("checksum") != str(zlib.crc32(header.encode())):
        raise InputError(f"{path}: its header is damaged")
    content = json.loads(header)  # as it was written: the checksum says so
    if tensors.keys() != content["checksums"].keys():
        raise InputError(f"{path}: its tensors are not those it was written with")
    for name, tensor in tensors.items():
        if _checksum(tensor) != content["checksums"][name]:
            raise InputError(f"{path}: {name} is damaged")
    return tensors, content["facts"]


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's dtype, shape and values; nothing else guards safetensors' own header."""
    layout = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, layout) if tensor.numel() else layout
