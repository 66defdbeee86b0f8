"""Runs without matplotlib's work, which is most of a small run's. The tests of pages and plots draw them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def save_empty(self: Figure, target: Any, format: str, **_: object) -> None:
    """In place of `Figure.savefig`: the file is there, with nothing drawn in it."""
    if format == "svg":
        target.write('<svg viewBox="0 0 1 1"></svg>')
    else:
        Path(target).write_bytes(b"\x89PNG")


def call(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``target`` in a process of its own that draws nothing."""
    Figure.savefig = save_empty  # type: ignore[assignment]
    return target(*args, **kwargs)
