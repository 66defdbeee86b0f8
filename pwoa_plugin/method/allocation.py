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
    scores: Tensor  # (groups,): squared norms, float64
    sizes: Tensor | None = None  # (groups,): weights in each, where they differ (blocks at an edge)
    least: int = 1  # groups that are always kept
    counted: int | None = None  # what the budget counts of this layer, where that is not its weights (channels)

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
        """What the budget counts: weights, unless ``counted`` says something else."""
        return math.prod(self.shape) if self.counted is None else self.counted

    @property
    def size(self) -> float:
        """Weights in a group, the mean."""
        return self.weights / self.groups


@dataclass(frozen=True)
class LayerAllocation:
    """What one layer keeps.

    Attributes:
        shape: of the weight.
        groups: groups the sparsity set splits it into.
        keep: groups to keep.
        dense_because: why the layer is left dense, or None.
    """

    shape: tuple[int, ...]
    groups: int
    keep: int
    dense_because: str | None = None

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        return self.keep / self.groups

    def mask(self, sparsity_set: SparsitySet, weight: Tensor) -> Tensor:
        """Boolean mask of the projection of ``weight``; all True where the layer is left dense."""
        if self.dense_because:
            return torch.ones_like(weight, dtype=torch.bool)
        return sparsity_set.mask(weight, self.keep)


class Allocation(ABC):
    """A rule that turns one density into groups to keep per layer."""

    @abstractmethod
    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        """Groups to keep per layer, not rounded.

        Args:
            layers: the layers.
            budget: weights to keep, of all layers together.

        Returns:
            One number a layer, between 0 and its groups; kept weights sum to about ``budget``.
        """


class Uniform(Allocation):
    """The same density everywhere (the paper)."""

    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        density = budget / sum(layer.weights for layer in layers)
        return [density * layer.groups for layer in layers]


class ERK(Allocation):
    """Erdos-Renyi-Kernel: density proportional to the sum of a weight's dimensions over their product.

    Evci et al., "Rigging the Lottery", ICML 2020. Layers that would be denser than dense are dense.
    """

    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        raw = [sum(layer.shape) / math.prod(layer.shape) for layer in layers]
        dense: set[int] = set()
        while True:
            left = budget - sum(layers[i].weights for i in dense)
            weighted = sum(raw[i] * layers[i].weights for i in range(len(layers)) if i not in dense)
            scale = left / weighted if weighted else 0.0
            over = {i for i in range(len(layers)) if i not in dense and scale * raw[i] > 1}
            if not over:
                break
            dense |= over
        return [layer.groups * (1.0 if i in dense else scale * raw[i]) for i, layer in enumerate(layers)]


class _Ranked(Allocation):
    """Keeps the groups that come first when all layers' groups are ranked together."""

    @abstractmethod
    def rank(self, layer: LayerGroups) -> Tensor:
        """What groups are compared by across layers, ``(groups,)``."""

    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        ranks = [self.rank(layer) for layer in layers]
        for rank, layer in zip(ranks, layers, strict=True):
            rank[rank.topk(layer.least).indices] = torch.inf  # the best of every layer are in, so none is emptied
        values = torch.cat(ranks)
        owner = torch.cat([torch.full((layer.groups,), i, device=values.device) for i, layer in enumerate(layers)])
        sizes = [layer.size for layer in layers]
        if len({*sizes}) == 1:  # several times as fast as to sort them all
            take = min(max(round(budget / sizes[0]), 1), len(values))
            chosen = values.topk(take, sorted=False).indices
        else:
            order = values.argsort(descending=True, stable=True)
            size = torch.tensor(sizes, dtype=torch.float64, device=values.device)
            total = size[owner[order]].cumsum(0)
            chosen = order[: int((total - budget).abs().argmin()) + 1]
        return [float(count) for count in torch.bincount(owner[chosen], minlength=len(layers))]


class LAMP(_Ranked):
    """Layer-adaptive magnitude: a squared weight over the sum of those not smaller in its layer.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
    """

    def rank(self, layer: LayerGroups) -> Tensor:
        left = layer.scores.nonzero().squeeze(1)  # in gradual pruning, fewer at every cut
        ordered, index = layer.scores[left].sort(descending=True, stable=True)
        return torch.zeros_like(layer.scores).scatter_(0, left[index], ordered / ordered.cumsum(0))


class Global(_Ranked):
    """One magnitude threshold for all layers (mean square of a group)."""

    def rank(self, layer: LayerGroups) -> Tensor:
        return layer.scores / layer.size


ALLOCATIONS: dict[str, Allocation] = {"uniform": Uniform(), "erk": ERK(), "lamp": LAMP(), "global": Global()}


def keep_counts(layers: Sequence[LayerGroups], budget: float, allocation: Allocation) -> list[int]:
    """Groups to keep per layer: whole, no fewer than each layer's least, in all as near to the budget as groups allow.

    Args:
        layers: the layers.
        budget: weights to keep, of all layers together.
        allocation: how they are spread.
    """
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
        # Largest remainder: the layer that is furthest from what it should have, in groups.
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
        allocation: how the total is spread; not asked where the set fixes each layer's density (n:m).

    Returns:
        ``{layer: LayerAllocation}``. The total is exact to one weight, within one group for structured sets.
        No layer is emptied; layers the set does not support are dense and say why.

    Raises:
        ValueError: the total would leave less than a group a layer, or no layer supports the set.
    """
    if not 0 < sparsity < 1:
        raise InputError(f"sparsity={sparsity} is outside (0, 1); 0.9 prunes nine weights in ten")
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
    """The allocation as an aligned text table: layer, shape, weights, kept, density."""
    rows = [("layer", "shape", "weights", "kept", "density", "")]
    kept_total = 0
    for name, layer in allocated.items():
        kept = round(layer.weights * layer.density)  # for blocks at an edge, about
        kept_total += kept
        shape = "x".join(map(str, layer.shape))
        note = f"dense: {layer.dense_because}" if layer.dense_because else ""
        rows.append((name, shape, f"{layer.weights:,}", f"{kept:,}", f"{layer.density:.2%}", note))
    total = sum(layer.weights for layer in allocated.values())
    rows.append(("total", "", f"{total:,}", f"{kept_total:,}", f"{kept_total / total:.2%}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  "
        f"{row[4]:>{widths[4]}}  {row[5]}".rstrip()
        for row in rows
    )
