"""Progress of a run on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from .method.callback import Callback, Status

__all__ = ["ProgressBar"]


class ProgressBar(Callback):
    """A rich bar on stderr: phase, epoch, terms of the loss, ADMM's residual, images/s, time left."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_start(self, status: Status) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=15)),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=Console(stderr=True),
            expand=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(status.phase, total=status.steps, figures="")

    def on_report(self, status: Status) -> None:
        if self._progress is None:
            return
        figures = " ".join(f"{name} {value:.4g}" for name, value in status.terms.items())
        if status.residual is not None:
            figures += f" |W-Z|/|W| {status.residual:.3f}"
        self._progress.update(
            self._task,
            completed=status.step,
            description=f"{status.phase} {min(status.epoch + 1, status.epochs)}/{status.epochs}",
            figures=f"{figures} {status.images_per_second:.0f} images/s",
        )

    def on_end(self, status: Status | None) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
