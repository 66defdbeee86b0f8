"""Magnitude pruning without training: the baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .targets import mask_target


@torch.no_grad()
def prune_once(model: nn.Module, sparsity: float, **fields: Any) -> dict[str, Tensor]:
    """Zero a model's groups of smallest norm, in place.

    Args:
        sparsity: share of the prunable weights to prune, in (0, 1).
        **fields: ``granularity``, ``allocation`` (``uniform`` by default), ``include`` or ``exclude`` of `PwoAConfig`.

    Returns:
        ``{layer: boolean mask}``.

    Raises:
        InputError: the model cannot be pruned so.
    """
    if not 0 < sparsity < 1:
        raise InputError(f"sparsity={sparsity} is outside (0, 1); 0.9 prunes nine weights in ten")
    target = mask_target(model, sparsity, **fields)
    target.prune(allocate=False)
    target.hold()
    return target.masks
