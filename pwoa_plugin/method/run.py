"""The state of a run while a trainer runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .callback import Status
from .optimizers import ScheduledOptimizer
from .resuming import ResumableEpochs
from .schedule import Schedule


@dataclass
class Run:
    """A run between its first step and its last.

    Attributes:
        images: ``(2, C, H, W)``, for trial forwards.
        optimizer_is_own: whether the optimizer is ADMM's own.
        sums: of the loss's terms over this epoch.
        began: time of `perf_counter` at the beginning, as if the run had never stopped.
    """

    schedule: Schedule
    epochs: ResumableEpochs
    images: Tensor
    parameters: list[nn.Parameter]
    status: Status
    per_epoch: int
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler
    optimizer: ScheduledOptimizer | None = None
    optimizer_is_own: bool = False
    sums: dict[str, Tensor] = field(default_factory=dict)
    began: float = 0.0

    def add_terms(self, terms: dict[str, Tensor]) -> None:
        self.sums |= {name: self.sums[name] + term if name in self.sums else term for name, term in terms.items()}
