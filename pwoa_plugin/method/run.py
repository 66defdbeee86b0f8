"""The state of a run while a trainer runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .averaging import averaged
from .callback import Status
from .checkpointing import checkpointed
from .loss import PwoALoss
from .optimizers import ScheduledOptimizer
from .resuming import ResumableEpochs
from .schedule import Schedule
from .settings import TrainingConfig
from .shares import rows_of


@dataclass
class Run:
    """A run between its first step and its last.

    Attributes:
        student: the network as it is trained: in ``DistributedDataParallel`` among several processes.
        images: ``(2, C, H, W)``, for trial forwards.
        optimizer_is_own: whether the optimizer is ADMM's own.
        blocks: those that are checkpointed (see `checkpointing`).
        sums: of the loss's terms over this epoch.
        began: time of `perf_counter` at the beginning, as if the run had never stopped.
    """

    schedule: Schedule
    epochs: ResumableEpochs
    student: nn.Module
    images: Tensor
    parameters: list[nn.Parameter]
    status: Status
    per_epoch: int
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler
    blocks: list[nn.Module] = field(default_factory=list)
    optimizer: ScheduledOptimizer | None = None
    optimizer_is_own: bool = False
    sums: dict[str, Tensor] = field(default_factory=dict)
    began: float = 0.0

    def add_terms(self, terms: dict[str, Tensor], share: float = 1.0) -> None:
        """Add the terms of a batch, or of a share of it."""
        if share != 1:
            terms = {name: share * term for name, term in terms.items()}
        self.sums |= {name: self.sums[name] + term if name in self.sums else term for name, term in terms.items()}

    def backward(self, loss: PwoALoss, x: Tensor, y: Tensor | None, *, parts: int, weight: float) -> None:
        """Compute the gradient of a batch, averaged over the processes, and add its terms.

        Args:
            loss: prepared.
            x, y: checked, as `Batches` gives them.
            parts: of the batch, one after the other.
            weight: of this process's images in the mean over processes.
        """
        split = rows_of(x, y, parts)
        for number, part in enumerate(split, 1):
            share = len(part[0]) / len(x)
            with averaged(self.student, now=number == len(split)), checkpointed(self.blocks):
                with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
                    value = loss.of_checked(self.student, *part)
                scale = share * weight
                self.scaler.scale(value if scale == 1 else scale * value).backward()
            self.add_terms(loss.terms, share)

    def choose_optimizer(self, config: TrainingConfig) -> None:
        """Make a new optimizer if the phase has its own, had its own, or replaced the parameters."""
        phase, done = self.schedule.phase, self.status.step
        own = config.admm.optimizer if phase.name == "admm" else None
        if self.optimizer is not None and self.optimizer_is_own == (own is not None):
            return
        self.optimizer_is_own = own is not None
        steps, schedule = self.status.steps, config.schedule
        if own is not None:
            steps, schedule = phase.length, config.admm.schedule
        elif config.admm.optimizer is not None:
            # The run's schedule counts from ADMM's end.
            before = sum(other.done for other in self.schedule.phases if other.name == "admm")
            steps, done = steps - before, done - before
        self.optimizer = ScheduledOptimizer(
            self.parameters, own or config.optimizer, schedule, steps=steps, per_epoch=self.per_epoch, done=done
        )
