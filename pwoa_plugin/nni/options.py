"""Keywords that the doors hand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import nn

from ..config import ADMMConfig, AdversarialConfig, DistillationConfig, GradualConfig, HSICConfig, PerturbationConfig


class LossOptions(TypedDict, total=False):
    """Keywords of `PwoALoss`; see there."""

    distillation: DistillationConfig | Mapping[str, Any] | None
    perturbation: PerturbationConfig | Mapping[str, Any] | None
    hsic: HSICConfig | Mapping[str, Any] | None
    adversarial: AdversarialConfig | Mapping[str, Any] | None
    eps: float | str | None
    pixel_range: tuple[float, float]
    output: int | str | None


class ListOptions(LossOptions, total=False):
    """Keywords of `PwoAPruner` that go with NNI's config_list.

    Attributes:
        allocation: how an entry's ``sparse_ratio`` is spread over its layers, if the entry does not say; ``uniform``
            (the default) gives each layer the ratio, as NNI does.
        admm, gradual: sections of `PwoAConfig`. Half of the steps are gradual pruning's unless one is set.
        origin_loss_lambda: weight of the evaluator's own training loss beside ours, 0 by default. Fused under another
            compressor's loss, that one's own weight counts instead.
        progress: show how far a training by NNI's TorchEvaluator is, and the time left; True by default.
        steps_per_epoch: optimizer steps of an epoch, if lengths are in epochs and the evaluator does not know them.
        teacher_model: the robust network, if the model is no longer robust; of the same architecture.
    """

    allocation: str
    admm: ADMMConfig | Mapping[str, Any] | None
    gradual: GradualConfig | Mapping[str, Any] | None
    origin_loss_lambda: float
    progress: bool
    steps_per_epoch: int | None
    teacher_model: nn.Module | None
