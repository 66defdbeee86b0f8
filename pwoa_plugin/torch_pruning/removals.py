"""Channels that are removed: from a model, in its history, and as JSON."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import StrictBool, StrictInt, StrictStr, TypeAdapter, ValidationError
from torch import nn
from torchvision.models import VisionTransformer

from .._weights import REMOVALS
from ..errors import InputError
from ..removal.trace import RemovalError, said_of

#: Updates sizes that a model's own code holds, after channels were removed.
Adapt = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Removal:
    """Channels of one layer, and all that goes with them: an entry of Torch-Pruning's pruning history."""

    layer: str
    out: bool  # whether they are its filters, not its inputs
    channels: tuple[int, ...]  # indices in the layer at the time of the removal


_Entries = TypeAdapter(list[tuple[StrictStr, StrictBool, tuple[StrictInt, ...]]])


def removals_to_json(removals: Sequence[Removal]) -> list[list[Any]]:
    return [[removal.layer, removal.out, list(removal.channels)] for removal in removals]


def removals_from_json(entries: Any) -> list[Removal]:
    """The inverse of `removals_to_json`; an InputError if it is something else."""
    try:
        return [Removal(*entry) for entry in _Entries.validate_python(entries)]
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(f"not a list of [layer, whether filters, channels] ({reason})") from None


def removed_from(model: nn.Module) -> list[Removal]:
    """All that was removed from a model, by any `PwoAGroupPruner` and by `load_pruned`, in order."""
    return removals_from_json(getattr(model, REMOVALS, []))


def make_structure_undo(model: nn.Module) -> Callable[[], None]:
    """A function that gives a model its present sizes, parameters and buffers back; their values are not copied."""
    content = [dict(vars(module)) for module in model.modules()]
    for attributes in content:
        for name, value in attributes.items():
            if name in ("_parameters", "_buffers", "_modules") or type(value) in (dict, list, set):
                attributes[name] = copy.copy(value)  # a list or dict may hold sizes, which `adapt` changes in place
    modules = list(model.modules())

    def restore() -> None:
        for module, attributes in zip(modules, content, strict=True):
            vars(module).clear()
            vars(module).update(attributes)

    return restore


def group_of(model: nn.Module, graph: Any, removal: Removal) -> tuple[Any, int]:
    """Torch-Pruning's group of all that goes with these channels, and the number of channels that the layer has."""
    try:
        module = model.get_submodule(removal.layer)
        pruner = graph.get_pruner_of_module(module)
        function = pruner.prune_out_channels if removal.out else pruner.prune_in_channels
        channels = graph.get_out_channels(module) if removal.out else graph.get_in_channels(module)
    except (AttributeError, KeyError) as error:
        raise InputError(f"the model has no layer {removal.layer!r} with channels to remove") from error
    chosen = {*removal.channels}
    if not 0 < len(chosen) == len(removal.channels) < channels or not chosen <= {*range(channels)}:
        raise InputError(
            f"{removal.layer} has {channels} channels: cannot remove {list(removal.channels)[:8]} "
            "(each once, and not all of them)"
        )
    return graph.get_pruning_group(module, function, list(removal.channels)), channels


def replay(
    model: nn.Module,
    graph: Any,
    removals: Sequence[Removal],
    adapt: Adapt | None = None,
    before_each: Callable[[Any, int], None] = lambda group, channels: None,
) -> None:
    """Remove channels from a model in place, add them to its history, and update the sizes that its code holds.

    Args:
        adapt: updates sizes of the user's own.
        before_each: called with each group, and the number of channels that its layer has, before it is removed.
    """
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for removal in removals:
            group, channels = group_of(model, graph, removal)  # anew: earlier removals may have moved its channels
            before_each(group, channels)
            group.prune()
    except (AssertionError, RuntimeError, IndexError) as error:
        raise RemovalError(
            f"Torch-Pruning cannot remove channels of {removal.layer} ({said_of(error)})", "rewrite what reads them"
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(asked[name])
    for module in model.modules():
        if isinstance(module, VisionTransformer):  # its forward reshapes by it
            module.hidden_dim = module.conv_proj.out_channels
    if adapt is not None:
        adapt(model)
    setattr(model, REMOVALS, [*getattr(model, REMOVALS, []), *removals_to_json(removals)])
