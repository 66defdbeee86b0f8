"""Weights as safetensors, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._files import write_tensors
from .._text import one_line
from ..errors import InputError, MissingFileError

__all__ = ["read_weights", "write_weights"]


def write_weights(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> None:
    """Write a state_dict.

    Raises:
        OSError: it cannot be written (a full disk, say).
    """
    write_tensors(path, tensors, {"format": "pt", **(facts or {})})


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_weights` wrote: tensors and facts.

    Raises:
        ValueError: the file is damaged.
        FileNotFoundError: there is none.
    """
    if not Path(path).exists():
        raise MissingFileError(f"{os.fspath(path)}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{os.fspath(path)}: is damaged ({one_line(error)})") from None
