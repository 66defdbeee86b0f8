"""A training state as one safetensors file: tensors, facts as JSON in its header, a checksum of each."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._files import write_tensors
from .._text import one_line
from ..errors import InputError, MissingFileError
from ..method.snapshot import Snapshot

__all__ = ["StateFileError", "read_state", "write_state"]

_FORMAT = "pwoa-state-3"


class StateFileError(InputError):
    """A file that holds no state, or a damaged one; one line."""


def _checksum(tensor: Tensor) -> int:
    """Of dtype and shape, too: they stand in safetensors' own header, which nothing else guards."""
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
    """Read what `write_state` wrote, every byte checked.

    Raises:
        StateFileError: the file is not one, or a byte of it has changed.
        FileNotFoundError: there is none.
    """
    if not Path(path).exists():
        raise MissingFileError(f"{os.fspath(path)}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = metadata.get("header", "")
            if metadata.get("format") != _FORMAT:
                raise StateFileError("is no training state")
            if metadata.get("checksum") != str(zlib.crc32(header.encode())):
                raise StateFileError("its header is damaged")
            content = json.loads(header)
            state = Snapshot({name: file.get_tensor(name) for name in file.keys()}, content["facts"])  # noqa: SIM118
        if state.tensors.keys() != content["checksums"].keys():
            raise StateFileError("its tensors are not those it was written with")
        for name, tensor in state.tensors.items():
            if _checksum(tensor) != content["checksums"][name]:
                raise StateFileError(f"{name} is damaged")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise StateFileError(f"{os.fspath(path)}: {one_line(error)}") from None
    return state
