"""Magnitude pruning at once, without training: the baseline that needs nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .targets import mask_target


@torch.no_grad()
def prune_once(
    model: nn.Module,
    sparsity: float,
    *,
    granularity: str = "unstructured",
    allocation: str = "uniform",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Zero the groups of smallest norm, in place.

    Args:
        model: any module.
        sparsity: share of the prunable weights to prune, in (0, 1).
        granularity, allocation, include, exclude: see `PwoAConfig`.

    Returns:
        ``{layer: boolean mask}``.

    Raises:
        InputError: see `mask_target`.
    """
    target = mask_target(
        model, sparsity, granularity=granularity, allocation=allocation, include=include, exclude=exclude
    )
    target.prune(allocate=False)
    target.hold()
    return target.masks
