"""Sparsity sets: how weights are grouped, and the projection on the set.

The projection keeps exactly k groups, those of largest norm: the Euclidean projection on "at most k groups are not
zero" (PwoA, eq. 9; Zhang et al., ECCV 2018).

A new set is one class and one line in ``SPARSITY_SETS``.
"""

from __future__ import annotations

import math
import re
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError


def top_k(scores: Tensor, k: int) -> Tensor:
    """Boolean mask of exactly the ``k`` largest scores; ties are broken."""
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keep[scores.topk(k, sorted=False).indices] = True
    return keep


class SparsitySet:
    """A way to split weights ``(out, in, ...)`` into groups that are kept or pruned whole; here, single weights."""

    #: Share of every layer that the set keeps, if it is fixed (``n:m``); None leaves it to the allocation.
    fixed_density: float | None = None
    #: How such sets are written, in messages; empty: as in the table.
    spelling: ClassVar[str] = ""
    #: Whether a run reaches the set in one cut, so that gradual pruning is impossible.
    one_cut: ClassVar[bool] = False
    #: Whether whole output channels become 0, and their constants (bias, BatchNorm) with them.
    zeroes_filters: ClassVar[bool] = False
    #: Whether weights are pruned one by one, as also transposed layers ``(in, out, ...)`` can be.
    single_weights: ClassVar[bool] = False
    #: The allocation if the config names none.
    default_allocation: ClassVar[str] = "lamp"
    #: The toolkit that prunes by it: a key of ``backends.BACKENDS``.
    backend: ClassVar[str] = "masks"

    @classmethod
    def parse(cls, name: str, granularity: str) -> SparsitySet | None:
        """The set for a granularity, or None if it means another set; ``name`` is the table's key."""
        return cls() if granularity == name else None

    def scores(self, weight: Tensor) -> Tensor:
        """Squared norm of every group, ``(groups,)``."""
        return weight.flatten().square()

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        """A boolean mask of a weight's ``shape`` from one boolean per group, ``(groups,)``."""
        return keep.view(shape)

    def supports(self, shape: torch.Size) -> str | None:
        """None, or why a weight of this shape cannot be in the set."""
        return None

    def mask(self, weight: Tensor, k: int) -> Tensor:
        """Mask of the projection of ``weight`` that keeps exactly ``k`` groups.

        Args:
            weight: ``(out, in, ...)``.
            k: groups to keep, 0 to all; in ``n:m`` the fixed number.

        Returns:
            A boolean tensor shaped as ``weight``; ``weight * mask`` is the projection.
        """
        return self.expand(top_k(self.scores(weight.detach()), k), weight.shape)


class Unstructured(SparsitySet):
    """Single weights."""

    single_weights = True


class Filter(SparsitySet):
    """Output channels: rows of the weight."""

    zeroes_filters = True

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
    """One position of the flattened filter in all filters: columns of GEMM's matrix, the authors' structured set."""

    def scores(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).square().sum(0)

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        return keep.view(1, *shape[1:]).expand(shape).clone()


class Block(SparsitySet):
    """Blocks of ``rows x columns`` of the matrix ``(out, in * kernel)``; those at the edges may be smaller."""

    spelling = "block, block:RxC (block:8x1)"

    def __init__(self, rows: int = 4, columns: int = 4) -> None:
        if rows < 1 or columns < 1:
            raise InputError(f"granularity: a block of {rows}x{columns} is empty; give sides of 1 or more")
        self.rows, self.columns = rows, columns

    @classmethod
    def parse(cls, name: str, granularity: str) -> SparsitySet | None:
        found = re.fullmatch(r"block(?::(\d{1,18})x(\d{1,18}))?", granularity)
        return None if found is None else cls(*(int(side) for side in found.groups(default="4")))

    def _grid(self, shape: torch.Size) -> tuple[int, int, int, int]:
        """Blocks down and across, and a block's sides: no more than the matrix has."""
        height, width = shape[0], math.prod(shape[1:])
        rows, columns = min(self.rows, height), min(self.columns, width)
        return math.ceil(height / rows), math.ceil(width / columns), rows, columns

    def scores(self, weight: Tensor) -> Tensor:
        down, across, rows, columns = self._grid(weight.shape)
        squares = weight.flatten(1).square()
        padding = (0, across * columns - squares.shape[1], 0, down * rows - squares.shape[0])
        blocks = F.pad(squares, padding).view(down, rows, across, columns)
        return blocks.sum((1, 3)).flatten()

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        down, across, rows, columns = self._grid(shape)
        full = keep.view(down, 1, across, 1).expand(-1, rows, -1, columns)
        full = full.reshape(down * rows, across * columns)
        return full[: shape[0], : math.prod(shape[1:])].reshape(shape)


class NofM(SparsitySet):
    """``n:m``: of every m consecutive weights along the input dimension, the n largest (2:4 on Ampere GPUs)."""

    spelling = "n:m (2:4)"
    one_cut = True

    def __init__(self, n: int, m: int) -> None:
        if not 0 < n < m:
            raise InputError(f"granularity {n}:{m} keeps nothing or everything; give 0 < n < m, as 2:4")
        self.n, self.m = n, m
        self.fixed_density = n / m

    @classmethod
    def parse(cls, name: str, granularity: str) -> SparsitySet | None:
        found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", granularity)
        return None if found is None else cls(int(found[1]), int(found[2]))

    def supports(self, shape: torch.Size) -> str | None:
        if shape[1] % self.m:
            return f"its input dimension {shape[1]} is no multiple of {self.m}"
        return None

    def mask(self, weight: Tensor, k: int) -> Tensor:
        along_input = weight.detach().transpose(1, -1)
        blocks = along_input.reshape(-1, self.m).abs()
        kept = torch.zeros_like(blocks, dtype=torch.bool)
        kept.scatter_(1, blocks.topk(self.n, dim=1, sorted=False).indices, True)
        return kept.view(along_input.shape).transpose(1, -1).contiguous()


class RemovedChannels(SparsitySet):
    """Channels of dependency groups: Torch-Pruning removes them, over several layers at once."""

    one_cut = True
    default_allocation = "uniform"
    backend = "channels"


SPARSITY_SETS: dict[str, type[SparsitySet]] = {
    "unstructured": Unstructured,
    "filter": Filter,
    "channel": Channel,
    "column": Column,
    "block": Block,
    "n:m": NofM,
    "structured": RemovedChannels,
}


def find_sparsity_set(granularity: str) -> SparsitySet:
    """The set for a granularity, ``structured`` included; InputError if there is none."""
    for name, kind in SPARSITY_SETS.items():
        if (found := kind.parse(name, granularity)) is not None:
            return found
    known = ", ".join(kind.spelling or name for name, kind in SPARSITY_SETS.items())
    raise InputError(f"granularity={granularity!r} is unknown; use one of {known}")


def make_sparsity_set(granularity: str) -> SparsitySet:
    """The set for a granularity whose groups are masked; InputError if there is none, or channels are removed."""
    found = find_sparsity_set(granularity)
    if found.backend != "masks":
        raise InputError(
            f"granularity={granularity!r} removes channels, by groups of layers: use "
            "pwoa_plugin.torch_pruning.PwoAGroupPruner, or pwoa prune; 'filter' masks filters layer by layer"
        )
    return found
