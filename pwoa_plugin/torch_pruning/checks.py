"""Checks of what `PwoAGroupPruner` is given, before it touches a model."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE

from .._text import did_you_mean
from .._weights import is_weighted
from ..errors import InputError
from .coupling import Coupling

__all__ = [
    "Fields",
    "check_finite",
    "check_layers",
    "check_no_inference",
    "check_options",
    "check_ratio",
    "check_reached",
    "keyed_by_module",
    "modules_named",
]

#: Of Torch-Pruning's arguments, those that are ours, and those that it deprecates.
_NOT_PASSED = ("self", "importance", "channel_groups", "ch_sparsity", "ch_sparsity_dict")


@dataclass(frozen=True)
class Fields:
    """The names of settings in messages: arguments of `PwoAGroupPruner`, or fields of a config."""

    ratio: str = "pruning_ratio"
    ignored: str = "ignored_layers"
    inputs: str = "example_inputs"


def check_ratio(name: str, value: float, *, low: bool = False, high: bool = False) -> None:
    """Check that a share is in (0, 1); ``low`` allows 0 and ``high`` allows 1."""
    if not (value >= 0 if low else value > 0) or not (value <= 1 if high else value < 1):
        bounds = f"{'[' if low else '('}0, 1{']' if high else ')'}"
        raise InputError(f"{name}={value!r} is outside {bounds}; 0.75 removes three channels in four")


def check_no_inference(what: str) -> None:
    """Refuse `torch.inference_mode`, whose tensors cannot be trained."""
    if torch.is_inference_mode_enabled():
        raise InputError(f"{what}: torch.inference_mode is on, and its tensors cannot be trained; call this outside")


def check_finite(model: nn.Module) -> None:
    """Check that all weights are finite: NaN would decide which channels go."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{name}: a weight is not finite; lower the learning rate")


def check_options(options: Mapping[str, Any], model: nn.Module) -> None:
    """Check Torch-Pruning's own options.

    Raises:
        InputError: one is unknown, or has a value that Torch-Pruning would silently misread.
    """
    known = [name for name in inspect.signature(tp.pruner.BasePruner.__init__).parameters if name not in _NOT_PASSED]
    for name in options:
        if name not in known:
            raise InputError(f"{name}: PwoAGroupPruner has no such option{did_you_mean(name, known)}")
    check_ratio("max_pruning_ratio", options.get("max_pruning_ratio", 1.0), high=True)
    check_ratio("head_pruning_ratio", options.get("head_pruning_ratio", 0.0), low=True)
    for name in ("pruning_ratio_dict", "head_pruning_ratio_dict"):
        for ratio in options.get(name, {}).values():
            check_ratio(name, ratio, low=True)
    steps = options.get("iterative_steps", 1)
    if steps < 1:
        raise InputError(f"iterative_steps={steps!r}: give 1 or more")
    schedule = options.get("iterative_pruning_ratio_scheduler")
    if schedule is not None and len(schedule(0.5, steps)) != steps + 1:
        raise InputError(
            f"iterative_pruning_ratio_scheduler: let it return {steps + 1} ratios, from 0 to the one that it receives"
        )
    unwrapped = options.get("unwrapped_parameters", ())
    own = {*map(id, model.parameters())}
    for parameter, _ in unwrapped.items() if isinstance(unwrapped, Mapping) else unwrapped:
        if id(parameter) not in own:
            raise InputError("unwrapped_parameters: give {parameter of the model: dimension that gets shorter}")


def modules_named(model: nn.Module, given: Any, what: str) -> list[Any]:
    """The modules and parameters that a user means: given as such, by name or pattern, or by class; one or several."""
    modules = dict(model.named_modules())
    found: list[Any] = []
    several = isinstance(given, Iterable) and not isinstance(given, (str, type, nn.Module, Tensor))
    for entry in given if several else [given]:
        hits: list[Any]
        name, hint = type(entry).__name__, ""
        if isinstance(entry, nn.Module):
            hits = [entry] if any(entry is module for module in modules.values()) else []
        elif isinstance(entry, nn.Parameter):
            hits = [entry] if any(entry is parameter for parameter in model.parameters()) else []
        elif isinstance(entry, type):
            hits, name = [module for module in modules.values() if isinstance(module, entry)], entry.__name__
        else:
            hits = [module for key, module in modules.items() if key and fnmatchcase(key, str(entry))]
            name, hint = repr(entry), did_you_mean(str(entry), modules)
        if not hits:
            raise InputError(f"{what}: {name} is not in the model{hint}")
        found += hits
    return found


def keyed_by_module(model: nn.Module, given: Mapping[Any, Any], what: str) -> dict[Any, Any]:
    """An option of Torch-Pruning's whose keys are names, patterns and classes, with the modules that they mean.

    A tuple stays one: its modules are ranked together.
    """
    found: dict[Any, Any] = {}
    for key, value in given.items():
        if isinstance(key, tuple):
            found[tuple(modules_named(model, key, what))] = value
        else:
            found |= dict.fromkeys(modules_named(model, [key], what), value)
    return found


def check_reached(model: nn.Module, graph: Any, ignored: Sequence[Any], fields: Fields) -> None:
    """Refuse layers that the trace does not reach: they may read channels that are to go."""
    inside = {
        id(part)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) or type(module) in graph.CUSTOMIZED_PRUNERS
        for part in module.modules()
    }
    passed = {id(module) for module in ignored}
    for name, module in model.named_modules():
        if not is_weighted(module) or id(module) in inside | passed:
            continue
        if module not in graph.module2node:
            raise InputError(
                f"{name}: the forward in eval mode does not run it on {fields.inputs}, so it would not fit its smaller "
                f"neighbours; remove it (torchvision: aux_logits=False), or list it in {fields.ignored}"
            )
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise InputError(
                f"{name}: its weight is computed from others (a parametrization or weight_norm); remove that first, "
                f"or list the layer in {fields.ignored}"
            )


def check_layers(model: nn.Module, couplings: Sequence[Coupling], fields: Fields) -> None:
    """Refuse weights that cannot be trained or made smaller.

    Raises:
        InputError: one has no gradient, belongs to two layers, or to a layer that Torch-Pruning cannot make smaller.
    """
    users: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for target, parameter in module._parameters.items():
            users[id(parameter)].append(f"{name}.{target}" if name else target)
    for coupling in couplings:
        if reason := next(_reasons_to_keep(coupling, users), None):
            raise InputError(f"{reason} {fields.ignored}")


def _reasons_to_keep(coupling: Coupling, users: Mapping[int, Sequence[str]]) -> Iterator[str]:
    """Why a coupling cannot lose channels, up to the name of the setting that leaves layers whole.

    Args:
        coupling: the group.
        users: the names of each parameter, by its `id`.
    """
    for part in coupling.parts:
        names = users[id(part.parameter)]
        if len(names) > 1:
            yield (
                f"{names[0]} and {names[1]} are one tensor, which cannot lose channels in only one of them; untie "
                f"them, or list {coupling.root} in"
            )
        if not part.parameter.requires_grad:
            yield (
                f"{names[0]} has requires_grad=False, and ADMM cannot move it; set it to True, or list "
                f"{coupling.root}, whose channels it has, in"
            )
    for item in coupling.group:
        module, kind, name = item.dep.target.module, item.dep.target.type, item.dep.target.name.split(" (")[0]
        if kind == OPTYPE.LSTM:
            yield (
                f"{name}: an LSTM that reads fewer channels is not supported; list {coupling.root}, which it reads, in"
            )
        if kind == OPTYPE.DEPTHWISE_CONV and module.in_channels != module.out_channels:
            yield (
                f"{name}: Torch-Pruning takes {module.groups} groups of one filter and several inputs for a depthwise "
                "convolution; list it in"
            )
