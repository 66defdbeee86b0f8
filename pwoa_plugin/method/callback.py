"""What a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Status:
    """Where a run stands.

    Attributes:
        phase: ``admm``, ``gradual`` or ``fine-tune``.
        epoch: current epoch of the whole run, from 0.
        epochs: of the whole run.
        step: steps done in the whole run.
        steps: of the whole run.
        lr: learning rate.
        seconds: of the run so far, also before it was resumed.
        terms: the loss's summands, means of the epoch up to the last report.
        loss: their sum.
        rho: ADMM's penalty weight; None outside ADMM.
        residual: ADMM's primal residual ``|W - Z| / |W|``, as of the last dual update; None outside ADMM.
        images_per_second: since the epoch began.
        validation: what was found of the last epoch, as ``clean`` and ``agreement``, where a callback validates.
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
    """Override what is of interest. Callbacks see a run; they do not change it."""

    def on_start(self, status: Status) -> None:
        """Before the first step, of a resumed run too."""

    def on_step(self, status: Status) -> None:
        """After every step; terms are as old as the last report. `Trainer.state` may be asked here."""

    def on_report(self, status: Status) -> None:
        """Now and then after a step, once the terms are known."""

    def on_epoch_end(self, status: Status) -> None:
        """After every epoch. `Trainer.state` may be asked here."""

    def on_end(self, status: Status | None) -> None:
        """At the end, also when the run raised."""
