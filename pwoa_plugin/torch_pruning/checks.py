"""Checks of what `PwoAGroupPruner` is given, before it touches a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch_pruning.ops import OPTYPE

from .._text import did_you_mean, short
from .._weights import cure_of_computed, is_weighted
from ..errors import InputError
from .coupling import Coupling


@dataclass(frozen=True)
class Fields:
    """The names of settings in messages: arguments of `PwoAGroupPruner`, or fields of a config."""

    ratio: str = "pruning_ratio"
    ignored: str = "ignored_layers"
    inputs: str = "example_inputs"


def check_ratio(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name}={value!r} is outside [0, 1); 0.75 removes three channels in four")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse values of Torch-Pruning's options that it would silently misread."""
    check_ratio("head_pruning_ratio", options.get("head_pruning_ratio", 0.0))
    for name in ("pruning_ratio_dict", "head_pruning_ratio_dict"):
        for ratio in options.get(name, {}).values():
            check_ratio(name, ratio)


def modules_named(model: nn.Module, given: Any, what: str, *, parameters: bool = False) -> list[Any]:
    """The modules and parameters that a user means: given as such, by name or pattern, or by class; one or several.

    With ``parameters`` a name may be that of a parameter.
    """
    modules = dict(model.named_modules())
    named = dict(model.named_parameters()) if parameters else {}
    found: list[Any] = []
    several = isinstance(given, Iterable) and not isinstance(given, (str, type, nn.Module, Tensor))
    for entry in given if several else [given]:
        hits: list[Any]
        if isinstance(entry, (nn.Module, nn.Parameter)):
            hits = [part for part in (*modules.values(), *model.parameters()) if part is entry]
        elif isinstance(entry, type):
            hits = [module for module in modules.values() if isinstance(module, entry)]
        else:
            hits = [module for name, module in modules.items() if name and fnmatchcase(name, str(entry))]
        if not hits and isinstance(entry, str) and entry in named:
            hits = [named[entry]]
        if not hits:
            raise InputError(f"{what}: {short(entry)} is not in the model{did_you_mean(entry, modules)}")
        found += hits
    return found


def keyed_by_module(model: nn.Module, given: Mapping[Any, Any], what: str) -> dict[Any, Any]:
    """A new dict of an option that is keyed by names, patterns and classes, keyed by the modules that they mean.

    A tuple stays one: its modules are ranked together.
    """
    found: dict[Any, Any] = {}
    for key, value in given.items():
        if isinstance(key, tuple):
            found[tuple(modules_named(model, key, what))] = value
        else:
            found |= dict.fromkeys(modules_named(model, [key], what), value)
    return found


def keyed_by_parameter(model: nn.Module, given: Any) -> dict[nn.Parameter, int]:
    """``unwrapped_parameters`` keyed by the parameters that it names, or has."""
    named = dict(model.named_parameters())
    found: dict[Any, Any] = {
        named.get(key, key) if isinstance(key, str) else key: dim for key, dim in dict(given).items()
    }
    for parameter, dim in found.items():
        known = any(parameter is each for each in named.values())
        if not known or not isinstance(dim, int) or not -parameter.dim() <= dim < parameter.dim():
            raise InputError(
                "unwrapped_parameters: give {parameter of the model, or its name: dimension that gets shorter}"
                + did_you_mean(parameter, named)
            )
    return found


def check_reached(
    model: nn.Module, graph: Any, ran: Collection[nn.Module], ignored: Sequence[Any], fields: Fields
) -> None:
    """Refuse layers that the trace does not reach: they may read channels that are to go.

    ``ran`` are the modules that a forward has run.
    """
    passed = {id(module) for module in ignored}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) or type(module) in graph.CUSTOMIZED_PRUNERS:
            passed |= {id(part) for part in module.modules()}
    for name, module in model.named_modules():
        if not is_weighted(module) or id(module) in passed:
            continue
        if module not in graph.module2node:
            if module in ran:
                raise InputError(
                    f"{name}: no gradient comes from the model's output to it, so Torch-Pruning cannot see what reads "
                    "its channels; leave out detach, no_grad, numpy or argmax after it, or list it and the layers "
                    f"before in {fields.ignored}"
                )
            raise InputError(
                f"{name}: the forward in eval mode does not run it on {fields.inputs}, so it would not fit its smaller "
                f"neighbours; remove it (torchvision: aux_logits=False), or list it in {fields.ignored}"
            )
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            cure = cure_of_computed(module)
            raise InputError(
                f"{name}: its weight is computed from others {cure}, or list the layer in {fields.ignored}"
            )


def check_layers(model: nn.Module, couplings: Sequence[Coupling], fields: Fields) -> None:
    """Refuse weights that ADMM cannot train, or that Torch-Pruning cannot make smaller."""
    users: dict[int, list[str]] = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            users[id(parameter)].append(name)
    for coupling in couplings:
        if reason := next(_reasons_to_keep(coupling, users), None):
            raise InputError(f"{reason} {fields.ignored}")


def _reasons_to_keep(coupling: Coupling, users: Mapping[int, Sequence[str]]) -> Iterator[str]:
    """Why a coupling cannot lose channels, up to the name of the setting that leaves layers whole."""
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
        name, module = item.dep.target.name.split(" (")[0], item.dep.target.module
        for target in ("weight", "bias") if isinstance(module, nn.Module) else ():
            if cure := cure_of_computed(module, target):
                yield (
                    f"{name}: its {target} is computed from others {cure}, or list "
                    f"{coupling.root}, whose channels it has, in"
                )
        if item.dep.target.type == OPTYPE.LSTM:
            yield (
                f"{name}: an LSTM that reads fewer channels is not supported; list {coupling.root}, which it reads, in"
            )
