"""Which channels of a network can go, by Torch-Pruning's dependency groups, and taking them out.

A channel is one index of a group: filters that make it, BatchNorm that scales it, layers that read it. It can go if no
layer reads it: each reader's weights for it are 0, or it arrives as 0 whatever the image. That is exact: nothing that
is taken out contributes to the output.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch_pruning.ops import OPTYPE

from .._text import named
from .._weights import is_weighted
from ..errors import InputError
from ..method.constants import ConstantChannels, links
from .inputs import call, described, map_tensors, tensors_of

__all__ = ["Network", "Obstacle", "freed", "output_nodes", "remove_dead", "trace"]

_logger = logging.getLogger(__name__)

_MIXING = (OPTYPE.LN, OPTYPE.GN, OPTYPE.MHA, OPTYPE.LSTM, OPTYPE.EMBED, OPTYPE.CUSTOMIZED)


@dataclass(frozen=True)
class Obstacle:
    """Why a channel stays.

    Attributes:
        structure: what forbids it whatever the weights; empty if nothing does.
        constant: it carries a constant.
        readers: layers that read it, and to which it is not 0.
        alive: layers whose filter for it is alive.
    """

    structure: str = ""
    constant: bool = False
    readers: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()


class Network:
    """A network on its way to fewer channels.

    Attributes:
        model: the network.
        filters, inputs: ``{layer: indices}``: which of its first channels are left.
        history: what was removed, as Torch-Pruning's pruning history.
        obstacles: ``{(layer, side): {first index: Obstacle}}`` of the last look at it.
    """

    def __init__(self, model: nn.Module, constants: ConstantChannels) -> None:
        self.model = model
        self.history: list[tuple[str, bool, tuple[int, ...]]] = []
        self.obstacles: dict[tuple[str, str], dict[int, Obstacle]] = {}
        self.filters: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if is_weighted(module):
                groups, out, into = links(module, _present(module)).shape
                self.filters[name], self.inputs[name] = torch.arange(groups * out), torch.arange(groups * into)
            elif isinstance(module, _BatchNorm):
                self.filters[name] = torch.arange(module.num_features)
        self.update(constants)

    def update(self, constants: ConstantChannels) -> None:
        """Take in what `find_constant_channels` found in the model as it is now."""
        names = {module: name for name, module in self.model.named_modules()}
        self.zero = {names[module]: channels.cpu() for module, channels in constants.zero.items()}
        self.constant = {names[module]: channels.cpu() for module, channels in constants.constant.items()}
        self.still = {names[module]: channels.cpu() for module, channels in constants.still.items()}

    def reads(self, name: str) -> Tensor:
        """``(in,)`` boolean: input channels that make a difference to this layer."""
        module = self.model.get_submodule(name)
        return links(module, _present(module)).any(1).flatten().cpu() & ~self.zero[name]

    def drop(self, name: str, side: str, indices: Iterable[int]) -> None:
        """Note that these channels (as numbered now) are gone."""
        followers = [self.filters, self.still] if side == "filters" else [self.inputs, self.zero]
        if (side == "inputs") == (name in self.inputs):  # a BatchNorm's constants are its filters'
            followers.append(self.constant)
        keep = torch.ones(len(followers[0][name]), dtype=torch.bool)
        keep[list(indices)] = False
        for follower in followers:
            if name in follower:
                follower[name] = follower[name][keep]


def trace(model: nn.Module, inputs: Any) -> Any:
    """Torch-Pruning's dependency graph.

    Raises:
        ValueError: the model cannot be traced; the message says where.
    """
    try:
        return _trace(model, inputs, call)
    except _LostTraceError:
        raise
    except Exception as error:
        raise InputError(
            f"model: Torch-Pruning cannot trace {_where_it_fails(model, inputs)} ({named(error)}); "
            "rewrite that forward with plain operations"
        ) from error


class _LostTraceError(InputError):
    """Autograd sees no way from the weights to the output."""


def output_nodes(output: Any) -> list[Tensor]:
    """The tensors of an output that Torch-Pruning can follow, each a node of its own, also where a layer makes it."""
    return [tensor * 1 for tensor in tensors_of(output) if tensor.requires_grad]


def _trace(model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any]) -> Any:
    lost: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def look(_: nn.Module, args: Any, output: Any, what: str = described(name, module)) -> None:
            found = tensors_of(output)
            if found and not any(tensor.requires_grad for tensor in found):
                lost.append(what)

        handles.append(module.register_forward_hook(look))

    def outputs(output: Any) -> list[Tensor]:
        found = output_nodes(output)
        if not found:
            raise _LostTraceError(
                f"model: autograd loses the trace in {lost[0] if lost else 'the model'}; let its forward give tensors "
                "with a gradient (no detach, no_grad or argmax)"
            )
        return found

    try:
        return tp.DependencyGraph().build_dependency(
            model, inputs, forward_fn=forward, output_transform=outputs, verbose=False
        )
    finally:
        for handle in handles:
            handle.remove()


def _where_it_fails(model: nn.Module, inputs: Any) -> str:
    """The innermost module that Torch-Pruning cannot trace even by itself."""
    calls: list[tuple[str, nn.Module, Any, Any]] = []
    handles = []
    for name, module in model.named_modules():

        def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls.append((name, module, *map_tensors(Tensor.detach, (args, kwargs))))

        if name and any(True for _ in module.children()):
            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, module, args, kwargs in sorted(calls, key=lambda each: -each[0].count(".")):

        def forward(module: nn.Module, args: Any, kwargs: Any = kwargs) -> Any:
            return module(*args, **kwargs)

        try:
            _trace(module, args, forward)
        except _LostTraceError:
            continue
        except Exception:
            return described(name, module)
    return described("", model)


@contextlib.contextmanager
def grouping_told() -> Iterator[None]:
    """Where Torch-Pruning fails to find what depends on a layer's channels, as with a GRU, say so.

    Raises:
        ValueError: in place of its IndexError.
    """
    try:
        yield
    except IndexError as error:
        raise InputError(
            f"model: Torch-Pruning cannot tell which channels go together ({named(error)}), as with a GRU or another "
            "layer that it does not know; prune by masks, without removing channels"
        ) from error


def remove_dead(
    network: Network, inputs: Any, *, only: str | None = None, skip: Mapping[str, str] | None = None
) -> bool:
    """Look at each group once, and take out the channels that can go.

    Args:
        network: changed in place.
        inputs: for the trace.
        only: the one layer whose group is looked at; all of them unless given.
        skip: ``{layer: why}`` whose groups are left alone.

    Returns:
        Whether anything was removed. That can free channels of layers before: see `freed`.
    """
    graph, skip = trace(network.model, inputs), skip or {}
    look = _Look(network, graph)
    network.obstacles = {}
    seen = {name: torch.zeros_like(channels, dtype=torch.bool) for name, channels in network.filters.items()}
    done = dict(network.filters)
    removed = False
    for module in list(graph.module2node):
        name = look.names.get(module)
        if name is None or not is_weighted(module) or only not in (None, name) or seen[name].all():
            continue
        prune = graph.get_pruner_of_module(module).prune_out_channels
        with grouping_told():
            group = graph.get_pruning_group(module, prune, list(range(len(network.filters[name]))))
        obstacles = look.obstacles(group)
        for other, side, numbers, _ in look.positions(group):
            if side == "filters":
                seen[other] |= torch.isin(done[other], torch.tensor(numbers))
        if name in skip:
            obstacles = dict.fromkeys(group[0].idxs, Obstacle(structure=skip[name])) | obstacles
        while True:
            look.note(group, obstacles)
            chosen = [index for index in group[0].idxs if index not in obstacles]
            if not chosen:
                break
            # Again for these alone: where two channels meet in one position, Torch-Pruning names one of them only.
            group = graph.get_pruning_group(module, prune, chosen)
            obstacles = look.obstacles(group)
            if not obstacles:
                look.take_out(group)
                network.history.append((name, True, tuple(chosen)))
                removed = True
                break
    return removed


def freed(network: Network) -> bool:
    """Whether a channel that a layer still read at the last look is read no more, for the filters with it are gone."""
    read: dict[int, bool] = {}
    for (name, side), where in network.obstacles.items():
        if side == "inputs" and name in network.zero:
            reads = dict(zip(network.inputs[name].tolist(), network.reads(name).tolist(), strict=True))
            for index, obstacle in where.items():
                if obstacle.readers and not obstacle.structure:
                    read[id(obstacle)] = read.get(id(obstacle), False) or reads.get(index, False)
    return not all(read.values())


class _Look:
    """A look at the groups of one graph."""

    def __init__(self, network: Network, graph: Any) -> None:
        self.network, self.graph = network, graph
        self.names = {module: name for name, module in network.model.named_modules()}
        users = Counter(id(p) for module in self.names for p in module._parameters.values() if p is not None)
        self.tied = {id(p) for p in network.model.parameters() if users[id(p)] > 1}

    def is_reader(self, dep: Any) -> bool:
        if dep.target.type not in (OPTYPE.CONV, OPTYPE.LINEAR):
            return False
        pruner = self.graph.get_pruner_of_module(dep.target.module)
        return bool(dep.handler == pruner.prune_in_channels)

    def obstacles(self, group: Any) -> dict[int, Obstacle]:
        """Why channels stay, by the index of the group's first layer; those not named can go."""
        roots: list[int] = list(group[0].idxs)
        structure: dict[int, str] = {}
        readers: dict[int, set[str]] = {root: set() for root in roots}
        alive: dict[int, set[str]] = {root: set() for root in roots}
        constant: dict[int, bool] = dict.fromkeys(roots, True)
        read: set[int] = set()
        for item in group:
            module, of = item.dep.target.module, item.root_idxs
            name = self.names.get(module, "")
            left = (self.network.inputs if self.is_reader(item.dep) else self.network.filters).get(name)
            if reason := self._forbids(item.dep):
                structure |= dict.fromkeys(of, reason)
            elif left is not None and max(item.idxs) >= len(left):
                structure |= dict.fromkeys(of, f"Torch-Pruning loses track of them on the way to {name}")
            elif self.is_reader(item.dep):
                read.update(of)
                if name not in self.network.zero:
                    structure |= dict.fromkeys(of, f"{name}, which reads them, did not run in eval mode")
                    continue
                reads, constants = self.network.reads(name).tolist(), self.network.constant[name].tolist()
                for index, root in zip(item.idxs, of, strict=True):
                    if reads[index]:
                        readers[root].add(name)
                        constant[root] &= constants[index]
            elif name in self.network.still:
                still = self.network.still[name].tolist()
                for index, root in zip(item.idxs, of, strict=True):
                    if not still[index]:
                        alive[root].add(name)
        found = {
            root: Obstacle(
                structure.get(root, ""), constant[root], self._ordered(readers[root]), self._ordered(alive[root])
            )
            for root in roots
            if root in structure or readers[root]
        }
        found |= {root: Obstacle("no layer reads them") for root in roots if root not in read and root not in found}
        return found | self._shape_obstacles(group, set(roots) - set(found))

    def _ordered(self, names: set[str]) -> tuple[str, ...]:
        return tuple(name for name in self.network.inputs if name in names) if names else ()

    def _forbids(self, dep: Any) -> str:
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
        """Channels that stay so that layers have a shape: one at least, and as many in each group of a convolution."""
        found: dict[int, Obstacle] = {}
        while True:
            before = len(found)
            for item in group:
                module, kind = item.dep.target.module, item.dep.target.type
                if kind not in (OPTYPE.CONV, OPTYPE.LINEAR, OPTYPE.DEPTHWISE_CONV):
                    continue
                reads = self.is_reader(item.dep)
                left = self.network.inputs if reads else self.network.filters
                channels = len(left[self.names[module]])
                groups = module.groups if kind == OPTYPE.CONV else 1
                going = {i: r for i, r in zip(item.idxs, item.root_idxs, strict=True) if r in chosen}
                stay = _kept_for_shape(sorted(going), channels, groups, reads)
                name = self.names[module]
                reason = f"{name} has groups, of one size each" if groups > 1 else f"{name} would be empty"
                for index in stay:
                    found[going[index]] = Obstacle(reason)
                chosen -= {going[index] for index in stay}
            if len(found) == before:
                return found

    def positions(self, group: Any) -> Iterator[tuple[str, str, list[int], list[int]]]:
        """Layers of a group: ``(layer, side, first indices, indices of the group's first layer)``."""
        for item in group:
            name = self.names.get(item.dep.target.module, "")
            sides = ["inputs"] if self.is_reader(item.dep) else ["filters"]
            if item.dep.target.type == OPTYPE.DEPTHWISE_CONV:
                sides = ["filters", "inputs"]
            for side in sides:
                left = getattr(self.network, side).get(name)
                if left is not None:
                    known = [
                        (index, root)
                        for index, root in zip(item.idxs, item.root_idxs, strict=True)
                        if index < len(left)
                    ]
                    yield name, side, left[[index for index, _ in known]].tolist(), [root for _, root in known]

    def note(self, group: Any, obstacles: Mapping[int, Obstacle]) -> None:
        for name, side, numbers, roots in self.positions(group):
            where = self.network.obstacles.setdefault((name, side), {})
            where |= {number: obstacles[root] for number, root in zip(numbers, roots, strict=True) if root in obstacles}

    def take_out(self, group: Any) -> None:
        for item in group:
            name = self.names.get(item.dep.target.module, "")
            if self.is_reader(item.dep):
                self.network.drop(name, "inputs", item.idxs)
            elif name in self.network.filters:
                self.network.drop(name, "filters", item.idxs)
                if item.dep.target.type == OPTYPE.DEPTHWISE_CONV:
                    self.network.drop(name, "inputs", item.idxs)
        group.prune()


def _kept_for_shape(going: list[int], channels: int, groups: int, reads: bool) -> set[int]:
    """Which of the channels ``going`` stay after all, so that one is left and groups are of one size."""
    if groups == 1:
        return {going[-1]} if len(going) >= channels else set()
    each = channels // groups
    if reads:  # Torch-Pruning takes the same inputs out of each group
        times = Counter(index % each for index in going)
        whole = [place for place in range(each) if times[place] == groups]
        whole = whole[:-1] if len(whole) == each else whole
        return {index for index in going if index % each not in whole}
    by_group = [[index for index in going if index // each == group] for group in range(groups)]
    # Two at least: with one, Torch-Pruning would take it for a depthwise convolution from now on.
    most = max(0, min(min(map(len, by_group)), each - 2))
    return {index for indices in by_group for index in indices[most:]}


def _present(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach() != 0
