"""Gradual pruning: while the network trains, the smallest groups are set to 0 again and again, more of them each time.

The cubic schedule of Zhu and Gupta, "To prune, or not to prune", 2017 (eq. 1). Which groups go, and how many of each
layer, is decided anew at each cut, by the weights as training has made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .allocation import Allocation, LayerAllocation, allocate
from .sparsity import SparsitySet

_CUTS = 48


def sparsity_at(progress: float, final: float) -> float:
    """Sparsity on the way from dense to ``final``: fast first, while much can go, and slower towards the end.

    Args:
        progress: share of the way, 0 to 1.
        final: sparsity at its end.
    """
    return final * (1 - (1 - progress) ** 3)


def interval_of_cuts(asked_for: int | None, steps: int) -> int:
    """Steps between two cuts in a phase of ``steps``: as asked for, or such that there are some 48 of them."""
    return max(1, steps // _CUTS) if asked_for is None else asked_for


@dataclass(frozen=True, eq=False)
class Budget:
    """One total sparsity, and how it is spread over the weights that share it.

    Attributes:
        sparsity: share of these weights to prune, in (0, 1).
        sparsity_set: how weights are grouped.
        rule: how the total is spread over layers.
    """

    sparsity: float
    sparsity_set: SparsitySet
    rule: Allocation

    def allocate(self, weights: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, LayerAllocation]:
        """What each layer keeps, by its weights as they are now.

        Args:
            weights: ``(out, in, ...)`` by layer name.
            progress: share of the way from dense; a set of fixed density (n:m) is whole from the first step on.

        Raises:
            ValueError: see `allocate`.
        """
        return allocate(weights, sparsity_at(progress, self.sparsity), self.sparsity_set, self.rule)

    def masks(self, weights: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, Tensor]:
        """Boolean masks of the projection of the weights, by layer; arguments are those of `allocate`."""
        allocated = self.allocate(weights, progress)
        return {name: layer.mask(self.sparsity_set, weights[name]) for name, layer in allocated.items()}
