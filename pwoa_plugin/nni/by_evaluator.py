"""`PwoAPruner` by NNI's config_list: NNI's evaluator trains, and PwoA's phases follow its optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import nn

from .._network import check_plain
from .._section import as_section
from ..config import ADMMConfig, GradualConfig
from ..errors import InputError
from ..method.loss import PwoALoss
from ..method.phases import ADMMPhase, GradualPhase, Phase, phase_lengths
from .config_list import read_config_list
from .fusion import prepare_evaluator
from .options import ListOptions
from .target import SpaceTarget
from .wrappers import masked_copy


class ByEvaluator:
    """The phases of a training that an evaluator runs, and its loss; ``options`` are those of `PwoAPruner`.

    Attributes:
        entries: the config_list as NNI takes it.
        parameters: what it prunes, by name.
        loss: with the frozen teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None,
        wrappers: Mapping[str, ModuleWrapper],
        options: ListOptions,
    ) -> None:
        of_loss: dict[str, Any] = dict(options)
        admm, gradual, teacher = (of_loss.pop(name, None) for name in ("admm", "gradual", "teacher_model"))
        allocation = of_loss.pop("allocation", "uniform")
        self.entries, self.parameters = read_config_list(model, config_list, allocation, wrappers)
        prepare_evaluator(evaluator, model, [f"{each.module}.{each.name}" for each in self.parameters.values()])
        self._admm, self._gradual = as_section(ADMMConfig, admm, "admm"), as_section(GradualConfig, gradual, "gradual")
        # n:m is reached in one cut.
        self._one_cut = all(each.budget.sparsity_set.fixed_density is not None for each in self.parameters.values())
        if self._gradual.wanted and self._one_cut:
            raise InputError(
                f"gradual: {self._gradual} does not go with n:m, which is reached in one cut; leave it out"
            )
        self.loss = PwoALoss(_teacher_of(model, teacher, wrappers), **of_loss)
        self.loss.check_student(model)

    def phases(
        self,
        target: SpaceTarget,
        steps: int | None,
        per_epoch: int | None,
        *,
        scheduler: tuple[int, int] | None,
        check: Callable[[], None],
    ) -> list[Phase]:
        """ADMM and gradual pruning, before fine-tuning; ``steps`` are those of the whole training.

        ``scheduler``: of NNI's around the pruner, the steps between its updates, and how many there are. ``check`` is
        called before each cut.
        """
        admm, gradual = self._admm, self._gradual
        if scheduler is not None:
            return [self._scheduled_phase(target, steps, *scheduler)]
        if steps is None:
            raise InputError("compress: max_epochs needs steps_per_epoch=; give it to PwoAPruner, or give max_steps")
        if per_epoch is None and (admm.epochs or admm.interval or gradual.epochs):
            raise InputError("admm and gradual: lengths in epochs need steps_per_epoch=; give it to PwoAPruner")
        per_epoch = per_epoch or 1
        of_admm, of_gradual = phase_lengths(steps, admm, gradual, one_cut=self._one_cut, per_epoch=per_epoch)
        return [
            ADMMPhase(target, admm, of_admm, per_epoch=per_epoch),
            GradualPhase(target, gradual, of_gradual, check=check),
        ]

    def _scheduled_phase(self, target: SpaceTarget, steps: int | None, interval: int, times: int) -> Phase:
        """ADMM whose dual updates are the scheduler's.

        After the last one the weights get time to follow: an interval, and at most half of the steps that are left.
        """
        if self._admm.epochs is not None or self._admm.interval is not None or self._gradual.wanted:
            raise InputError("admm: inside a scheduler, which says when, leave epochs, interval and gradual= out")
        last = interval * times
        if steps is not None and steps < last:
            raise InputError(
                f"compress: {steps} steps are over before the scheduler's last update, at step {last}; give "
                f"max_steps={last} or more"
            )
        wait = interval if steps is None else min(interval, (steps - last) // 2)
        return ADMMPhase(target, self._admm, last + wait, interval=interval, last_update=last)


def _teacher_of(model: nn.Module, given: nn.Module | None, wrappers: Mapping[str, ModuleWrapper]) -> nn.Module:
    if given is None:
        return masked_copy(model, wrappers)
    check_plain(given, "teacher_model")
    mine = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: parameter.shape for name, parameter in given.named_parameters()} != mine:
        raise InputError("teacher_model is not of the model's architecture: names or shapes of parameters differ")
    return given
