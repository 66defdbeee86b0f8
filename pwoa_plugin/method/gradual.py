"""Gradual pruning: while the network trains, repeated cuts set more and more of the smallest groups to 0.

The cubic schedule is that of Zhu and Gupta, "To prune, or not to prune", 2017 (eq. 1). Each cut allocates and chooses
groups anew, by the weights at that step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .allocation import Allocation, LayerAllocation, allocate
from .sparsity import SparsitySet


def sparsity_at(progress: float, final: float) -> float:
    """Sparsity at ``progress`` (0 to 1) on the way from dense to ``final``: grows fast at first, then slowly."""
    return final * (1 - (1 - progress) ** 3)


@dataclass(frozen=True, eq=False)
class Budget:
    """One total sparsity and how it is spread over weights.

    Attributes:
        sparsity: share of these weights to prune, in (0, 1).
        sparsity_set: how weights are grouped.
        rule: how the total is spread over the layers.
    """

    sparsity: float
    sparsity_set: SparsitySet
    rule: Allocation

    def allocate(self, weights: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, LayerAllocation]:
        """What each layer keeps at ``progress`` from dense, by the current weights; n:m is reached at once."""
        return allocate(weights, sparsity_at(progress, self.sparsity), self.sparsity_set, self.rule)

    def masks(self, weights: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, Tensor]:
        """Boolean masks of the projections of the weights, by layer."""
        allocated = self.allocate(weights, progress)
        return {name: layer.mask(self.sparsity_set, weights[name]) for name, layer in allocated.items()}
