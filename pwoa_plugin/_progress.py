"""Progress of long work, row by row: bars where they can be drawn over and over, lines of text elsewhere."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from ._text import visible
from .pages.text import duration


def can_draw(console: Console) -> bool:
    """Whether a bar shows: on a terminal, and in a notebook that has widgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


class TimeLeft(ProgressColumn):
    """The time left as last estimated (the task's field ``left``, in seconds, or None), counted down since then."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if task.finished or left is None:
            return Text(clock(task.elapsed) if task.finished else "-:--:--")
        return Text(f"{clock(max(0.0, left - (time.monotonic() - task.fields['at'])))} left")


def clock(seconds: float | None) -> str:
    """``0:01:05``"""
    whole = math.ceil(seconds or 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


class Rows:
    """Rows of progress on stderr, one after another.

    Args:
        shown: whether anything is shown at all.
        every: seconds between two lines where there are no bars.
    """

    def __init__(self, *, shown: bool, every: float = 30.0) -> None:
        console = Console(stderr=True)
        self._text = shown and not can_draw(console)
        parts = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeLeft()
        self._bar = Progress(*parts, console=console, disable=not shown or self._text)
        self._every = every
        self._name, self._row = "", TaskID(0)
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, name: str) -> None:
        """Begin the next row."""
        self._name = visible(name)
        self._began = self._last = time.monotonic()
        self._row = self._bar.add_task(self._name, total=1.0, left=None, at=0.0)

    def update(self, share: float, left: float | None) -> None:
        """``share`` of the row is done, and ``left`` seconds are left, as far as is known."""
        now = time.monotonic()
        self._bar.update(self._row, completed=share, left=left, at=now)
        if self._text and now - self._last >= self._every:
            self._last = now
            say(f"{self._name}: {share:.0%}" + ("" if left is None else f", {duration(left)} left"))

    def end(self) -> None:
        """The row is done."""
        self._bar.update(self._row, completed=1.0)
        if self._text:
            say(f"{self._name}: done in {duration(time.monotonic() - self._began)}")
