"""What a run reports while it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._text import short
from ..errors import InputError


@dataclass
class Status:
    """Where a run stands.

    Attributes:
        phase: ``admm``, ``gradual`` or ``fine-tune``.
        epochs, steps: of the whole run.
        epoch: current epoch, from 0.
        step: steps done.
        lr: learning rate.
        seconds: since the run began, including the time before it was resumed.
        terms: the loss's summands, means over the epoch up to the last report.
        loss: their sum.
        rho: ADMM's penalty weight; None outside ADMM.
        residual: ADMM's primal residual ``|W - Z| / |W|`` at the last dual update; None outside ADMM.
        images_per_second: since the epoch began.
        validation: ``clean`` and ``agreement`` of the last epoch, if a callback validates.
    """

    phase: str
    epochs: int
    steps: int
    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    seconds: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)
    loss: float = 0.0
    rho: float | None = None
    residual: float | None = None
    images_per_second: float = 0.0
    validation: Mapping[str, float] = field(default_factory=dict)


class Callback:
    """Override what you need. Callbacks watch a run; they may add to ``status.validation`` and to the history."""

    def on_run(self, run: Any) -> None:
        """Before `on_start`: the `Trainer`, whose ``config``, ``allocation`` and ``target`` may be read."""

    def on_start(self, status: Status) -> None:
        """Before the first step, also of a resumed run."""

    def on_step(self, status: Status) -> None:
        """After every step; terms are those of the last report. `Trainer.state` may be called here."""

    def on_report(self, status: Status) -> None:
        """With new terms: after the first step of an epoch and every tenth after it, and at its end."""

    def on_epoch_end(self, status: Status) -> None:
        """After every epoch. `Trainer.state` may be called here."""

    def on_end(self, status: Status | None) -> None:
        """At the end, also after an error; None if the run never began."""

    def on_written(self, plots: Path) -> None:
        """When a run in a folder has written its report; the folder of its plots, PNG files."""


def check_callbacks(callbacks: Any) -> Sequence[Callback]:
    """The callbacks; InputError unless they are a list or tuple of `Callback` objects."""
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(each, Callback) for each in callbacks):
        raise InputError(f"callbacks={short(callbacks)}: give a list of objects of subclasses of Callback")
    return callbacks


@contextlib.contextmanager
def always_ended(callbacks: Sequence[Callback], end: Callable[[bool], Status | None]) -> Iterator[None]:
    """Call every callback's `on_end` when the body ends or raises, even if one of them raises.

    Args:
        callbacks: in the order in which they are called.
        end: called first, with whether the body raised; returns the status for `on_end`.
    """
    failed = True
    status: Status | None = None

    def end_one(callback: Callback) -> None:
        callback.on_end(status)

    with contextlib.ExitStack() as stack:
        for callback in reversed(callbacks):
            stack.callback(end_one, callback)
        try:
            yield
            failed = False
        finally:
            status = end(failed)
