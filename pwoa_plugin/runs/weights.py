"""Weights as safetensors, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from .._files import read_tensors, write_tensors

__all__ = ["read_weights", "write_weights"]


def write_weights(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> None:
    """Write a state_dict, and facts into the file's header; see `write_tensors`."""
    write_tensors(path, tensors, {"format": "pt", **(facts or {})})


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the facts that `write_weights` wrote; see `read_tensors`."""
    return read_tensors(path, "file of weights")
