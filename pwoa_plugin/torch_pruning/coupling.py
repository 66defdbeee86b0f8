"""Which weights go when a channel goes: Torch-Pruning's dependency groups, as positions in parameters.

A group holds the filters that produce a channel, the normalisation that scales it and the layers that read it. Here it
is a list of parts: a parameter, one of its dimensions, positions along it, and the channel of each position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE

from ..removal.groups import reads_channels
from ..removal.trace import RemovalError
from .removals import Removal

#: Layers whose output in one channel depends on the others: it changes when some go, even if they were 0.
MIXING = (OPTYPE.LN, OPTYPE.GN, OPTYPE.MHA)


@dataclass(frozen=True)
class Part:
    """A part of a parameter: positions along one dimension, and the channel of each."""

    parameter: nn.Parameter
    dim: int  # the one that gets shorter
    positions: Tensor  # (n,)
    channels: Tensor  # (n,): places among the channels of the group's root


@dataclass(frozen=True)
class Axis:
    """One way in which a group's channels are chosen: each unit goes as a whole."""

    kind: str  # "channels" or "heads"
    unit: Tensor  # (channels,): the unit of each channel of the root
    units: int

    @property
    def width(self) -> int:
        """Channels in a unit."""
        return len(self.unit) // self.units


@dataclass
class Coupling:
    """A dependency group with all its channels."""

    root: str  # the name of the layer that it begins with
    module: nn.Module  # that layer
    out: bool  # whether the channels are the root's filters, not its inputs
    channels: int  # their present number
    axes: list[Axis]
    parts: list[Part]
    group: Any = field(repr=False)  # Torch-Pruning's
    mixing: bool = False  # whether a layer in it computes with all channels together (`MIXING`)

    def removed(self, kept: Sequence[Tensor]) -> Tensor:
        """``(channels,)`` boolean: the channels that go if these units of each axis stay."""
        gone = torch.zeros(self.channels, dtype=torch.bool)
        for axis, keep in zip(self.axes, kept, strict=True):
            gone |= ~keep.cpu()[axis.unit]
        return gone


def parts_of(group: Any) -> Iterator[Part]:
    """The parts of a Torch-Pruning group, with biases and normalisation."""
    place = {index: i for i, index in enumerate(group[0].idxs)}
    for item in group:
        lost = RemovalError(
            f"Torch-Pruning loses track of channels on the way to {_name_of(group, item.dep.target)}",
            "do not flatten a concatenation at once, or view channels as other dimensions",
        )
        if item.root_idxs is None or not place.keys() >= {*item.root_idxs}:
            raise lost
        channels = torch.tensor([place[root] for root in item.root_idxs], dtype=torch.long)
        positions = torch.tensor(list(item.idxs), dtype=torch.long)
        for parameter, dim, where, of in _places(item.dep, positions, channels):
            if isinstance(parameter, nn.Parameter):
                if len(where) and int(where.max()) >= parameter.shape[dim]:
                    raise lost
                yield Part(parameter, dim % parameter.dim(), where, of)


def _name_of(group: Any, node: Any) -> str:
    """A node of Torch-Pruning's graph as messages name it: a parameter, a layer, or an operation."""
    if isinstance(node.module, nn.Parameter):
        return str(group._DG._param_to_name.get(node.module, "a parameter"))
    return "an operation of the forward" if node._name is None else str(node._name)


def _places(dep: Any, at: Tensor, of: Tensor) -> Iterator[tuple[Any, int, Tensor, Tensor]]:
    module, kind = dep.target.module, dep.target.type
    reads = reads_channels(dep)
    if kind == OPTYPE.PARAMETER:
        yield module, dep.target.pruning_dim, at, of
    elif kind == OPTYPE.LINEAR or (kind == OPTYPE.CONV and not reads):
        transposed = bool(getattr(module, "transposed", False))
        yield module.weight, int(reads != transposed), at, of
        if not reads:
            yield module.bias, 0, at, of
    elif kind == OPTYPE.CONV:
        each = module.in_channels // module.groups
        where, first = _first_of_each(at % each)
        yield module.weight, 0 if module.transposed else 1, where, of[first]
    elif kind in (OPTYPE.DEPTHWISE_CONV, OPTYPE.BN, OPTYPE.GN, OPTYPE.IN, OPTYPE.LN):
        dim = -1 if kind == OPTYPE.LN else 0
        yield module.weight, dim, at, of
        yield module.bias, dim, at, of
    elif kind == OPTYPE.PRELU and module.num_parameters > 1:
        yield module.weight, 0, at, of
    elif kind == OPTYPE.EMBED:
        yield module.weight, 1, at, of
    elif kind == OPTYPE.MHA:
        thrice = torch.cat([at + i * module.embed_dim for i in range(3)])
        yield module.in_proj_weight, 0, thrice, of.repeat(3)
        yield module.in_proj_weight, 1, at, of
        yield module.in_proj_bias, 0, thrice, of.repeat(3)
        yield module.out_proj.weight, 0, at, of
        yield module.out_proj.weight, 1, at, of
        yield module.out_proj.bias, 0, at, of


def inputs_of(group: Any) -> Iterator[tuple[nn.Module, int, list[int]]]:
    """The layers that read a group's channels: the layer, the dimension of its input, and the indices along it."""
    for item in group:
        if reads_channels(item.dep) or item.dep.target.type == OPTYPE.DEPTHWISE_CONV:
            module = item.dep.target.module
            yield module, -1 if isinstance(module, nn.Linear) else 1, list(item.idxs)


def _first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, and the first position of each."""
    first: dict[int, int] = {}
    for i, value in enumerate(values.tolist()):
        first.setdefault(value, i)
    return torch.tensor(list(first)), torch.tensor(list(first.values()))


def channel_scores(parts: Sequence[Part], channels: int, values: Mapping[nn.Parameter, Tensor] | None = None) -> Tensor:
    """The squared norm of all that goes with each channel: ``(channels,)``, float32, on the CPU.

    ``values`` take the place of parameters; a parameter without one counts as it is.
    """
    total = torch.zeros(channels)
    for part in parts:
        value = part.parameter.detach() if values is None else values.get(part.parameter, part.parameter.detach())
        others = [dim for dim in range(value.dim()) if dim != part.dim]
        squares = value.float().square()
        along = squares.sum(others) if others else squares
        total.index_add_(0, part.channels, along.cpu()[part.positions])
    return total


@dataclass
class Plan:
    """The channels that stay: the projection's support."""

    couplings: list[Coupling]
    kept: list[list[Tensor]]  # (units,) boolean for each axis of each group: the units that stay

    def losing(self) -> Iterator[tuple[Coupling, Tensor]]:
        """The groups that lose channels, and which: ``(channels,)`` boolean."""
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            gone = coupling.removed(kept)
            if gone.any():
                yield coupling, gone

    def removals(self) -> list[Removal]:
        return [
            Removal(coupling.root, coupling.out, tuple(torch.tensor(list(coupling.group[0].idxs))[gone].tolist()))
            for coupling, gone in self.losing()
        ]

    @property
    def mixing(self) -> bool:
        """Whether a group that loses channels has a layer that computes with all of them together."""
        return any(coupling.mixing for coupling, _ in self.losing())

    def _kept_positions(self) -> dict[nn.Parameter, dict[int, Tensor]]:
        """``{parameter: {dimension: boolean along it}}`` of all parameters in a group."""
        found: dict[nn.Parameter, dict[int, Tensor]] = defaultdict(dict)
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            gone = coupling.removed(kept)
            for part in coupling.parts:
                along = found[part.parameter].setdefault(
                    part.dim, torch.ones(part.parameter.shape[part.dim], dtype=torch.bool)
                )
                along[part.positions[gone[part.channels]]] = False
        return found

    def masks(self) -> dict[nn.Parameter, Tensor]:
        """The projection's masks: False where a weight goes with a removed channel."""
        masks = {}
        for parameter, sides in self._kept_positions().items():
            mask = torch.ones_like(parameter, dtype=torch.bool)
            for dim, along in sides.items():
                mask &= along.to(parameter.device).view([-1 if i == dim else 1 for i in range(parameter.dim())])
            masks[parameter] = mask
        return masks

    @torch.no_grad()
    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's parameters as they are after the removal, by name."""
        sides = self._kept_positions()
        found = {}
        for name, parameter in model.named_parameters():
            tensor = parameter.detach()
            for dim, along in sides.get(parameter, {}).items():
                tensor = tensor.index_select(dim, along.nonzero().flatten().to(tensor.device))
            found[name] = tensor
        return found
