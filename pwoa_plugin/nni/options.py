"""Keywords that the doors hand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import nn

from ..config import ADMMConfig, DistillationConfig, GradualConfig, HSICConfig, PerturbationConfig

__all__ = ["ListOptions", "LossOptions"]


class LossOptions(TypedDict, total=False):
    """Keywords of `PwoALoss`."""

    distillation: DistillationConfig | Mapping[str, Any] | None
    perturbation: PerturbationConfig | Mapping[str, Any] | None
    hsic: HSICConfig | Mapping[str, Any] | None
    eps: float | str | None
    pixel_range: tuple[float, float]


class ListOptions(LossOptions, total=False):
    """Keywords of `PwoAPruner` that go with NNI's config_list."""

    allocation: str
    admm: ADMMConfig | Mapping[str, Any] | None
    gradual: GradualConfig | Mapping[str, Any] | None
    teacher_model: nn.Module | None
