"""PwoA's part in an evaluator's training: the loss that it adds, and the schedule that follows each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .._data import as_images, split_batch
from ..errors import InputError
from ..method.finite import FiniteLosses, check_finite
from ..method.loss import PwoALoss
from ..method.phases import Phase
from ..method.schedule import Schedule
from .batch import BatchAdapter, TakeBatch
from .target import SpaceTarget


class Training:
    """One training by an evaluator, which calls `loss` for each batch and `after_step` after each optimizer step.

    Attributes:
        step: optimizer steps done.
        schedule: phases and the hard prune; None where nothing is pruned.
    """

    def __init__(
        self, model: nn.Module, loss: PwoALoss, take_batch: TakeBatch, *, student: nn.Module | None = None
    ) -> None:
        self.model, self._loss, self._take_batch = model, loss, take_batch
        self._student = model if student is None else student
        self.step, self._first = 0, loss.step
        self.schedule: Schedule | None = None
        self._target: SpaceTarget | None = None
        self._finite = FiniteLosses()
        self.images = 0  # seen
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._epochs_left: Callable[[], float] | None = None
        self.reports: list[Callable[[], None]] = []  # called after each step

    @property
    def phase(self) -> str:
        """The name of the phase of the next step; ``train`` where nothing is pruned here."""
        return "train" if self.schedule is None else self.schedule.phase.name

    @property
    def terms(self) -> dict[str, Tensor]:
        """The loss's summands at the last step."""
        return self._loss.terms

    def mean_terms(self) -> dict[str, float]:
        """Means of the loss's summands since this was last called: some are in a share of the steps only."""
        means = {name: float(total) / self._summed for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        return means

    def follow(self, target: SpaceTarget, phases: Sequence[Phase]) -> None:
        """Prune the target by these phases; without any, at once, unless that has happened before."""
        self._target = target
        self.schedule = Schedule(target, phases, check=self.check)
        self.schedule.start()

    def count_epochs(self, steps: int | None, per_epoch: int | None) -> None:
        """Know which epochs are the last ones, if adversarial examples are for these; InputError if nobody does."""
        if (section := self._loss.adversarial) is None or section.epochs is None:
            return
        if steps is None or per_epoch is None:
            raise InputError(
                f"adversarial.epochs={section.epochs} needs the steps of an epoch, which the evaluator does not know; "
                "give PwoAPruner steps_per_epoch=, or leave adversarial.epochs out"
            )
        section.check_length(steps / per_epoch)
        self._epochs_left = lambda: (steps - self.step) / per_epoch

    def loss(self, others: Tensor, batch: Any, *_: Any, **__: Any) -> Tensor:
        """PwoA's loss of a batch, added to what ``others`` have; NNI calls this.

        ADMM acts by a penalty here: NNI's own LightningEvaluator shows tasks before a step the gradients of the last.
        """
        x, y = self._take_batch(batch)
        device = next(self.model.parameters()).device
        if device != self._loss.device:  # evaluators move the model, and not the teacher
            self._loss.to(device)
        if self._target is not None and self._target.images is None:
            images = as_images(x, self._loss.pixel_range, "x", check=False)
            self._target.images = images[:2].detach().to(device, copy=True)
        phase = self.schedule.phase if self.schedule is not None else None
        self._loss.use_hsic = phase is None or phase.uses_hsic
        self._loss.step = self._first + self.step  # batches that are accumulated, and closures, make one step
        if self._epochs_left is not None:
            self._loss.attack_if_due(self._epochs_left())
        if y is None and self._loss.use_hsic and self._loss.needs_labels and isinstance(batch, Mapping):
            split_batch(batch, "train_loader", labelled=True)  # names the keys
        with ExitStack() as asked:
            for network in (self._loss.teacher, self._student):
                if isinstance(network, BatchAdapter):
                    asked.enter_context(network.about(batch, x))
            loss: Tensor = self._loss(self._student, x, y)
        self._finite.add(loss)
        self.images += len(x)
        self._sums |= {name: self._sums.get(name, 0) + term for name, term in self.terms.items()}
        self._summed += 1
        penalty = phase.penalty() if phase is not None else None
        return others + (loss if penalty is None else loss + penalty)

    @torch.no_grad()
    def after_step(self) -> None:
        """Do what follows an optimizer step; NNI calls this."""
        self.step += 1
        if self.schedule is not None:
            self.schedule.after_step()
            while self.schedule.due:
                self.schedule.advance()
        for report in self.reports:
            report()

    def check(self) -> None:
        """Raise TrainingError if a loss or a weight is not finite."""
        self._finite.check()
        check_finite(self.model, self.step)

    def finish(self) -> None:
        """Do the hard prune if it has not happened yet, and check what training has left."""
        self.check()
        if self.schedule is not None:
            self.schedule.finish()
