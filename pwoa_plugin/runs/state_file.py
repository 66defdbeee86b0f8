"""A training state as one safetensors file: tensors, facts as JSON in the header, and a checksum of each."""

from __future__ import annotations

import json
import os
import zlib

import torch
from torch import Tensor

from .._files import read_tensors, write_tensors
from ..errors import InputError, MissingFileError
from ..method.snapshot import Snapshot

__all__ = ["StateFileError", "read_state", "write_state"]

_FORMAT = "pwoa-state-3"


class StateFileError(InputError):
    """A file that holds no state, or a damaged one."""


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's dtype, shape and values; nothing else guards safetensors' own header."""
    layout = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, layout) if tensor.numel() else layout


def write_state(path: str | os.PathLike[str], state: Snapshot) -> None:
    """Write a state; a file of that name is replaced whole or not at all.

    Raises:
        OSError: it cannot be written (a full disk, say).
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    header = json.dumps({"facts": state.facts, "checksums": sums}, allow_nan=False)
    metadata = {"format": _FORMAT, "header": header, "checksum": str(zlib.crc32(header.encode()))}
    write_tensors(path, tensors, metadata)


def read_state(path: str | os.PathLike[str]) -> Snapshot:
    """Read what `write_state` wrote, and check every byte.

    Raises:
        StateFileError: the file is not one, or a byte of it has changed.
        FileNotFoundError: there is none.
    """
    try:
        tensors, metadata = read_tensors(path, "training state")
    except MissingFileError:
        raise
    except InputError as error:
        raise StateFileError(str(error)) from None
    header = metadata.get("header", "")
    if metadata.get("format") != _FORMAT:
        raise StateFileError(f"{os.fspath(path)}: is no training state")
    if metadata.get("checksum") != str(zlib.crc32(header.encode())):
        raise StateFileError(f"{os.fspath(path)}: its header is damaged")
    content = json.loads(header)  # as it was written: its checksum says so
    if tensors.keys() != content["checksums"].keys():
        raise StateFileError(f"{os.fspath(path)}: its tensors are not those it was written with")
    for name, tensor in tensors.items():
        if _checksum(tensor) != content["checksums"][name]:
            raise StateFileError(f"{os.fspath(path)}: {name} is damaged")
    return Snapshot(tensors, content["facts"])
