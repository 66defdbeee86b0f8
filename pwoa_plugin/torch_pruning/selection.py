"""How many channels of each group stay, and which: the ones of largest norm.

Ours, and not `BasePruner._prune`, whose thresholds let a global ratio skip a layer that they would empty, and which
holds no maximum ratio and rounds down only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..method.allocation import Allocation, LayerGroups, Uniform, keep_counts
from ..method.sparsity import top_k

__all__ = ["Candidates", "Rounding", "keep"]


@dataclass(frozen=True)
class Rounding:
    """To which multiples of channels layers are rounded.

    Attributes:
        to: the multiple; 1 rounds nothing.
        up: to more channels, not to fewer.
    """

    to: int = 1
    up: bool = False


@dataclass(frozen=True)
class Candidates:
    """What is chosen from.

    Attributes:
        scores: ``(units,)``, normalised norms.
        width: channels in a unit.
        before: units before anything was pruned.
        shape: of the weight of the layer that the group is named after, for rules that go by it (ERK).
        most: the largest share of them that may go.
    """

    scores: Tensor
    width: int
    before: int
    shape: tuple[int, ...]
    most: float


def keep(
    candidates: Sequence[Candidates], ratio: float, *, rounding: Rounding, allocation: Allocation | None = None
) -> list[Tensor]:
    """Which units stay, where they are ranked together.

    Args:
        candidates: of one scope; of one group where each is pruned by itself.
        ratio: share of the units there were before that goes, in [0, 1).
        rounding: of each group's channels.
        allocation: how the ratio is spread over the groups; None: each alike.

    Returns:
        ``(units,)`` boolean for each.
    """
    least = [_least(each, rounding) for each in candidates]
    budget = sum(each.before for each in candidates) * (1 - ratio)
    layers = [
        LayerGroups(each.shape, each.scores.double().square(), least=at_least, counted=len(each.scores))
        for each, at_least in zip(candidates, least, strict=True)
    ]
    counts = keep_counts(layers, budget, allocation or Uniform())
    return [
        top_k(each.scores, _rounded(count, each, at_least, rounding))
        for count, each, at_least in zip(counts, candidates, least, strict=True)
    ]


def _multiple(each: Candidates, rounding: Rounding) -> int:
    """Units that make a multiple of channels; more than there are leaves the group whole."""
    return rounding.to // math.gcd(rounding.to, each.width)


def _least(each: Candidates, rounding: Rounding) -> int:
    multiple = _multiple(each, rounding)
    allowed = max(1, math.ceil(each.before * (1 - each.most) - 1e-9))
    return min(len(each.scores), math.ceil(allowed / multiple) * multiple)


def _rounded(count: int, each: Candidates, least: int, rounding: Rounding) -> int:
    multiple = _multiple(each, rounding)
    count = (-(-count // multiple) if rounding.up else count // multiple) * multiple
    return min(len(each.scores), max(least, count))
