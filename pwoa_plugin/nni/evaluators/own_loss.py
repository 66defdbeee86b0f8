"""An evaluator around another, in which one compressor weighs the training loss before all others add to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nni.compression.utils import Evaluator
from torch import Tensor

__all__ = ["LossPatch", "OwnLossEvaluator"]

#: From the training loss and its batch to the loss to train by.
LossPatch = Callable[[Tensor, Any], Tensor]


class OwnLossEvaluator(Evaluator):
    """Any NNI evaluator, with a patch for the evaluator's *own* training loss.

    NNI's ``patch_loss`` wraps what was patched before, in the order in which compressors were fused. A distiller that
    scales the evaluator's own loss would also scale another compressor's penalty that was patched first. Here patches
    are held until training starts, and that of the own loss goes in first: penalties are added to it whatever the
    order. All else is the other evaluator's.

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

    def _take_patches(self) -> list[LossPatch]:
        patches = [*self._own, *self._others]
        self._own.clear()
        self._others.clear()
        return patches

    def revert_loss(self) -> None:
        self._take_patches()
        self.evaluator.revert_loss()

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        for patch in self._take_patches():
            self.evaluator.patch_loss(patch)
        self.evaluator.train(max_steps, max_epochs)

    def bind_model(self, model: Any, param_names_map: dict[str, str] | None = None) -> None:
        self._take_patches()  # those of an interrupted run
        self.evaluator.bind_model(model, param_names_map)

    def unbind_model(self) -> None:
        self._take_patches()
        self.evaluator.unbind_model()


def _of_inner(name: str) -> Callable[..., Any]:
    def call(self: OwnLossEvaluator, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.evaluator, name)(*args, **kwargs)

    return call


for _name in (  # the base class has a body for each, so `__getattr__` is not asked
    "_init_optimizer_helpers",
    "patch_optim_param_group",
    "patch_optimizer_step",
    "revert_optimizer_step",
    "register_hooks",
    "get_all_hooks",
    "remove_all_hooks",
    "finetune",
    "evaluate",
    "get_dummy_input",
):
    setattr(OwnLossEvaluator, _name, _of_inner(_name))
