"""Magnitude pruning at once, without training: the baseline that needs nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .allocation import ALLOCATIONS, allocate
from .layers import prunable_layers, refuse_transposed
from .sparsity import make_sparsity_set

__all__ = ["prune_once"]


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
        ValueError: see `allocate`, `make_sparsity_set` and `prunable_layers`.
    """
    layers = prunable_layers(model, include, exclude)
    sparsity_set = make_sparsity_set(granularity)
    refuse_transposed(layers, sparsity_set)
    weights = {name: module.get_parameter("weight") for name, module in layers.items()}
    masks: dict[str, Tensor] = {}
    for name, layer in allocate(weights, sparsity, sparsity_set, ALLOCATIONS[allocation]).items():
        masks[name] = layer.mask(sparsity_set, weights[name])
        weights[name].mul_(masks[name])
    return masks
