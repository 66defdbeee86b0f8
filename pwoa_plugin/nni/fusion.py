"""Compressors that train together (NNI calls them fused): what cannot go together is refused before training."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nni.compression.base.compressor import Compressor
from nni.compression.pruning import FPGMPruner, L1NormPruner, L2NormPruner, LevelPruner
from nni.compression.pruning.scheduled_pruner import ScheduledPruner
from nni.compression.utils import Evaluator
from torch import Tensor, nn

from ..errors import InputError

_logger = logging.getLogger(__name__)

Train = Callable[[int | None, int | None], None]  # max_steps, max_epochs

_BY_WEIGHTS = (LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner)  # they look at no forward and no gradient


def _members(compressor: Compressor) -> Iterator[Compressor]:
    """All compressors that would train with one made from this: the fused ones, and those inside schedulers."""
    for fused in compressor.fused_compressors:
        yield fused
        if (bound := getattr(fused, "bound_pruner", None)) is not None:
            yield bound


def check_fusion(compressor: Compressor, by: str) -> None:
    """Refuse what cannot be fused with a compressor that ``by`` makes: PwoA's loss twice, pruners that miss their goal.

    In a fusion NNI's one-shot pruners never make a mask. Taylor and Slim count their own steps: a scheduler over them
    with another interval ends short.
    """
    for other in _members(compressor):
        name = type(other).__name__
        if getattr(other, "trains_with_pwoa", False):
            raise InputError(
                f"{by} and {name} cannot be fused: both train with PwoA's loss, which would count twice; take one"
            )
    for other in compressor.fused_compressors:
        name, inner = type(other).__name__, getattr(other, "bound_pruner", None)
        if isinstance(other, _BY_WEIGHTS) and other.interval_steps <= 0 and not _has_pruned(other):
            raise InputError(
                f"{name} has made no mask, and in a fusion it never will (NNI's interval_steps=-1); call its "
                "compress() first, or put it inside AGPPruner or LinearPruner"
            )
        if (steps := getattr(inner, "training_steps", None)) not in (None, getattr(other, "interval_steps", None)):
            raise InputError(
                f"{name} over {type(inner).__name__} misses the target: training_steps={steps} and interval_steps="
                f"{other.interval_steps} differ; make them equal"
            )


def _has_pruned(pruner: Compressor) -> bool:
    masks = [space.mask for spaces in pruner._target_spaces.values() for space in spaces.values()]
    return any(mask is not None and bool((mask == 0).any()) for mask in masks)


def prepare_evaluator(evaluator: Evaluator | None, model: nn.Module, wanted: list[str]) -> None:
    """Let an evaluator see the unwrapped model, and check that its optimizer trains some of the ``wanted`` parameters.

    NNI rebuilds an optimizer by the names of the model's parameters; one without any trains nothing, silently.
    """
    if not isinstance(evaluator, Evaluator):
        raise InputError("evaluator is missing, or not one of NNI's; make_evaluator(model, train_loader) makes one")
    if not evaluator._initialization_complete:
        evaluator._init_optimizer_helpers(model)
    helpers = getattr(evaluator, "_optimizer_helpers", None) or [getattr(evaluator, "_optimizer_helper", None)]
    trained: set[str] = set()
    for helper in helpers:
        if helper is None:
            return
        groups: list[dict[str, Any]] = helper.kwargs["params"] if "params" in helper.kwargs else helper.args[0]
        trained.update(*(group["params"] for group in groups))
    missing = [name for name in wanted if name not in trained]
    if not trained or (missing and missing == wanted):
        raise InputError(
            f"the evaluator's optimizer trains none of the weights {', '.join(missing[:3]) or 'here'}; make it with "
            "model.parameters() (not named_parameters()), and give the evaluator to the first compressor, or make it "
            "by make_evaluator()"
        )
    if missing:
        _logger.warning("the evaluator's optimizer does not train %s; compressed all the same", ", ".join(missing))


def loss_is_patched(evaluator: Evaluator) -> bool:
    """Whether a compressor has patched the loss of the user's training step for the training to come."""
    if hasattr(evaluator, "_ori_training_step"):  # TorchEvaluator
        return bool(evaluator._training_step is not evaluator._ori_training_step)
    if (before := getattr(evaluator, "_ori_model_attr", {}).get("training_step")) is not None:  # LightningEvaluator
        return bool(evaluator.model.training_step != before)
    if (before := getattr(evaluator, "_ori_trainer_attr", {}).get("compute_loss")) is not None:  # TransformersEvaluator
        return bool(evaluator.trainer.compute_loss != before)
    return False


def at_next_training(evaluator: Evaluator, run: Callable[[Train, int | None, int | None], None]) -> None:
    """Have ``run(train, max_steps, max_epochs)`` called in place of the evaluator's next ``train``.

    Only then is the length of a fused training known, and have all compressors patched the loss.
    """
    before: Any = evaluator.__dict__.get("train")
    before = getattr(before, "replaced", before)  # ours is still there if a fusion failed before its training

    def train(max_steps: int | None = None, max_epochs: int | None = None) -> None:
        del evaluator.train
        if before is not None:
            evaluator.train = before
        run(evaluator.train, max_steps, max_epochs)

    train.replaced = before  # type: ignore[attr-defined]
    evaluator.train = train


@contextmanager
def own_loss_spared(compressor: Compressor, weight: float) -> Iterator[None]:
    """Skip the evaluator's own loss meanwhile, if its weight is 0 and nobody under ``compressor`` needs its forward."""
    own_loss = getattr(compressor.evaluator, "own_loss", None)
    others = (member for member in _members(compressor) if member is not compressor)
    if weight != 0 or own_loss is None or not all(isinstance(o, (*_BY_WEIGHTS, ScheduledPruner)) for o in others):
        yield
        return
    own_loss.counts = False
    try:
        yield
    finally:
        own_loss.counts = True


def with_weighed_loss(evaluator: Evaluator, weight: float) -> Evaluator:
    """A copy of an evaluator that weighs its own loss when it is bound, before any compressor adds to it.

    NNI's ``patch_loss`` wraps what was patched before, in the order in which compressors were fused: patched there,
    the weight would also scale another compressor's penalty that was patched first.
    """
    made = copy.copy(evaluator)

    def bind_model(model: Any, param_names_map: dict[str, str] | None = None) -> None:
        type(made).bind_model(made, model, param_names_map)
        made.patch_loss(weighing(weight))

    made.bind_model = bind_model
    return made


def weighing(weight: float) -> Callable[..., Tensor]:
    """A patch that weighs the evaluator's own loss. A weight of 0 leaves it out altogether: 0 * NaN is NaN."""

    def weigh(origin: Tensor, *_: Any, **__: Any) -> Tensor:
        return weight * origin if weight else torch.zeros_like(origin.detach())

    return weigh
