"""How many channels of each group stay, and which: those of largest norm.

This replaces `BasePruner._prune`, which skips a layer that a global threshold would empty, does not hold the maximum
ratio, and only rounds down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from ..method.allocation import Allocation, LayerGroups, Uniform, keep_counts
from ..method.sparsity import top_k

__all__ = ["Candidates", "Rounding", "keep"]


@dataclass(frozen=True)
class Rounding:
    """The rounding of a layer's channels.

    Attributes:
        to: channels are a multiple of this; 1 rounds nothing.
        up: whether to more channels, not to fewer.

    Raises:
        InputError: ``to`` is not positive.
    """

    to: int = 1
    up: bool = False

    def __post_init__(self) -> None:
        if self.to < 1:
            raise InputError(f"round_to={self.to!r}: give 1 or more")


@dataclass(frozen=True)
class Candidates:
    """The units of a group, from which those that stay are chosen.

    Attributes:
        scores: ``(units,)``: normalised norms.
        width: channels in a unit.
        before: number of units before anything was pruned.
        shape: of the weight of the group's root, for rules that depend on it (ERK).
        most: the largest share of ``before`` that may go.
    """

    scores: Tensor
    width: int
    before: int
    shape: tuple[int, ...]
    most: float


def keep(
    candidates: Sequence[Candidates], ratio: float, *, rounding: Rounding, allocation: Allocation | None = None
) -> list[Tensor]:
    """Which units of groups that are ranked together stay.

    Args:
        candidates: the groups.
        ratio: share of the units that were there before which goes, in [0, 1).
        rounding: of each group's channels.
        allocation: how the ratio is spread over the groups; default: uniformly.

    Returns:
        ``(units,)`` boolean for each group.
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
    """The number of units that is a multiple of channels; a group with fewer units stays whole."""
    return rounding.to // math.gcd(rounding.to, each.width)


def _least(each: Candidates, rounding: Rounding) -> int:
    multiple = _multiple(each, rounding)
    allowed = max(1, math.ceil(each.before * (1 - each.most) - 1e-9))
    return min(len(each.scores), math.ceil(allowed / multiple) * multiple)


def _rounded(count: int, each: Candidates, least: int, rounding: Rounding) -> int:
    multiple = _multiple(each, rounding)
    count = (-(-count // multiple) if rounding.up else count // multiple) * multiple
    return min(len(each.scores), max(least, count))
