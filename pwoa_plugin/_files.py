"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replaced_whole", "write_text"]


@contextmanager
def replaced_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch file beside ``path`` to write to; on leaving it takes the place of ``path`` in one move.

    Where the body raises, ``path`` is as it was. What was written is on the disk before the move, so that a crash
    leaves the old file or the new one. Missing folders are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        scratch.touch(exist_ok=False)
        mode = scratch.stat().st_mode  # what the umask gives; some writers make files for their owner alone
        yield scratch
        scratch.chmod(mode)
        _sync(scratch)
        os.replace(scratch, target)
        if os.name == "posix":
            _sync(target.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text; a file of that name is replaced whole or not at all."""
    with replaced_whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")
