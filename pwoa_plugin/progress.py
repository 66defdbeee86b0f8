"""Progress of a run: a bar on a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ._progress import TimeLeft, can_draw
from .method.callback import Callback, Status


def default_progress(console: Console | None = None) -> Callback:
    """A bar if stderr is a terminal or a notebook with widgets, plain lines if it is a file, a pipe, another notebook.

    Share the console with everything that writes to the terminal, so that the bar stays below.
    """
    console = console or Console(stderr=True)
    return ProgressBar(console) if can_draw(console) else PlainProgress()


def _figures(status: Status) -> str:
    figures = [f"{name} {value:.4g}" for name, value in status.terms.items()]
    if status.residual is not None:
        figures.append(f"|W-Z|/|W| {status.residual:.3f}")
    return " ".join([*figures, f"{status.images_per_second:.0f} images/s"])


def _seconds_left(status: Status) -> float:
    return status.seconds / max(1, status.step) * (status.steps - status.step)


class ProgressBar(Callback):
    """Phase, epoch, a bar and the time left; below, the terms of the loss, ADMM's residual and images/s."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeLeft(),
            console=console,
        )
        self._figures = Text()
        self._live = Live(Group(self._bar, self._figures), console=console)
        self._task = TaskID(0)

    def on_start(self, status: Status) -> None:
        self._task = self._bar.add_task(status.phase, total=status.steps, completed=status.step)
        self._live.start()

    def on_report(self, status: Status) -> None:
        epoch = f"{min(status.epoch + 1, status.epochs)}/{status.epochs}"
        said = f"{status.phase} {epoch}"
        left, now = _seconds_left(status), time.monotonic()
        self._bar.update(self._task, completed=status.step, description=said, left=left, at=now)
        self._figures.plain = _figures(status)

    def on_end(self, status: Status | None) -> None:
        self._live.stop()


class PlainProgress(Callback):
    """A line on stderr, or in a file, at the end of every epoch, and every ``every`` seconds within a long epoch."""

    def __init__(self, file: TextIO | None = None, *, every: float = 30.0) -> None:
        self._file, self._every = file, every
        self._last = time.perf_counter()

    def _write(self, status: Status, epoch: int, *, ended: bool = False) -> None:
        self._last = time.perf_counter()
        found = "".join(f" {name} {value:.2%}" for name, value in status.validation.items()) if ended else ""
        text = f"{status.phase} {epoch}/{status.epochs} step {status.step}/{status.steps} {_figures(status)}{found}"
        file = self._file or sys.stderr
        file.write(f"{text} {math.ceil(_seconds_left(status))} s left\n")
        file.flush()

    def on_report(self, status: Status) -> None:
        if time.perf_counter() - self._last >= self._every:
            self._write(status, status.epoch + 1)

    def on_epoch_end(self, status: Status) -> None:
        self._write(status, status.epoch, ended=True)


class JSONProgress(Callback):
    """A JSON line for every report and every epoch: the fields of `Status`, epochs from 1, and ``seconds_left``.

    Once the file's reader has gone away, nothing more is written; the run continues.
    """

    def __init__(self, file: TextIO) -> None:
        self._file: TextIO | None = file

    def _write(self, event: str, status: Status, epoch: int) -> None:
        values = {"event": event, **vars(status), "epoch": epoch, "seconds_left": _seconds_left(status)}
        try:
            if self._file is not None:
                self._file.write(json.dumps(values) + "\n")
                self._file.flush()
        except BrokenPipeError:
            self._file = None

    def on_report(self, status: Status) -> None:
        self._write("step", status, status.epoch + 1)

    def on_epoch_end(self, status: Status) -> None:
        self._write("epoch", status, status.epoch)
