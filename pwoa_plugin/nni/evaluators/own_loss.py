"""An evaluator around another, in which one compressor's say on the training loss comes before all others'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nni.compression.utils import Evaluator
from torch import Tensor

__all__ = ["LossPatch", "OwnLossEvaluator"]

#: The training loss and its batch, to the loss to train by.
LossPatch = Callable[[Tensor, Any], Tensor]


class OwnLossEvaluator(Evaluator):
    """Any NNI evaluator, with a patch for the evaluator's *own* training loss.

    NNI's ``patch_loss`` wraps what was patched before, in the order in which compressors were fused. A distiller that
    scales the evaluator's own loss would so scale another compressor's penalty too, if that was patched first. Here
    patches are held until training starts, and that of the own loss goes in first: penalties are added to it whatever
    the order. All else is the other evaluator's.

    Args:
        evaluator: the one that trains.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._own: list[LossPatch] = []
        self._others: list[LossPatch] = []

    def __getattr__(self, name: str) -> Any:
        if name == "evaluator":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.evaluator, name)

    def patch_own_loss(self, patch: LossPatch) -> None:
        """Patch the loss as the evaluator itself computes it, before any other compressor adds to it."""
        self._own.append(patch)

    def patch_loss(self, patch: LossPatch) -> None:
        self._others.append(patch)

    def revert_loss(self) -> None:
        self._own.clear()
        self._others.clear()
        self.evaluator.revert_loss()

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        for patch in (*self._own, *self._others):
            self.evaluator.patch_loss(patch)
        self._own.clear()
        self._others.clear()
        self.evaluator.train(max_steps, max_epochs)

    def bind_model(self, model: Any, param_names_map: dict[str, str] | None = None) -> None:
        self._own.clear()  # what an interrupted run left
        self._others.clear()
        self.evaluator.bind_model(model, param_names_map)

    # The base class has a body for each of these, which `__getattr__` would never get past.

    def unbind_model(self) -> None:
        self._own.clear()
        self._others.clear()
        self.evaluator.unbind_model()

    def _init_optimizer_helpers(self, pure_model: Any) -> None:
        self.evaluator._init_optimizer_helpers(pure_model)

    def patch_optim_param_group(self, module_name_param_dict: dict[str, list[Tensor]] | None = None) -> None:
        self.evaluator.patch_optim_param_group(module_name_param_dict)

    def patch_optimizer_step(
        self, before_step_tasks: list[Callable[[], None]], after_step_tasks: list[Callable[[], None]]
    ) -> None:
        self.evaluator.patch_optimizer_step(before_step_tasks, after_step_tasks)

    def revert_optimizer_step(self) -> None:
        self.evaluator.revert_optimizer_step()

    def register_hooks(self, hooks: list[Any]) -> None:
        self.evaluator.register_hooks(hooks)

    def get_all_hooks(self) -> list[Any]:
        hooks: list[Any] = self.evaluator.get_all_hooks()
        return hooks

    def remove_all_hooks(self) -> None:
        self.evaluator.remove_all_hooks()

    def finetune(self) -> None:
        self.evaluator.finetune()

    def evaluate(self) -> Any:
        return self.evaluator.evaluate()

    def get_dummy_input(self) -> Any:
        return self.evaluator.get_dummy_input()
