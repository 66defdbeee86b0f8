"""Which weights go when a channel goes: Torch-Pruning's dependency groups, as positions in parameters.

A group holds the filters that make a channel, the normalisation that scales it and the layers that read it. Here it is
a list of parts: a parameter, one of its dimensions, positions along it, and the channel that each position belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE

from ..errors import InputError

__all__ = ["MIXING", "Axis", "Coupling", "Part", "channel_scores", "inputs_of", "parts_of"]

#: Layers whose answer for one channel depends on the others: without some of them it changes, also where they were 0.
MIXING = (OPTYPE.LN, OPTYPE.GN, OPTYPE.MHA)


@dataclass(frozen=True)
class Part:
    """Some of a parameter.

    Attributes:
        parameter: the tensor.
        dim: its dimension that gets shorter.
        positions: ``(n,)`` along it.
        channels: ``(n,)``, the place of each position's channel among those of the group's root.
    """

    parameter: nn.Parameter
    dim: int
    positions: Tensor
    channels: Tensor


@dataclass(frozen=True)
class Axis:
    """One way in which a group's channels are chosen: each unit goes as a whole.

    Attributes:
        kind: ``channels`` or ``heads``.
        unit: ``(channels,)``, the unit of each of the root's channels.
        units: their number.
    """

    kind: str
    unit: Tensor
    units: int

    @property
    def width(self) -> int:
        """Channels in a unit."""
        return len(self.unit) // self.units


@dataclass
class Coupling:
    """A dependency group with all its channels.

    Attributes:
        root: the layer that it is named after.
        module: that layer.
        out: whether its channels are the root's filters, not its inputs.
        channels: how many there are now.
        axes: how they can be chosen.
        parts: what goes with them.
        mixing: names of layers in it that compute with all channels together (`MIXING`).
        group: Torch-Pruning's.
    """

    root: str
    module: nn.Module
    out: bool
    channels: int
    axes: list[Axis]
    parts: list[Part]
    group: Any = field(repr=False)
    mixing: list[str] = field(default_factory=list)

    def removed(self, kept: Sequence[Tensor]) -> Tensor:
        """``(channels,)`` boolean: channels that go where these units of each axis stay."""
        gone = torch.zeros(self.channels, dtype=torch.bool)
        for axis, keep in zip(self.axes, kept, strict=True):
            gone |= ~keep.cpu()[axis.unit]
        return gone


def parts_of(group: Any) -> Iterator[Part]:
    """The parts of a Torch-Pruning group, biases and normalisation too.

    Raises:
        ValueError: a layer's channels cannot be told apart.
    """
    place = {index: i for i, index in enumerate(group[0].idxs)}
    for item in group:
        roots = item.root_idxs
        if roots is None or any(root not in place for root in roots):
            raise InputError(f"Torch-Pruning loses track of channels on the way to {item.dep.target.name}")
        channels = torch.tensor([place[root] for root in roots], dtype=torch.long)
        positions = torch.tensor(list(item.idxs), dtype=torch.long)
        for parameter, dim, where, of in _places(item.dep, positions, channels):
            if isinstance(parameter, nn.Parameter):
                if len(where) and int(where.max()) >= parameter.shape[dim]:
                    raise InputError(
                        f"Torch-Pruning loses track of channels on the way to {item.dep.target.name.split(' (')[0]} "
                        "(a concatenation that is flattened at once, say); list the layers before in ignored_layers"
                    )
                yield Part(parameter, dim, where, of)


def _places(dep: Any, at: Tensor, of: Tensor) -> Iterator[tuple[Any, int, Tensor, Tensor]]:
    module, kind = dep.target.module, dep.target.type
    reads = _reads(dep)
    if kind == OPTYPE.PARAMETER:
        yield module, dep.target.pruning_dim % module.dim(), at, of
    elif kind == OPTYPE.LINEAR or (kind == OPTYPE.CONV and not reads):
        transposed = bool(getattr(module, "transposed", False))
        yield module.weight, int(reads != transposed), at, of
        if not reads:
            yield module.bias, 0, at, of
    elif kind == OPTYPE.CONV:
        each = module.in_channels // module.groups
        where, first = _first_of_each(at % each)
        yield module.weight, 0 if module.transposed else 1, where, of[first]
    elif kind == OPTYPE.DEPTHWISE_CONV or kind in (OPTYPE.BN, OPTYPE.GN, OPTYPE.IN):
        yield module.weight, 0, at, of
        yield module.bias, 0, at, of
    elif kind == OPTYPE.PRELU:
        if module.num_parameters > 1:
            yield module.weight, 0, at, of
    elif kind == OPTYPE.LN:
        if module.elementwise_affine:
            yield module.weight, module.weight.dim() - 1, at, of
            if module.bias is not None:
                yield module.bias, module.bias.dim() - 1, at, of
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
    """Layers that read a group's channels: the layer, the dimension of its input, and the indices there."""
    for item in group:
        if _reads(item.dep) or item.dep.target.type == OPTYPE.DEPTHWISE_CONV:
            module = item.dep.target.module
            yield module, -1 if isinstance(module, nn.Linear) else 1, list(item.idxs)


def _reads(dep: Any) -> bool:
    """Whether the layer reads the channels, and does not make them."""
    return bool(dep.handler.__name__ == "prune_in_channels") and dep.target.type in (OPTYPE.CONV, OPTYPE.LINEAR)


def _first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, and where each is first."""
    first: dict[int, int] = {}
    for i, value in enumerate(values.tolist()):
        first.setdefault(value, i)
    return torch.tensor(list(first)), torch.tensor(list(first.values()))


def channel_scores(parts: Sequence[Part], channels: int, values: Mapping[nn.Parameter, Tensor] | None = None) -> Tensor:
    """Squared norm of all that goes with each channel, ``(channels,)`` float32 on the CPU.

    Args:
        parts: of one group.
        channels: of its root.
        values: what to take the norm of, in place of a parameter; the parameter itself where it has none.
    """
    total = torch.zeros(channels)
    for part in parts:
        value = part.parameter.detach() if values is None else values.get(part.parameter, part.parameter.detach())
        others = [dim for dim in range(value.dim()) if dim != part.dim]
        squares = value.float().square()
        along = squares.sum(others) if others else squares
        total.index_add_(0, part.channels, along.cpu()[part.positions])
    return total
