"""Sparsity sets: which groups of a weight go together, and the projection on the set.

A set splits a weight into groups. Its projection keeps exactly k groups, those of largest norm, which
is the Euclidean projection on "at most k groups are not zero" (PwoA, eq. 9; Zhang et al., ECCV 2018).

A new set is one class here and one line in ``make_sparsity_set``.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

__all__ = [
    "STRUCTURED",
    "Block",
    "Channel",
    "Column",
    "Filter",
    "NofM",
    "SparsitySet",
    "Unstructured",
    "make_sparsity_set",
]


#: No set of one layer's weights: channels of dependency groups, which the door into Torch-Pruning removes.
STRUCTURED = "structured"


def top_k(scores: Tensor, k: int) -> Tensor:
    """Boolean mask of exactly ``k`` largest scores; ties are broken, never counted double."""
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keep[scores.topk(k, sorted=False).indices] = True
    return keep


class SparsitySet(ABC):
    """A way to split weights ``(out, in, ...)`` into groups that are kept or pruned whole."""

    #: Kept share of every layer where the set itself fixes it (``n:m``); None leaves it to the allocation.
    fixed_density: float | None = None

    @abstractmethod
    def scores(self, weight: Tensor) -> Tensor:
        """Squared norm of every group, ``(groups,)``."""

    @abstractmethod
    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        """A boolean mask of a weight's ``shape`` from one boolean per group (``(groups,)``)."""

    def supports(self, shape: torch.Size) -> str | None:
        """None, or why a weight of this shape cannot be in the set."""
        return None

    def mask(self, weight: Tensor, k: int) -> Tensor:
        """Mask of the projection of ``weight`` that keeps exactly ``k`` groups.

        Args:
            weight: ``(out, in, ...)``.
            k: groups to keep, 0 to all.

        Returns:
            A boolean tensor shaped as ``weight``; ``weight * mask`` is the projection.

        Raises:
            ValueError: ``k`` is not a number of groups that this weight has.
        """
        scores = self.scores(weight.detach())
        if not 0 <= k <= len(scores):
            raise InputError(f"k={k} groups cannot be kept: the weight {tuple(weight.shape)} has {len(scores)}")
        return self.expand(top_k(scores, k), weight.shape)


class Unstructured(SparsitySet):
    """Single weights."""

    def scores(self, weight: Tensor) -> Tensor:
        return weight.flatten().square()

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        return keep.view(shape)


class Filter(SparsitySet):
    """Output channels: rows of the weight."""

    def scores(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).square().sum(1)

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        return keep.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


class Channel(SparsitySet):
    """Input channels (within a group, for grouped convolutions)."""

    def scores(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, 1).flatten(1).square().sum(1)

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        return keep.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).clone()


class Column(SparsitySet):
    """One position of the flattened filter over all filters: columns of the matrix that GEMM sees.

    The authors' own structured set. For linear layers it is `Channel`.
    """

    def scores(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).square().sum(0)

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        return keep.view(1, *shape[1:]).expand(shape).clone()


class Block(SparsitySet):
    """Blocks of ``rows x columns`` of the matrix ``(out, in * kernel)``; those at the edges may be smaller.

    Args:
        rows: filters in a block.
        columns: positions of the flattened filter in a block.
    """

    def __init__(self, rows: int = 4, columns: int = 4) -> None:
        if rows < 1 or columns < 1:
            raise InputError(f"granularity: a block of {rows}x{columns} is empty; give sides of 1 or more")
        self.rows, self.columns = rows, columns

    def _grid(self, shape: torch.Size) -> tuple[int, int]:
        return math.ceil(shape[0] / self.rows), math.ceil(math.prod(shape[1:]) / self.columns)

    def scores(self, weight: Tensor) -> Tensor:
        down, across = self._grid(weight.shape)
        squares = weight.flatten(1).square()
        padding = (0, across * self.columns - squares.shape[1], 0, down * self.rows - squares.shape[0])
        blocks = F.pad(squares, padding).view(down, self.rows, across, self.columns)
        return blocks.sum((1, 3)).flatten()

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        down, across = self._grid(shape)
        full = keep.view(down, 1, across, 1).expand(-1, self.rows, -1, self.columns)
        full = full.reshape(down * self.rows, across * self.columns)
        return full[: shape[0], : math.prod(shape[1:])].reshape(shape)


class NofM(SparsitySet):
    """``n:m``: in every m consecutive weights along the input dimension, the n largest (2:4 on Ampere GPUs).

    Args:
        n: weights kept in a block.
        m: weights in a block; a layer's input dimension must be a multiple of it.
    """

    def __init__(self, n: int, m: int) -> None:
        if not 0 < n < m:
            raise InputError(f"granularity {n}:{m} keeps nothing or everything; give 0 < n < m, as 2:4")
        self.n, self.m = n, m
        self.fixed_density = n / m

    def supports(self, shape: torch.Size) -> str | None:
        if shape[1] % self.m:
            return f"its input dimension {shape[1]} is no multiple of {self.m}"
        return None

    def scores(self, weight: Tensor) -> Tensor:
        return weight.flatten().square()

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        return keep.view(shape)

    def mask(self, weight: Tensor, k: int) -> Tensor:
        expected = weight.numel() * self.n // self.m
        if k != expected or self.supports(weight.shape):
            raise InputError(f"{self.n}:{self.m} keeps {expected} weights of {tuple(weight.shape)}, never {k}")
        along_input = weight.detach().transpose(1, -1)
        blocks = along_input.reshape(-1, self.m).abs()
        kept = torch.zeros_like(blocks, dtype=torch.bool)
        kept.scatter_(1, blocks.topk(self.n, dim=1, sorted=False).indices, True)
        return kept.view(along_input.shape).transpose(1, -1).contiguous()


_SETS: dict[str, Callable[[], SparsitySet]] = {
    "unstructured": Unstructured,
    "filter": Filter,
    "channel": Channel,
    "column": Column,
    "block": Block,
}


def make_sparsity_set(granularity: str) -> SparsitySet:
    """The set of a name: unstructured, filter, channel, column, block (4x4), block:RxC, or n:m as 2:4.

    Raises:
        ValueError: no set has this name.
    """
    if granularity in _SETS:
        return _SETS[granularity]()
    if found := re.fullmatch(r"(\d+):(\d+)", granularity):
        return NofM(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"block:(\d+)x(\d+)", granularity):
        return Block(int(found[1]), int(found[2]))
    if granularity == STRUCTURED:
        raise InputError(
            "granularity='structured' removes channels, by groups of layers: use "
            "pwoa_plugin.torch_pruning.PwoAGroupPruner, or pwoa prune; 'filter' masks filters layer by layer"
        )
    known = ", ".join(_SETS)
    raise InputError(f"granularity={granularity!r} is unknown; use {known}, block:RxC (block:8x1) or n:m (2:4)")
