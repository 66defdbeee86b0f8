"""Which channels of a network can go, by Torch-Pruning's dependency groups, and their removal.

A channel is one index of a group: the filters that produce it, the BatchNorm that scales it, the layers that read it.
It can go if no layer reads it: each reader's weights for it are 0, or it is 0 for every image. Removal is then exact:
nothing that goes contributes to the output.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch_pruning.ops import OPTYPE

from .._weights import is_weighted
from ..method.constants import ConstantChannels, links
from .trace import Tracing, grouping_errors

_MIXING = (OPTYPE.LN, OPTYPE.GN, OPTYPE.MHA, OPTYPE.LSTM, OPTYPE.EMBED, OPTYPE.CUSTOMIZED)


@dataclass
class Obstacle:
    """Why a channel stays."""

    structure: str = ""  # what forbids its removal whatever the weights
    constant: bool = True  # whether all that read it see a constant
    readers: set[str] = field(default_factory=set)  # layers that read it and for which it is not 0
    alive: set[str] = field(default_factory=set)  # layers whose filter for it is alive


class Network:
    """A network on its way to fewer channels.

    Attributes:
        model: the network.
        filters, inputs: ``{layer: indices}``: which of its first channels are left.
        zero, constant, still: by layer, as in `ConstantChannels`.
        history: the removals so far, as Torch-Pruning's pruning history.
        obstacles: ``{(layer, side): {first index: Obstacle}}`` of the last pass over the groups.
    """

    def __init__(self, model: nn.Module, constants: ConstantChannels) -> None:
        self.model = model
        self.history: list[tuple[str, bool, tuple[int, ...]]] = []
        self.obstacles: dict[tuple[str, str], dict[int, Obstacle]] = {}
        self.filters: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if is_weighted(module):
                groups, out, into = connections(module).shape
                self.filters[name], self.inputs[name] = torch.arange(groups * out), torch.arange(groups * into)
            elif isinstance(module, _BatchNorm):
                self.filters[name] = torch.arange(module.num_features)
        self.update(constants)

    def update(self, constants: ConstantChannels) -> None:
        """Note what `find_constant_channels` finds in the model as it is now."""
        names = {module: name for name, module in self.model.named_modules()}
        self.zero, self.constant, self.still = (
            {names[module]: channels.cpu() for module, channels in by_module.items()}
            for by_module in (constants.zero, constants.constant, constants.still)
        )

    def reads(self, name: str) -> Tensor:
        """``(in,)``: input channels that influence this layer's output."""
        return connections(self.model.get_submodule(name)).any(1).flatten().cpu() & ~self.zero[name]

    def drop(self, name: str, side: str, indices: Iterable[int]) -> None:
        """Note that these channels, as numbered now, are gone."""
        followers = [self.filters, self.still] if side == "filters" else [self.inputs, self.zero]
        if (side == "inputs") == (name in self.inputs):  # a BatchNorm's constants are its filters'
            followers.append(self.constant)
        gone = list(indices)
        for follower in followers:
            if name in follower:
                follower[name] = without(follower[name], gone)


def remove_dead(
    network: Network, inputs: Any, *, only: str | None = None, skip: Mapping[str, str] | None = None
) -> bool:
    """Go over all groups once, and remove from ``network`` the channels that can go.

    Args:
        only: the one layer whose group is treated; default: all.
        skip: ``{layer: why}`` whose groups are left alone.

    Returns:
        Whether anything was removed. That can free channels of earlier layers, for the next call.
    """
    groups, skip = _Groups(network, Tracing(inputs).graph(network.model)), skip or {}
    network.obstacles = {}
    seen = {name: torch.zeros_like(channels, dtype=torch.bool) for name, channels in network.filters.items()}
    first = dict(network.filters)
    removed = False
    for module in groups.graph.module2node:
        name = groups.names.get(module)
        if name is None or name not in network.inputs or only not in (None, name) or seen[name].all():
            continue
        with grouping_errors():
            group = groups.of(module, list(range(len(network.filters[name]))))
        obstacles = groups.obstacles(group)
        for other, side, numbers, _ in groups.positions(group):
            if side == "filters":
                seen[other] |= torch.isin(first[other], torch.tensor(numbers))
        if name in skip:
            obstacles = dict.fromkeys(group[0].idxs, Obstacle(structure=skip[name])) | obstacles
        asked = list(group[0].idxs)
        while True:
            groups.note(group, obstacles)
            chosen = [index for index in group[0].idxs if index not in obstacles]
            if obstacles and len(chosen) >= len(asked):
                # The code splits channels into parts, and one brings others along: it stays with any of them.
                pairs = list(zip(group[0].idxs, group[0].root_idxs, strict=True))
                stay = {*obstacles} | {root for index, root in pairs if index in obstacles}
                chosen = [index for index in asked if index not in stay]
            if not chosen:
                break
            asked = chosen
            # Again for these alone: where two channels meet in one position, Torch-Pruning names only one of them.
            group = groups.of(module, chosen)
            obstacles = groups.obstacles(group)
            if not obstacles:
                groups.remove(group)
                network.history.append((name, True, tuple(chosen)))
                removed = True
                break
    return removed


def reads_channels(dep: Any) -> bool:
    """Whether a convolution or linear layer in a group reads the channels, and does not produce them."""
    return bool(dep.handler.__name__ == "prune_in_channels") and dep.target.type in (OPTYPE.CONV, OPTYPE.LINEAR)


class _Groups:
    """The dependency groups of one graph."""

    def __init__(self, network: Network, graph: Any) -> None:
        self.network, self.graph = network, graph
        self.names = {module: name for name, module in network.model.named_modules()}
        users = Counter(id(p) for module in self.names for p in module._parameters.values() if p is not None)
        self.tied = {id(p) for p in network.model.parameters() if users[id(p)] > 1}

    def of(self, module: nn.Module, filters: list[int]) -> Any:
        """The group of these filters of a layer."""
        return self.graph.get_pruning_group(module, self.graph.get_pruner_of_module(module).prune_out_channels, filters)

    def obstacles(self, group: Any) -> dict[int, Obstacle]:
        """Why channels stay, by their index in the group's first layer. Channels without an obstacle can go."""
        network = self.network
        found: dict[int, Obstacle] = defaultdict(Obstacle)
        read: set[int] = set()
        for item in group:
            name, of, reads = self.names.get(item.dep.target.module, ""), item.root_idxs, reads_channels(item.dep)
            left = (network.inputs if reads else network.filters).get(name)
            reason = self._forbids(item.dep)
            if not reason and left is not None and max(item.idxs) >= len(left):
                reason = f"Torch-Pruning loses track of them on the way to {name}"
            if reads and not reason:
                read.update(of)
                if name not in network.zero:
                    reason = f"{name}, which reads them, did not run in eval mode"
            if reason:
                for root in of:
                    found[root].structure = reason
            elif reads:
                live, constants = network.reads(name).tolist(), network.constant[name].tolist()
                for index, root in zip(item.idxs, of, strict=True):
                    if live[index]:
                        found[root].readers.add(name)
                        found[root].constant &= constants[index]
            elif name in network.still:
                still = network.still[name].tolist()
                for index, root in zip(item.idxs, of, strict=True):
                    if not still[index]:
                        found[root].alive.add(name)
        for root in {*group[0].root_idxs}:
            if root not in read and not found[root].structure:
                found[root].structure = "no layer reads them"
        stays = {root: found[root] for root in group[0].idxs if found[root].structure or found[root].readers}
        return stays | self._shape_obstacles(group, set(group[0].idxs) - set(stays))

    def _forbids(self, dep: Any) -> str:
        """Why no channel of this layer can go; empty if nothing forbids it."""
        module, kind = dep.target.module, dep.target.type
        name = self.names.get(module, "")
        if kind == OPTYPE.OUTPUT:
            return "they are part of the model's output"
        if kind in _MIXING:
            return f"{name} ({type(module).__name__}) computes with all channels together"
        if not isinstance(module, nn.Module) or not name:
            return ""
        if any(id(parameter) in self.tied for parameter in module._parameters.values()):
            return f"{name} shares its parameters with another layer"
        if is_weighted(module) and module._parameters.get("weight") is None:
            return f"the weight of {name} is computed from other parameters"
        if isinstance(module, _ConvNd) and module.groups > 1:
            depthwise = kind == OPTYPE.DEPTHWISE_CONV
            if depthwise and module.in_channels != module.out_channels:
                return f"{name} has one filter per group and several inputs"
            if not depthwise and isinstance(module, _ConvTransposeNd):
                return f"{name} is a transposed convolution in groups"
        return ""

    def _shape_obstacles(self, group: Any, chosen: set[int]) -> dict[int, Obstacle]:
        """Channels that must stay: one per layer at least, and as many in each group of a convolution."""
        found: dict[int, Obstacle] = {}
        while True:
            before = len(found)
            for item in group:
                module, kind = item.dep.target.module, item.dep.target.type
                if kind not in (OPTYPE.CONV, OPTYPE.LINEAR, OPTYPE.DEPTHWISE_CONV):
                    continue
                reads, name = reads_channels(item.dep), self.names[module]
                channels = len((self.network.inputs if reads else self.network.filters)[name])
                groups = module.groups if kind == OPTYPE.CONV else 1
                going = {i: r for i, r in zip(item.idxs, item.root_idxs, strict=True) if r in chosen}
                stay = _kept_for_shape(sorted(going), channels, groups, reads)
                reason = f"the groups of {name} must stay equal in size" if groups > 1 else f"{name} would be empty"
                for index in stay:
                    found[going[index]] = Obstacle(reason)
                chosen -= {going[index] for index in stay}
            if len(found) == before:
                return found

    def members(self, group: Any) -> Iterator[tuple[str, str, list[int], list[int]]]:
        """The layers of a group: ``(layer, side, indices, indices in the group's first layer)``."""
        for item in group:
            name = self.names.get(item.dep.target.module, "")
            sides = ["inputs" if reads_channels(item.dep) else "filters"]
            if item.dep.target.type == OPTYPE.DEPTHWISE_CONV:
                sides = ["filters", "inputs"]
            for side in sides:
                if name in getattr(self.network, side):
                    yield name, side, item.idxs, item.root_idxs

    def positions(self, group: Any) -> Iterator[tuple[str, str, list[int], list[int]]]:
        """`members` with the indices as they were at first."""
        for name, side, indices, roots in self.members(group):
            left = getattr(self.network, side)[name]
            known = [(i, root) for i, root in zip(indices, roots, strict=True) if i < len(left)]
            yield name, side, left[[i for i, _ in known]].tolist(), [root for _, root in known]

    def note(self, group: Any, obstacles: Mapping[int, Obstacle]) -> None:
        for name, side, numbers, roots in self.positions(group):
            where = self.network.obstacles.setdefault((name, side), {})
            where |= {number: obstacles[root] for number, root in zip(numbers, roots, strict=True) if root in obstacles}

    def remove(self, group: Any) -> None:
        for name, side, indices, _ in self.members(group):
            self.network.drop(name, side, indices)
        group.prune()


def _kept_for_shape(going: list[int], channels: int, groups: int, reads: bool) -> set[int]:
    """Which of the channels ``going`` must stay, so that one is left and groups are equal in size."""
    if groups == 1:
        return {going[-1]} if len(going) >= channels else set()
    each = channels // groups
    if reads:  # Torch-Pruning takes the same inputs out of each group
        times = Counter(index % each for index in going)
        whole = [place for place in range(each) if times[place] == groups]
        whole = whole[:-1] if len(whole) == each else whole
        return {index for index in going if index % each not in whole}
    by_group = [[index for index in going if index // each == group] for group in range(groups)]
    # Two at least: Torch-Pruning would take a convolution with one filter per group for a depthwise one from now on.
    most = max(0, min(min(map(len, by_group)), each - 2))
    return {index for indices in by_group for index in indices[most:]}


def without(values: Tensor, gone: Iterable[int]) -> Tensor:
    stays = torch.ones(len(values), dtype=torch.bool, device=values.device)
    stays[list(gone)] = False
    return values[stays]


def connections(module: nn.Module) -> Tensor:
    """`links` of a convolution or linear layer; for BatchNorm ``(channels,)``, whether its weight is not 0."""
    weight = getattr(module, "weight", None)
    if weight is None:  # a BatchNorm without
        assert isinstance(module, _BatchNorm)
        return torch.ones(module.num_features, dtype=torch.bool)
    assert isinstance(weight, Tensor)
    present = weight.detach() != 0
    return present if isinstance(module, _BatchNorm) else links(module, present)
