"""One training by PwoA inside an evaluator: the loss it adds, ADMM, and when to prune."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..config import ADMMConfig, GradualConfig
from ..errors import InputError, TrainingError
from ..method.admm import ADMM, self_scaled_updates
from ..method.gradual import interval_of_cuts
from ..method.loss import PwoALoss
from ..method.phases import phase_lengths
from .batch import TakeBatch
from .config_list import Target

__all__ = [
    "FiniteCheck",
    "Plan",
    "Training",
    "check_count",
    "check_counts",
    "check_length",
    "check_weight",
    "plan_alone",
    "plan_scheduled",
]

_logger = logging.getLogger(__name__)

_STEPS_BETWEEN_CHECKS = 10
_CURE = "the model is as it was: lower the learning rate"


@dataclass(frozen=True)
class Plan:
    """Optimizer steps at which things happen; steps are counted from 1.

    Attributes:
        interval: between dual updates, or between the cuts of gradual pruning.
        last_update: no dual update and no cut after this step.
        prune: step of the hard prune.
        scheduled: whether a scheduler says when.
        gradual: whether there are cuts, and no ADMM.
    """

    interval: int
    last_update: int
    prune: int
    scheduled: bool = False
    gradual: bool = False


def check_length(max_steps: object, max_epochs: object) -> None:
    """What a ``compress`` is told of its length.

    Raises:
        ValueError: not one of the two is given, or it is no int of at least 1.
    """
    if (max_steps is None) == (max_epochs is None):
        raise InputError("compress: give max_steps or max_epochs, one of them")
    check_counts(max_steps, max_epochs)


def check_counts(max_steps: object, max_epochs: object) -> None:
    """Raise ValueError where one that is given is no int of at least 1."""
    for name, value in (("max_steps", max_steps), ("max_epochs", max_epochs)):
        if value is not None:
            check_count(f"compress: {name}", value)


def check_count(name: str, value: object) -> None:
    """Raise ValueError where ``value`` is no int of at least 1; ``name`` is what it goes by."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={value!r}; give an int of at least 1")


def check_weight(name: str, value: object) -> None:
    """Raise ValueError where ``value`` is no finite number of at least 0; ``name`` is what it goes by."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise InputError(f"{name}={value!r}; give a number of at least 0")


def plan_alone(
    admm: ADMMConfig, gradual: GradualConfig, steps: int, per_epoch: int | None, *, one_cut: bool = False
) -> Plan | None:
    """Gradual pruning over ``gradual.epochs``, or half of all steps; or ADMM over ``admm.epochs``, or a quarter.

    Args:
        admm, gradual: as `PwoAConfig` has them; gradual pruning is the default, unless ``admm`` says anything.
        steps: of the whole training.
        per_epoch: of an epoch, where an ``epochs`` is given.
        one_cut: whether there is no way between dense and the end (n:m): then ADMM is the default.

    Returns:
        None where no time is left for either: then one prunes at once.
    """
    updates, cuts = phase_lengths(steps, admm, gradual, one_cut=one_cut, per_epoch=per_epoch or 0)
    if cuts > 1:
        return Plan(interval_of_cuts(gradual.interval, cuts), cuts - 1, cuts, gradual=True)
    return Plan(0, updates - 1, updates) if updates > 1 else None


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
        loss: PwoA's own, with the frozen teacher.
        admm: see `PwoAConfig`.
        take_batch: see `take_images_and_labels`.
        plan: of ADMM or gradual pruning, and the hard prune; None: prune at the first step, without either.
        weights: the parameters to prune, by the names of ``targets``.
        targets: what they keep; none where only fine-tuning is wanted.
        share: how much of a target's sparsity its scheduler asks for at the moment, 0 to 1, by the target's name.
        cut: does a cut of gradual pruning, at a share of the way to the hard prune.
        hold_cut: keeps at zero what was cut.
        prune: does the hard prune.
        hold: keeps at zero what is pruned.
        pruned: whether the hard prune is behind already.
        per_epoch: optimizer steps of an epoch, where ADMM's interval is in epochs.

    Attributes:
        step: optimizer steps done.
        pruned: whether the hard prune is behind.
        residual: ADMM's, at the hard prune.
        images: two of the first batch's images.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PwoALoss,
        plan: Plan | None,
        *,
        admm: ADMMConfig,
        take_batch: TakeBatch,
        weights: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        share: Callable[[str], float],
        cut: Callable[[float], None],
        hold_cut: Callable[[], None],
        prune: Callable[[], None],
        hold: Callable[[], None],
        pruned: bool,
        per_epoch: int | None,
    ) -> None:
        self.model, self.plan = model, plan
        self._loss, self._config, self._take_batch = loss, admm, take_batch
        self._cut, self._hold_cut, self._prune, self._hold = cut, hold_cut, prune, hold
        self.step, self.pruned = 0, pruned
        self.residual: float | None = None
        self.images: Tensor | None = None
        self._finite = FiniteCheck()
        self._admm: ADMM | None = None
        if plan is not None and not plan.gradual and not pruned:
            masks = {name: partial(_mask_now, target, share, name) for name, target in targets.items()}
            steps = plan.last_update + 1
            interval = plan.interval or None
            if interval is None and admm.interval:
                interval = admm.interval * (per_epoch or 0)
            self._interval, growth = self_scaled_updates(steps, rho=admm.rho, rho_max=admm.rho_max, interval=interval)
            growth = growth if admm.growth is None else admm.growth
            self._admm = ADMM(weights, masks, rho=admm.rho, growth=growth, rho_max=admm.rho_max, rescale=admm.rescale)

    def loss(self, others: Tensor, batch: Any, *_: Any, **__: Any) -> Tensor:
        """PwoA's loss on a batch, added to what ``others`` have; NNI calls this."""
        x, y = self._take_batch(batch)
        device = next(self.model.parameters()).device
        if device != self._loss.device:  # evaluators move models, teachers are ours to move
            self._loss.to(device)
        self._loss.use_hsic = self._admm is None or self._config.hsic
        loss: Tensor = self._loss(self.model, x, y)
        if self.images is None:
            self.images = x[:2].detach().to(loss.device, copy=True)
        self._finite.see(loss, self.step)
        if self._admm is not None:
            loss = loss + self._admm.penalty()
        return others + loss

    @torch.no_grad()
    def after_step(self) -> None:
        """What follows an optimizer step; NNI calls this."""
        self.step += 1
        if self.pruned:
            self._hold()
        elif self.plan is None or self.step >= self.plan.prune:
            self.finish()
        elif self._admm is None:
            if self.step % self.plan.interval == 0:
                self._finite.check(self.model, self.step)
                self._cut(self.step / self.plan.prune)
            else:
                self._hold_cut()
        elif self.step <= self.plan.last_update and self.step % self._interval == 0:
            self._admm.dual_update()

    def finish(self) -> None:
        """The hard prune, unless it is behind: the weights alone are projected, without the dual.

        Raises:
            TrainingError: the loss or a weight is no number.
        """
        self._finite.check(self.model, self.step)
        if self.pruned:
            return
        if (plan := self.plan) is not None:
            due, what = plan.prune, "the end of gradual pruning" if plan.gradual else "the end of ADMM"
            if plan.scheduled:
                due, what = plan.last_update, "the scheduler's last update"
            if self.step < due:
                _logger.warning(
                    "training ended at step %d, before %s at %d; pruned to the whole ratio", self.step, what, due
                )
        if self._admm is not None:
            self.residual = self._admm.residual()
            _logger.info("primal residual |W - Z| / |W| at the hard prune: %.4f", self.residual)
        self._admm, self.pruned = None, True
        self._prune()
        self._hold()


def _mask_now(target: Target, share: Callable[[str], float], name: str, value: Tensor) -> Tensor:
    return target.mask(value, share(name))


class FiniteCheck:
    """Whether a training's losses and weights are numbers.

    A flag stays where the losses are and is read every tenth step: reading one waits for an accelerator.
    """

    def __init__(self) -> None:
        self._finite: Tensor | None = None

    def see(self, loss: Tensor, step: int) -> None:
        """Take down the loss of ``step`` (from 0).

        Raises:
            TrainingError: at every tenth step, a loss up to it is no number.
        """
        finite = loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite.to(finite.device) & finite
        if step % _STEPS_BETWEEN_CHECKS == 0:
            self._check_losses(step + 1)

    def check(self, model: nn.Module, steps: int) -> None:
        """What ``steps`` of training have left.

        Raises:
            TrainingError: a loss was no number, or one that is not is in a trained parameter of the model, or in the
                running statistics of a BatchNorm, which a finite loss does not tell of.
        """
        self._check_losses(steps)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        statistics = {
            f"{name}.{target}": value
            for name, module in model.named_modules()
            if isinstance(module, _NormBase)
            for target in ("running_mean", "running_var")
            if (value := getattr(module, target)) is not None
        }
        finite = {name: value.detach().isfinite().all() for name, value in (trained | statistics).items()}
        if finite and not torch.stack([flag.to(next(iter(finite.values())).device) for flag in finite.values()]).all():
            name = next(name for name, flag in finite.items() if not flag).replace("_nni_wrapper.", "")
            raise TrainingError(f"{name} is not finite after step {steps}; {_CURE}")

    def _check_losses(self, step: int) -> None:
        if self._finite is not None and not self._finite:
            raise TrainingError(f"the loss is not finite at step {step}, or shortly before; {_CURE}")
