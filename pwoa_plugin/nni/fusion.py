"""Compressors that train together (NNI calls them fused): what cannot go together, said before training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nni.compression.base.compressor import Compressor
from nni.compression.pruning import FPGMPruner, L1NormPruner, L2NormPruner, LevelPruner
from nni.compression.pruning.scheduled_pruner import ScheduledPruner
from nni.compression.utils import Evaluator
from torch import Tensor, nn

from ..errors import InputError
from ..method.restore import restored_on_error

__all__ = [
    "Train",
    "at_next_training",
    "check_optimizers",
    "loss_is_patched",
    "members",
    "own_loss_spared",
    "refuse_idle_pruners",
    "refuse_pwoa_twice",
    "undone_on_error",
    "weighing",
]

_logger = logging.getLogger(__name__)

Train = Callable[[int | None, int | None], None]  # max_steps, max_epochs

_BY_WEIGHTS = (LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner)  # no forward or gradient tells them anything


def members(compressor: Compressor) -> Iterator[Compressor]:
    """All compressors that would train with one made from this: the fused ones, and those inside schedulers."""
    for fused in compressor.fused_compressors:
        yield fused
        if (bound := getattr(fused, "bound_pruner", None)) is not None:
            yield bound


def refuse_pwoa_twice(compressor: Compressor, by: str) -> None:
    """PwoA's loss belongs into a training once.

    Args:
        compressor: which another one is to be made from.
        by: the name of that other one.

    Raises:
        ValueError: one of its `members` trains with PwoA's loss.
    """
    for other in members(compressor):
        if getattr(other, "trains_with_pwoa", False):
            raise InputError(
                f"{by} and {type(other).__name__} cannot be fused: both train with PwoA's loss, which would count "
                "twice; take one"
            )


def refuse_idle_pruners(compressor: Compressor) -> None:
    """NNI's one-shot pruners make masks when they compress alone, and never in a fusion.

    Raises:
        ValueError: there is one that has made no mask yet.
    """
    for other in compressor.fused_compressors:
        if not isinstance(other, _BY_WEIGHTS) or other.interval_steps > 0:
            continue
        masks = [space.mask for spaces in other._target_spaces.values() for space in spaces.values()]
        if not any(mask is not None and (mask == 0).any() for mask in masks):
            raise InputError(
                f"{type(other).__name__} has made no mask, and in a fusion it never will (NNI's interval_steps=-1); "
                "call its compress() first, or put it inside AGPPruner or LinearPruner"
            )


def check_optimizers(evaluator: Evaluator, wanted: Iterable[str] = ()) -> None:
    """NNI takes an optimizer apart into names of the model's parameters; one without any trains nothing, silently.

    Args:
        evaluator: one that has seen the model.
        wanted: names of parameters that should be trained; of some that are not, the log tells.

    Raises:
        ValueError: a parameter group holds no parameter of the model, or none of the wanted is trained.
    """
    helpers = getattr(evaluator, "_optimizer_helpers", None) or [getattr(evaluator, "_optimizer_helper", None)]
    trained: set[str] = set()
    for helper in helpers:
        if helper is None:
            return
        groups: list[dict[str, Any]] = helper.kwargs["params"] if "params" in helper.kwargs else helper.args[0]
        if any(not group["params"] for group in groups):
            raise InputError(
                "the evaluator's optimizer has a group without a parameter of this model and would train nothing; "
                "make it with model.parameters() of the very model (not named_parameters())"
            )
        trained.update(*(group["params"] for group in groups))
    wanted = list(wanted)
    missing = [name for name in wanted if name not in trained]
    if wanted and missing == wanted:
        raise InputError(
            f"the evaluator's optimizer trains none of the weights to prune ({wanted[0]}...); make it with "
            "model.parameters(), before another compressor wraps the model"
        )
    if missing:
        _logger.warning("the evaluator's optimizer does not train %s; pruned all the same", ", ".join(missing))


def loss_is_patched(evaluator: Evaluator) -> bool:
    """Whether a compressor has put a loss of its own over the user's training step, in this training."""
    if hasattr(evaluator, "_ori_training_step"):  # TorchEvaluator
        return bool(evaluator._training_step is not evaluator._ori_training_step)
    if (before := getattr(evaluator, "_ori_model_attr", {}).get("training_step")) is not None:  # LightningEvaluator
        return bool(evaluator.model.training_step != before)
    if (before := getattr(evaluator, "_ori_trainer_attr", {}).get("compute_loss")) is not None:  # TransformersEvaluator
        return bool(evaluator.trainer.compute_loss != before)
    return False


class _AtNextTraining:
    """In the place of an evaluator's ``train``, for one call."""

    def __init__(self, evaluator: Evaluator, run: Callable[[Train, int | None, int | None], None]) -> None:
        before: Any = evaluator.__dict__.get("train")
        # One that is still there was never called: a fusion failed while it was prepared.
        self.before: Train | None = before.before if isinstance(before, _AtNextTraining) else before
        self._evaluator, self._run = evaluator, run

    def __call__(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        del self._evaluator.train
        if self.before is not None:
            self._evaluator.train = self.before
        self._run(self._evaluator.train, max_steps, max_epochs)


def at_next_training(evaluator: Evaluator, run: Callable[[Train, int | None, int | None], None]) -> None:
    """Have ``run(train, max_steps, max_epochs)`` called in place of the evaluator's next ``train``.

    Only there the length of a fused training is known, and all compressors have patched the loss.
    """
    evaluator.train = _AtNextTraining(evaluator, run)


@contextmanager
def undone_on_error(model: nn.Module, evaluator: Evaluator) -> Iterator[None]:
    """If a training raises, the weights are as they were and the evaluator is free for another."""
    try:
        with restored_on_error(model):
            yield
    except BaseException:
        evaluator.unbind_model()
        raise


@contextmanager
def own_loss_spared(compressor: Compressor, weight: float) -> Iterator[None]:
    """While this lasts, the evaluator's own loss is not computed, if it counts nothing and nobody needs its forward.

    Args:
        compressor: the outermost of those that train.
        weight: of the own loss.
    """
    spare = getattr(compressor.evaluator, "without_own_loss", None)
    others = (member for member in members(compressor) if member is not compressor)
    if weight != 0 or spare is None or not all(isinstance(o, (*_BY_WEIGHTS, ScheduledPruner)) for o in others):
        yield
        return
    with spare():
        yield


def weighing(weight: float) -> Callable[..., Tensor]:
    """A patch of the evaluator's own loss. A weight of 0 leaves it out altogether: 0 * NaN is NaN."""

    def weigh(origin: Tensor, *_: Any, **__: Any) -> Tensor:
        return weight * origin if weight else torch.zeros_like(origin.detach())

    return weigh
