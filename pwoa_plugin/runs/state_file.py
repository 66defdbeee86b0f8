"""A training state as one file, in which every byte is checked."""

from __future__ import annotations

import os

from .._sealed import read_sealed, write_sealed
from ..method.snapshot import Snapshot

_FORMAT = "pwoa-state-3"


def write_state(path: str | os.PathLike[str], state: Snapshot) -> None:
    """Write a state; a file of that name is replaced whole or not at all."""
    write_sealed(path, state.tensors, state.facts, _FORMAT)


def read_state(path: str | os.PathLike[str]) -> Snapshot:
    """Read what `write_state` wrote, and check every byte."""
    return Snapshot(*read_sealed(path, _FORMAT, "training state"))
