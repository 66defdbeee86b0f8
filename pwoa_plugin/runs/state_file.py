"""A training state as one safetensors file: tensors, facts as JSON in the header, and a checksum of each."""

from __future__ import annotations

import json
import os
import zlib

import torch
from torch import Tensor

from .._files import read_tensors, write_tensors
from ..errors import InputError
from ..method.snapshot import Snapshot

_FORMAT = "pwoa-state-3"


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's dtype, shape and values; nothing else guards safetensors' own header."""
    layout = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, layout) if tensor.numel() else layout


def write_state(path: str | os.PathLike[str], state: Snapshot) -> None:
    """Write a state; a file of that name is replaced whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    header = json.dumps({"facts": state.facts, "checksums": sums}, allow_nan=False)
    metadata = {"format": _FORMAT, "header": header, "checksum": str(zlib.crc32(header.encode()))}
    write_tensors(path, tensors, metadata)


def read_state(path: str | os.PathLike[str]) -> Snapshot:
    """Read what `write_state` wrote, and check every byte."""
    tensors, metadata = read_tensors(path, "training state")
    header = metadata.get("header", "")
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path}: is no training state")
    if metadata.get("checksum") != str(zlib.crc32(header.encode())):
        raise InputError(f"{path}: its header is damaged")
    content = json.loads(header)  # as it was written: the checksum says so
    if tensors.keys() != content["checksums"].keys():
        raise InputError(f"{path}: its tensors are not those it was written with")
    for name, tensor in tensors.items():
        if _checksum(tensor) != content["checksums"][name]:
            raise InputError(f"{path}: {name} is damaged")
    return Snapshot(tensors, content["facts"])
