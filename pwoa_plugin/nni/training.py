"""One training by PwoA inside an evaluator: the loss it adds, ADMM, and when to prune."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ADMMConfig, DistillationConfig, HSICConfig, PerturbationConfig
from ..method.admm import ADMM
from ..method.batches import check_images, check_labels
from ..method.compression import TrainingError, build_admm, build_objective
from ..method.objective import PwoAObjective
from .config_list import Target

__all__ = ["Plan", "TakeBatch", "Terms", "Training", "plan_alone", "plan_scheduled", "take_images_and_labels"]

_logger = logging.getLogger(__name__)

_CHECKED_STEPS = 100  # the first batches are looked at; later ones of the same loader are like them
_STEPS_BETWEEN_CHECKS = 10

TakeBatch = Callable[[Any], tuple[Tensor, Tensor | None]]


def take_images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """``(x, y)`` of a batch as loaders give it: a tuple or list, a dict of ``pixel_values`` and ``labels``, or ``x``.

    Raises:
        ValueError: there are no images in it.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        x, y = batch.get("pixel_values", batch.get("x")), batch.get("labels", batch.get("y"))
    elif isinstance(batch, (tuple, list)) and batch:
        x, y = batch[0], batch[1] if len(batch) > 1 else None
    else:
        x = y = None
    if not isinstance(x, Tensor):
        what = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(f"no images in a batch ({what}); pass take_batch=, a function from your batch to (x, y)")
    return x, y


@dataclass(frozen=True)
class Terms:
    """What the loss is made of; see `PwoAConfig`."""

    distillation: DistillationConfig
    perturbation: PerturbationConfig
    hsic: HSICConfig
    admm: ADMMConfig
    eps: float | None
    pixel_range: tuple[float, float]
    take_batch: TakeBatch


@dataclass(frozen=True)
class Plan:
    """Optimizer steps at which things happen; steps are counted from 1.

    Attributes:
        interval: between dual updates.
        last_update: no dual update after this step.
        prune: step of the hard prune.
        scheduled: whether a scheduler says when.
    """

    interval: int
    last_update: int
    prune: int
    scheduled: bool = False


def plan_alone(config: ADMMConfig, steps: int, per_epoch: int | None) -> Plan | None:
    """ADMM over ``config.epochs``, or a quarter of all steps; None where that leaves no time for it."""
    admm = steps // 4 if config.epochs is None else config.epochs * (per_epoch or 0)
    return Plan(0, admm - 1, admm) if admm > 1 else None


def plan_scheduled(interval: int, times: int, steps: int | None) -> Plan:
    """A scheduler's updates are the dual updates; after the last the weights get some time to follow.

    That time is an interval, and at most half of the steps that are left: the rest is fine-tuning.
    """
    last = interval * times
    wait = interval if steps is None else min(interval, max(0, steps - last) // 2)
    return Plan(interval, last, last + wait, scheduled=True)


class Training:
    """PwoA's part in an evaluator's training.

    Args:
        model: the wrapped network that is trained.
        teacher: the frozen network.
        terms: of the loss.
        plan: of ADMM and the hard prune; None: prune at the first step, without ADMM.
        weights: the parameters to prune, by the names of ``targets``.
        targets: what they keep; none where only fine-tuning is wanted.
        shares: for each, how much of its sparsity its scheduler asks for at the moment, 0 to 1.
        prune: does the hard prune.
        hold: keeps at zero what is pruned.

    Attributes:
        step: optimizer steps done.
        pruned: whether the hard prune is behind.
        radius: of the perturbation in pixel units, once a batch has been seen.
        residual: ADMM's, at the hard prune.
        images: two of the first batch's images.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        terms: Terms,
        plan: Plan | None,
        *,
        weights: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        share: Callable[[str], float],
        prune: Callable[[], None],
        hold: Callable[[], None],
        pruned: bool,
        per_epoch: int | None,
    ) -> None:
        self.model, self.teacher, self.terms, self.plan = model, teacher, terms, plan
        self._prune, self._hold = prune, hold
        self.step, self.pruned = 0, pruned
        self.radius: float | None = None
        self.residual: float | None = None
        self.images: Tensor | None = None
        self._objective: PwoAObjective | None = None
        self._admm: ADMM | None = None
        if plan is not None and not pruned:
            masks = {name: partial(_mask_now, target, share, name) for name, target in targets.items()}
            steps = plan.last_update + 1
            interval = plan.interval or None
            self._admm, self._interval = build_admm(weights, masks, terms.admm, steps, per_epoch or 0, interval)

    def loss(self, others: Tensor, batch: Any, *_: Any, **__: Any) -> Tensor:
        """PwoA's loss on a batch, added to what ``others`` have; NNI calls this."""
        terms = self.terms
        x, y = terms.take_batch(batch)
        if self.step < _CHECKED_STEPS:
            check_images(x, terms.pixel_range, "evaluator's batch")
        objective, x, y = self._look(x, y)
        if self.step < _CHECKED_STEPS and y is not None and objective.needs_labels:
            check_labels(y, len(x), objective.classes, "evaluator's batch")
        objective.use_hsic = self._admm is None or terms.admm.hsic
        loss: Tensor = objective(self.model, x, y)
        if self.step % _STEPS_BETWEEN_CHECKS == 0 and not loss.isfinite():
            raise TrainingError(
                f"the loss is not finite at step {self.step + 1}; the model is as it was: lower the learning rate"
            )
        if self._admm is not None:
            loss = loss + self._admm.penalty()
        return others + loss

    def _look(self, x: Tensor, y: Tensor | None) -> tuple[PwoAObjective, Tensor, Tensor | None]:
        """Batch and teacher where the model is, and the objective, which the first batch makes."""
        terms, device = self.terms, next(self.model.parameters()).device
        if x.device != device:
            x, y = x.to(device), None if y is None else y.to(device)
        if self._objective is None:
            self.teacher.to(device)
            self.images = x[:2].detach().clone()
            self._objective, self.radius = build_objective(
                self.teacher,
                x,
                distillation=terms.distillation,
                perturbation=terms.perturbation,
                hsic=terms.hsic,
                eps=terms.eps,
                pixel_range=terms.pixel_range,
            )
            if self._objective.needs_labels and y is None:
                raise ValueError(
                    f"batches have no labels, and hsic.lambda_y={terms.hsic.lambda_y:g} needs them; set it to 0"
                )
        return self._objective, x, y

    @torch.no_grad()
    def after_step(self) -> None:
        """What follows an optimizer step; NNI calls this."""
        self.step += 1
        if self.pruned:
            self._hold()
        elif self._admm is None or self.plan is None or self.step >= self.plan.prune:
            self.finish()
        elif self.step <= self.plan.last_update and self.step % self._interval == 0:
            self._admm.dual_update()

    def finish(self) -> None:
        """The hard prune, unless it is behind: the weights alone are projected, without the dual."""
        if self.pruned:
            return
        if self.plan is not None and self.plan.scheduled and self.step < self.plan.last_update:
            _logger.warning(
                "training ended at step %d, before the scheduler's last update at %d; pruned to the whole ratio",
                self.step,
                self.plan.last_update,
            )
        if self._admm is not None:
            self.residual = self._admm.residual()
            _logger.info("primal residual |W - Z| / |W| at the hard prune: %.4f", self.residual)
        self._admm, self.pruned = None, True
        self._prune()
        self._hold()


def _mask_now(target: Target, share: Callable[[str], float], name: str, value: Tensor) -> Tensor:
    return target.mask(value, share(name))
