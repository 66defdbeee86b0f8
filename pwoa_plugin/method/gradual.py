"""Gradual pruning: how sparse a network is on its way (Zhu and Gupta, "To prune, or not to prune", 2017, eq. 1)."""

from __future__ import annotations

__all__ = ["sparsity_at"]


def sparsity_at(progress: float, final: float) -> float:
    """Sparsity on the way from dense to ``final``: fast first, while much can go, and slower towards the end.

    Args:
        progress: share of the way, 0 to 1.
        final: sparsity at its end.
    """
    return final * (1 - (1 - progress) ** 3)
