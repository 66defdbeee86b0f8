"""How many channels of each group stay, and which: those of largest norm.

This replaces `BasePruner._prune`, which skips a layer that a global threshold would empty, does not hold the maximum
ratio, and only rounds down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..method.allocation import Allocation, LayerGroups, Uniform, keep_counts
from ..method.sparsity import top_k


@dataclass(frozen=True)
class Rounding:
    """Round a layer's channels to a multiple of ``to``: down, or up."""

    to: int = 1
    up: bool = False


@dataclass(frozen=True)
class Candidates:
    """The units of a group, from which those that stay are chosen."""

    scores: Tensor  # (units,): normalised norms
    width: int  # channels in a unit
    before: int  # units before anything was pruned
    shape: tuple[int, ...]  # of the weight of the group's root, for rules that depend on it (ERK)
    most: float  # the largest share of `before` that may go


def keep(
    candidates: Sequence[Candidates], ratio: float, *, rounding: Rounding, allocation: Allocation | None = None
) -> list[Tensor]:
    """Which units of groups that are ranked together stay: ``(units,)`` boolean for each group.

    Args:
        ratio: share of the units that were there before which goes, in [0, 1).
        allocation: how the ratio is spread over the groups; default: uniformly.
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
