"""What `PwoAGroupPruner` refuses before it touches a model."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE

from .._weights import is_weighted
from ..errors import InputError
from .coupling import Coupling

__all__ = [
    "CONFIGS_WORDS",
    "check_count",
    "check_finite",
    "check_kind",
    "check_layers",
    "check_no_inference",
    "check_ratio",
    "check_reached",
    "checked_options",
    "in_words",
    "keyed_by_module",
    "makes_output",
    "modules_named",
    "root_types",
]

#: Torch-Pruning's deprecated names, and those that mean something here already.
_NOT_PASSED = {
    "self": "",
    "model": "",
    "example_inputs": "",
    "importance": "scores are PwoAImportance's here; another importance goes with tp.pruner.BasePruner",
    "channel_groups": "give out_channel_groups",
    "ch_sparsity": "give pruning_ratio",
    "ch_sparsity_dict": "give pruning_ratio_dict",
}


_CLASSES = "classes of layers, as [nn.Conv2d, nn.Linear]"
_COUNTS = ("num_heads", "in_channel_groups", "out_channel_groups")

#: What an option of Torch-Pruning's has to be, and how that is said.
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("global_pruning", "isomorphic", "prune_num_heads", "prune_head_dims"), (bool, "True or False")),
    **dict.fromkeys(("forward_fn", "output_transform", "iterative_pruning_ratio_scheduler"), (Callable, "a function")),
    **dict.fromkeys(
        (*_COUNTS, "pruning_ratio_dict", "head_pruning_ratio_dict", "customized_pruners"), (Mapping, "a dict by module")
    ),
    "unwrapped_parameters": ((Mapping, Sequence), "{parameter: dimension}"),
    "root_module_types": ((type, Sequence), _CLASSES),
}

#: What a config calls the arguments that it stands for.
CONFIGS_WORDS = {
    "shorten ignored_layers": "shorten exclude, or widen include",
    "ignored_layers": "exclude",
    "pruning_ratio": "sparsity",
}


@contextlib.contextmanager
def in_words(words: Mapping[str, str]) -> Iterator[None]:
    """Let refusals say these words' values in their place: a config's fields, and not the arguments that they are."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        if words and type(error) is InputError:
            said = re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[0]], said)
        if said == str(error):
            raise
        raise InputError(said) from error


def check_kind(name: str, value: Any, kind: Any, what: str) -> None:
    """Whether an argument is of this kind, or left out (None).

    Raises:
        ValueError: it is not.
    """
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{name} is a {type(value).__name__}; give {what}")


def check_ratio(name: str, value: Any, *, low: bool = False, high: bool = False) -> None:
    """Whether a share is a number in (0, 1), ``low`` with 0 and ``high`` with 1.

    Raises:
        ValueError: it is not.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (value >= 0 if low else value > 0) or not (value <= 1 if high else value < 1):
        bounds = f"{'[' if low else '('}0, 1{']' if high else ')'}"
        raise InputError(f"{name}={value!r} is outside {bounds}; 0.75 removes three channels in four")


def check_no_inference(what: str) -> None:
    """Refuse `torch.inference_mode`, whose tensors cannot be trained.

    Raises:
        ValueError: it is on.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(f"{what}: torch.inference_mode is on, and its tensors cannot be trained; call this outside")


def check_finite(model: nn.Module) -> None:
    """Whether all weights are numbers.

    Raises:
        ValueError: one is not.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{name}: a weight is not finite; lower the learning rate")


def checked_options(options: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Torch-Pruning's own options that are given; None leaves one out.

    Raises:
        ValueError: one is unknown, or has a value that Torch-Pruning would silently misread.
    """
    known = [name for name in inspect.signature(tp.pruner.BasePruner.__init__).parameters if name not in _NOT_PASSED]
    for name in options:
        if name in _NOT_PASSED:
            raise InputError(f"{name}: {_NOT_PASSED[name] or 'is an argument already'}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            cure = f"did you mean {close[0]}?" if close else f"Torch-Pruning has {', '.join(known)}"
            raise InputError(f"{name}: unknown option; {cure}")
    options = {name: value for name, value in options.items() if value is not None}
    for name, (kind, what) in _KINDS.items():
        check_kind(name, options.get(name), kind, what)
    if "max_pruning_ratio" in options:
        check_ratio("max_pruning_ratio", options["max_pruning_ratio"], high=True)
    if "head_pruning_ratio" in options:
        check_ratio("head_pruning_ratio", options["head_pruning_ratio"], low=True)
    for name in ("pruning_ratio_dict", "head_pruning_ratio_dict"):
        for ratio in options.get(name, {}).values():
            check_ratio(name, ratio, low=True)
    for name in _COUNTS:
        for number in options.get(name, {}).values():
            check_count(name, number)
    for function in options.get("customized_pruners", {}).values():
        check_kind("an entry of customized_pruners", function, tp.BasePruningFunc, "a tp.BasePruningFunc")
    unwrapped = options.get("unwrapped_parameters", ())
    own = {*model.parameters()}
    for entry in unwrapped.items() if isinstance(unwrapped, Mapping) else unwrapped:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], int) and entry[0] in own):
            raise InputError("unwrapped_parameters: give {parameter of the model: dimension that gets shorter}")
    steps = options.get("iterative_steps", 1)
    check_count("iterative_steps", steps)
    schedule = options.get("iterative_pruning_ratio_scheduler")
    if schedule is not None and len(schedule(0.5, steps)) != steps + 1:
        raise InputError(
            f"iterative_pruning_ratio_scheduler: let it return {steps + 1} ratios, from 0 to the one that it is given"
        )
    return options


def check_count(name: str, value: Any) -> None:
    """Whether a number is whole, and 1 or more.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r}: give a whole number, 1 or more")


def root_types(given: Any) -> list[type]:
    """Torch-Pruning's ``root_module_types``: a class, or several.

    Raises:
        ValueError: one is no class.
    """
    kinds = [given] if isinstance(given, type) else list(given)
    for kind in kinds:
        check_kind("root_module_types: one", kind, type, _CLASSES)
    return kinds


def modules_named(model: nn.Module, given: Any, what: str) -> list[Any]:
    """Modules and parameters as a user names them: themselves, by name or pattern, or by class; one, or several.

    Raises:
        ValueError: one is not in the model.
    """
    modules = dict(model.named_modules())
    found: list[Any] = []
    several = isinstance(given, Iterable) and not isinstance(given, (str, type, nn.Module, Tensor))
    for entry in given if several else [given]:
        hits: list[Any]
        if isinstance(entry, nn.Module):
            hits = [entry] if any(entry is module for module in modules.values()) else []
            name = type(entry).__name__
        elif isinstance(entry, nn.Parameter):
            hits = [entry] if any(entry is parameter for parameter in model.parameters()) else []
            name = f"parameter {tuple(entry.shape)}"
        elif isinstance(entry, type):
            hits = [module for module in modules.values() if isinstance(module, entry)]
            name = entry.__name__
        else:
            hits = [module for key, module in modules.items() if key and fnmatchcase(key, str(entry))]
            name = repr(entry)
        if not hits:
            close = difflib.get_close_matches(str(entry), modules, n=1) if isinstance(entry, str) else []
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"{what}: {name} is not in the model{hint}")
        found += hits
    return found


def keyed_by_module(model: nn.Module, given: Mapping[Any, Any], what: str) -> dict[Any, Any]:
    """An option of Torch-Pruning's with names, patterns and classes replaced by the modules they mean.

    A tuple stays one: its modules are ranked together.

    Raises:
        ValueError: a key is not in the model.
    """
    found: dict[Any, Any] = {}
    for key, value in given.items():
        if isinstance(key, tuple):
            found[tuple(modules_named(model, key, what))] = value
        else:
            found |= dict.fromkeys(modules_named(model, [key], what), value)
    return found


def makes_output(group: Any) -> bool:
    """Whether a group's channels are the model's output."""
    return any(item.dep.target.type == OPTYPE.OUTPUT for item in group)


def check_reached(model: nn.Module, graph: Any, ignored: Sequence[Any]) -> None:
    """Refuse layers that the trace does not reach: they may read channels that are to go.

    Raises:
        ValueError: there is one that is not ignored.
    """
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
                f"{name}: the forward on example_inputs in eval mode does not come to it, so it would not fit its "
                "smaller neighbours; take it out (torchvision: aux_logits=False), or list it in ignored_layers"
            )
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise InputError(
                f"{name}: its weight is computed from others (a parametrization or weight_norm); remove that first, "
                "or list the layer in ignored_layers"
            )


def check_layers(model: nn.Module, couplings: Sequence[Coupling]) -> None:
    """Refuse weights that cannot be trained or taken out.

    Raises:
        ValueError: one has no gradient, belongs to two layers, or to a layer that Torch-Pruning cannot shorten.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    users: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for target, parameter in module._parameters.items():
            if parameter is not None:
                users[id(parameter)].append(f"{name}.{target}" if name else target)
    for coupling in couplings:
        for part in coupling.parts:
            tied = users[id(part.parameter)]
            if len(tied) > 1:
                raise InputError(
                    f"{tied[0]} and {tied[1]} are one tensor, which cannot lose channels in one place only; untie "
                    f"them, or list {coupling.root} in ignored_layers"
                )
            if not part.parameter.requires_grad:
                raise InputError(
                    f"{names[part.parameter]} has requires_grad=False, and ADMM cannot move it; set it to True, or "
                    f"list {coupling.root}, whose channels it has, in ignored_layers"
                )
        for item in coupling.group:
            module, kind, name = item.dep.target.module, item.dep.target.type, item.dep.target.name.split(" (")[0]
            if kind == OPTYPE.LSTM:
                raise InputError(
                    f"{name}: an LSTM that reads fewer channels is not supported; list {coupling.root}, which it "
                    "reads, in ignored_layers"
                )
            if kind == OPTYPE.DEPTHWISE_CONV and module.in_channels != module.out_channels:
                raise InputError(
                    f"{name}: Torch-Pruning takes {module.groups} groups of one filter and several "
                    "inputs for a depthwise convolution; list it in ignored_layers"
                )
