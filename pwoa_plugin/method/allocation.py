"""Allocation of one total sparsity over the layers, by their weights.

A new allocation is one class here and one line in ``ALLOCATIONS``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError
from .sparsity import SparsitySet


@dataclass(frozen=True)
class LayerGroups:
    """One layer as an allocation sees it."""

    shape: tuple[int, ...]
    scores: Tensor  # (groups,) float64: squared norms
    sizes: Tensor | None = None  # (groups,): weights in each, unless all are equal (blocks at an edge are smaller)
    least: int = 1  # groups that are always kept
    counted: int | None = None  # what the budget counts for this layer, unless its weights (channels)

    def kept(self, k: int) -> float:
        """Weights kept with the k groups of largest norm."""
        return k * self.size if self.sizes is None else float(self.sizes[self._order[:k]].sum())

    @cached_property
    def _order(self) -> Tensor:
        return self.scores.argsort(descending=True, stable=True)

    @property
    def groups(self) -> int:
        return len(self.scores)

    @property
    def weights(self) -> int:
        """What the budget counts."""
        return math.prod(self.shape) if self.counted is None else self.counted

    @property
    def size(self) -> float:
        """Mean number of weights in a group."""
        return self.weights / self.groups


@dataclass(frozen=True)
class LayerAllocation:
    """What one layer keeps."""

    shape: tuple[int, ...]  # of the weight
    groups: int
    keep: int  # of the groups
    dense_because: str | None = None  # why the layer stays dense

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        return self.keep / self.groups

    def mask(self, sparsity_set: SparsitySet, weight: Tensor) -> Tensor:
        """Boolean mask of the projection of ``weight``; all True if the layer stays dense."""
        if self.dense_because:
            return torch.ones_like(weight, dtype=torch.bool)
        return sparsity_set.mask(weight, self.keep)


class Allocation(ABC):
    """A rule that turns one density into groups to keep per layer."""

    @abstractmethod
    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        """Groups to keep per layer, not rounded: from 0 to all; their weights sum to about ``budget``."""


class Uniform(Allocation):
    """The same density everywhere (the paper)."""

    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        density = budget / sum(layer.weights for layer in layers)
        return [density * layer.groups for layer in layers]


class ERK(Allocation):
    """Erdos-Renyi-Kernel: density proportional to the sum of a weight's dimensions over their product.

    Evci et al., "Rigging the Lottery", ICML 2020. The density is capped at 1.
    """

    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        raw = [sum(layer.shape) / math.prod(layer.shape) for layer in layers]
        dense: set[int] = set()
        while True:
            left = budget - sum(layers[i].weights for i in dense)
            others = [i for i in range(len(layers)) if i not in dense]
            weighted = sum(raw[i] * layers[i].weights for i in others)
            scale = left / weighted if weighted else 0.0
            over = {i for i in others if scale * raw[i] > 1}
            if not over:
                break
            dense |= over
        return [layer.groups * (1.0 if i in dense else scale * raw[i]) for i, layer in enumerate(layers)]


class _Ranked(Allocation):
    """Ranks the groups of all layers together and keeps the first."""

    @abstractmethod
    def rank(self, layer: LayerGroups) -> Tensor:
        """What groups are ranked by across layers, ``(groups,)``."""

    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        ranks = [self.rank(layer) for layer in layers]
        for rank, layer in zip(ranks, layers, strict=True):
            rank[rank.topk(layer.least).indices] = torch.inf  # the best of every layer stay, so that none is emptied
        values = torch.cat(ranks)
        owner = torch.cat([torch.full((layer.groups,), i, device=values.device) for i, layer in enumerate(layers)])
        sizes = [layer.size for layer in layers]
        if len({*sizes}) == 1:  # several times as fast as sorting
            take = min(max(round(budget / sizes[0]), 1), len(values))
            chosen = values.topk(take, sorted=False).indices
        else:
            order = values.argsort(descending=True, stable=True)
            size = torch.tensor(sizes, dtype=torch.float64, device=values.device)
            total = size[owner[order]].cumsum(0)
            chosen = order[: int((total - budget).abs().argmin()) + 1]
        return [float(count) for count in torch.bincount(owner[chosen], minlength=len(layers))]


class LAMP(_Ranked):
    """Layer-adaptive magnitude: a squared weight over the sum of those in its layer that are not smaller.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
    """

    def rank(self, layer: LayerGroups) -> Tensor:
        left = layer.scores.nonzero().squeeze(1)  # fewer at every cut of gradual pruning
        ordered, index = layer.scores[left].sort(descending=True, stable=True)
        return torch.zeros_like(layer.scores).scatter_(0, left[index], ordered / ordered.cumsum(0))


class Global(_Ranked):
    """One magnitude threshold for all layers (mean square of a group)."""

    def rank(self, layer: LayerGroups) -> Tensor:
        return layer.scores / layer.size


ALLOCATIONS: dict[str, Allocation] = {"uniform": Uniform(), "erk": ERK(), "lamp": LAMP(), "global": Global()}


def keep_counts(layers: Sequence[LayerGroups], budget: float, allocation: Allocation) -> list[int]:
    """Whole groups to keep per layer, at least each layer's ``least``; in all as near to the budget as groups allow."""
    ideal = allocation.ideal(layers, budget)
    keep = [min(max(int(value), layer.least), layer.groups) for value, layer in zip(ideal, layers, strict=True)]
    error = sum(layer.kept(k) for k, layer in zip(keep, layers, strict=True)) - budget
    while True:
        step = -1 if error > 0 else 1
        changes = {
            i: layer.kept(keep[i] + step) - layer.kept(keep[i])
            for i, layer in enumerate(layers)
            if layer.least <= keep[i] + step <= layer.groups
        }
        moves = [i for i, change in changes.items() if abs(error + change) < abs(error) - 1e-9]
        if not moves:
            return keep
        # Largest remainder: the layer that is furthest from its ideal, in groups.
        best = max(moves, key=lambda i: step * (ideal[i] - keep[i]))
        keep[best] += step
        error += changes[best]


def allocate(
    weights: Mapping[str, Tensor], sparsity: float, sparsity_set: SparsitySet, allocation: Allocation
) -> dict[str, LayerAllocation]:
    """How many groups every layer keeps.

    Args:
        weights: ``(out, in, ...)`` by layer name.
        sparsity: share of these weights to prune, in (0, 1).
        sparsity_set: how weights are grouped.
        allocation: how the total is spread; unused if the set fixes each layer's density (n:m).

    Returns:
        ``{layer: LayerAllocation}``. The total is exact to one weight, or to one group in structured sets. No layer is
        emptied; layers that the set does not support stay dense and say why.

    Raises:
        InputError: a weight is not finite, a layer would be left without a group, or no layer supports the set.
    """
    result: dict[str, LayerAllocation] = {}
    layers: dict[str, LayerGroups] = {}
    for name, weight in weights.items():
        shape = tuple(weight.shape)
        why = sparsity_set.supports(weight.shape)
        if why is None:
            scores = sparsity_set.scores((weight.cpu() if weight.is_mps else weight).detach().double())
            if not scores.isfinite().all():
                raise InputError(
                    f"layer {name!r} holds a weight that is not finite; load a checkpoint without NaN or inf"
                )
            sizes = sparsity_set.scores(torch.ones(shape))
            first = next(iter(layers.values()), None)  # a model may be spread over devices
            scores = scores if first is None else scores.to(first.scores.device)
            layers[name] = LayerGroups(shape, scores, None if sizes.min() == sizes.max() else sizes.to(scores.device))
        result[name] = LayerAllocation(shape, weight.numel(), weight.numel(), why)
    if not layers:
        reasons = "; ".join(f"{name}: {entry.dense_because}" for name, entry in result.items())
        raise InputError(f"granularity: no layer can be pruned in this sparsity set ({reasons})")
    listed = list(layers.values())
    if sparsity_set.fixed_density is not None:
        keep = [round(layer.groups * sparsity_set.fixed_density) for layer in listed]
    else:
        budget = sum(layer.weights for layer in listed) * (1 - sparsity)
        least = sum(layer.size for layer in listed)
        if budget < least - max(layer.size for layer in listed) / 2:
            most = 1 - least / sum(layer.weights for layer in listed)
            raise InputError(
                f"sparsity={sparsity} would empty a layer: one group in each of {len(listed)} layers is "
                f"{least:.0f} weights; use at most {most:.6g} or exclude layers"
            )
        keep = keep_counts(listed, budget, allocation)
    for (name, layer), k in zip(layers.items(), keep, strict=True):
        result[name] = LayerAllocation(layer.shape, layer.groups, k)
    return result


def allocation_table(allocated: Mapping[str, LayerAllocation]) -> str:
    """The allocation as an aligned text table: layer, shape, weights, kept (about, for blocks at an edge), density."""
    width = max(map(len, (*allocated, "layer")))
    lines = [f"{'layer':{width}}  {'shape':16}{'weights':>12}{'kept':>12}{'density':>10}"]
    kept = {name: round(layer.weights * layer.density) for name, layer in allocated.items()}
    for name, layer in allocated.items():
        shape = "x".join(map(str, layer.shape))
        note = f"  dense: {layer.dense_because}" if layer.dense_because else ""
        lines.append(f"{name:{width}}  {shape:16}{layer.weights:12,}{kept[name]:12,}{layer.density:10.2%}{note}")
    total, left = sum(layer.weights for layer in allocated.values()), sum(kept.values())
    return "\n".join([*lines, f"{'total':{width}}  {'':16}{total:12,}{left:12,}{left / total:10.2%}"])
