"""NNI's config_list: checked before a model is touched, and turned into what each parameter keeps.

An entry is NNI's own. Two things are ours: ``granularity`` takes the names of our sparsity sets too, and the key
``allocation`` names the rule that spreads the entry's ``sparse_ratio`` over its layers::

    [
        {"op_types": ["Conv2d"], "sparse_ratio": 0.9, "allocation": "lamp"},     # a total of 90 % over the convolutions
        {"op_types": ["Linear"], "sparse_ratio": 0.8, "allocation": "uniform"},  # 80 % of each linear layer
    ]
"""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from nni.compression.base.config import default_config_schema, select_modules_by_config, trans_legacy_config_list
from nni.compression.base.setting import INPUT_PREFIX, OUTPUT_PREFIX, PruningSetting
from nni.compression.base.wrapper import ModuleWrapper
from schema import SchemaError
from torch import Tensor, nn

from .._text import one_line
from .._weights import is_weighted
from ..errors import InputError
from ..method.allocation import ALLOCATIONS, LayerAllocation
from ..method.gradual import Budget
from ..method.layers import refuse_transposed
from ..method.sparsity import SparsitySet, make_sparsity_set
from .granularity import sparsity_set_of

__all__ = ["Target", "read_config_list", "register_settings", "select"]

_logger = logging.getLogger(__name__)

_NNI_GRANULARITIES = ("default", "in_channel", "out_channel", "per_channel")
_UNSUPPORTED = {
    "sparse_threshold": "give sparse_ratio",
    "max_sparse_ratio": "give the layer an entry of its own",
    "min_sparse_ratio": "give the layer an entry of its own",
    "global_group_id": "say 'allocation': 'global' in the entry",
    "dependency_group_id": "leave it out; speedup() removes what all layers of a residual sum agree on",
    "internal_metric_block": "leave it out",
}
_LEGACY_UNSUPPORTED = {
    "total_sparsity": "give sparse_ratio and 'allocation': 'global'",
    "max_sparsity_per_layer": "give sparse_ratio, and layers of their own ratio an entry of their own",
}

Key = tuple[str, str]  # module, parameter


@dataclass(frozen=True)
class Target:
    """One parameter to prune.

    Attributes:
        module: its module's name.
        name: its own, ``weight``.
        allocation: how many of them it keeps.
        budget: what it shares with the other parameters of its entry; ``sparsity`` is the entry's ratio.
    """

    module: str
    name: str
    allocation: LayerAllocation
    budget: Budget

    @property
    def sparsity_set(self) -> SparsitySet:
        """How it is split into groups."""
        return self.budget.sparsity_set

    @property
    def ratio(self) -> float:
        """What its entry asks for."""
        return self.budget.sparsity

    def mask(self, value: Tensor, share: float = 1.0) -> Tensor:
        """Boolean mask of the projection of ``value``.

        Args:
            value: shaped as the parameter.
            share: of the groups that go in the end, how many go now; a scheduler ramps it from 0 to 1. A set of fixed
                density (n:m) has no ramp: it is whole from the first group on.
        """
        final = self.allocation
        if share <= 0:
            return torch.ones_like(value, dtype=torch.bool)
        if share >= 1 or final.dense_because or self.sparsity_set.fixed_density is not None:
            return final.mask(self.sparsity_set, value)
        gone = round((final.groups - final.keep) * share)
        return self.sparsity_set.mask(value, final.groups - gone)


def register_settings(model: nn.Module) -> None:
    """Make NNI know all convolutions and linear layers of a model: it knows some by name, no subclasses."""
    for module in model.modules():
        if is_weighted(module) and type(module).__name__ not in PruningSetting.registry:
            PruningSetting.register(type(module).__name__, PruningSetting.default_setting)


def read_config_list(
    model: nn.Module,
    config_list: Any,
    allocation: str = "uniform",
    wrappers: Mapping[str, ModuleWrapper] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Target]]:
    """The config_list as NNI takes it, and the parameters it prunes.

    As in NNI, the first entry that has a parameter decides. Entries contradict each other, which is an error, where
    both name the layer in ``op_names`` and ask for different things, or where an entry is left without any parameter
    by others that ask for different things. Each entry has a total of its own.

    Args:
        model: not wrapped; it is not changed.
        config_list: NNI's, its legacy form too.
        allocation: the rule of entries that name none, one of `ALLOCATIONS`.
        wrappers: those of compressors before, which keep what they prune.

    Returns:
        Entries without our key, and ``{layer: Target}`` in the model's order; a parameter that is no weight is called
        ``layer.parameter``.

    Raises:
        ValueError: one line that says which entry cannot be used, and why.
    """
    if not isinstance(config_list, list) or not all(isinstance(entry, dict) for entry in config_list):
        what = f"a {type(config_list).__name__}" if not isinstance(config_list, list) else "not one of dicts"
        raise InputError(f"config_list is {what}; give a PwoAConfig or NNI's list of dicts")
    if not config_list:
        raise InputError("config_list is empty; give an entry, as {'op_types': ['Linear'], 'sparse_ratio': 0.9}")
    _check_rule("allocation", allocation)
    register_settings(model)
    entries = [
        _Entry(where, config, rule or allocation, select(model, where, config))
        for where, config, rule in _translated(config_list)
    ]
    _exclude_aliases(model, entries)
    _share_out(model, entries, wrappers or {})
    targets: dict[str, Target] = {}
    for entry in entries:
        targets |= _allocate(model, entry)
    ordered = {
        key: targets[key]
        for name, module in model.named_modules()
        for parameter, _ in module.named_parameters(recurse=False, remove_duplicate=False)
        if (key := _key(name, parameter)) in targets
    }
    return [entry.config for entry in entries], ordered


@dataclass
class _Entry:
    where: str
    config: dict[str, Any]
    rule: str
    modules: dict[str, nn.Module]
    settings: dict[Key, dict[str, Any]] | None = None  # of the parameters that it decides

    @property
    def own(self) -> dict[Key, dict[str, Any]]:
        """Settings of the parameters that it prunes by a ratio, aligned ones apart."""
        return {key: s for key, s in (self.settings or {}).items() if s.get("sparse_ratio") is not None}


def _key(module: str, parameter: str) -> str:
    return module if parameter == "weight" else f"{module}.{parameter}"


def _check_rule(where: str, rule: Any) -> None:
    if not isinstance(rule, str) or rule not in ALLOCATIONS:
        raise InputError(f"{where}={rule!r} is unknown; use one of {', '.join(ALLOCATIONS)}")


# -- one entry -----------------------------------------------------------------------------------


def _translated(config_list: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """For each entry, what errors call it, what NNI takes, and its rule; NNI's legacy form is translated."""
    for i, entry in enumerate(config_list):
        for key, cure in _LEGACY_UNSUPPORTED.items():
            if key in entry:
                raise InputError(f"config_list[{i}]: {key} is not supported; {cure}")
    for i, (given, config) in enumerate(
        zip(config_list, trans_legacy_config_list(copy.deepcopy(config_list)), strict=True)
    ):
        where = f"config_list[{i}]"
        if given.get("exclude") and "exclude" not in config:  # translated: it takes layers from all others
            continue
        rule = config.pop("allocation", "uniform" if "sparsity_per_layer" in given else None)
        if rule is not None:
            _check_rule(f"{where}: allocation", rule)
        _check_settings(where, config)
        yield where, config, rule


def _check_settings(where: str, config: dict[str, Any]) -> None:
    checked = copy.deepcopy(config)
    per_target = config.get("target_settings", {})
    if not isinstance(per_target, dict) or not all(isinstance(setting, dict) for setting in per_target.values()):
        raise InputError(f"{where}: target_settings is no dict of dicts; give {{'weight': {{'sparse_ratio': 0.9}}}}")
    for setting, as_nni in ((config, checked), *((per_target[k], checked["target_settings"][k]) for k in per_target)):
        for key, cure in _UNSUPPORTED.items():
            if setting.get(key) is not None:
                raise InputError(f"{where}: {key} is not supported; {cure}")
        if setting.get("apply_method", "mul") != "mul":
            raise InputError(f"{where}: apply_method={setting['apply_method']!r} is not supported; leave it out")
        granularity = setting.get("granularity")
        if isinstance(granularity, str) and granularity not in _NNI_GRANULARITIES:
            try:
                density = make_sparsity_set(granularity).fixed_density
            except ValueError as error:
                raise InputError(f"{where}: {error}, or NNI's out_channel, in_channel or a list") from None
            as_nni["granularity"] = "default"
            if density is not None and "sparse_ratio" not in setting:
                setting["sparse_ratio"] = 1 - density
    try:
        default_config_schema("pruning").validate(checked)
    except SchemaError as error:
        raise InputError(f"{where}: {one_line(error)}") from None


def select(model: nn.Module, where: str, config: dict[str, Any]) -> dict[str, nn.Module]:
    """Modules that an entry selects, as NNI does, by name in the model's order.

    Args:
        model: not wrapped.
        where: what errors call the entry.
        config: the entry. Of what else it names and the model has not, the log tells; NNI passes over it in silence.

    Raises:
        ValueError: a name in ``op_names`` is not the model's, a pattern is no regular expression, or nothing is left.
    """
    names = dict(model.named_modules(remove_duplicate=False))
    kinds = {type(module).__name__ for module in names.values()}
    for name in config.get("op_names", ()):
        if name not in names:
            close = ", ".join(difflib.get_close_matches(name, names, n=3)) or ", ".join([n for n in names if n][:3])
            raise InputError(f"{where}: op_names: the model has no module {name!r}; it has {close}")
    idle = {("exclude_op_names", name) for name in config.get("exclude_op_names", ()) if name not in names}
    idle |= {
        (key, kind) for key in ("op_types", "exclude_op_types") for kind in config.get(key, ()) if kind not in kinds
    }
    for key in ("op_names_re", "exclude_op_names_re"):
        for pattern in config.get(key, ()):
            try:
                if not any(re.match(pattern, name) for name in names):
                    idle.add((key, pattern))
            except re.error as error:
                raise InputError(f"{where}: {pattern!r} is no regular expression ({error})") from None
    selected, _, _ = select_modules_by_config(model, config)
    if not selected:
        asked = ", ".join(f"{key}={value}" for key, value in config.items() if key.startswith(("op_", "exclude_")))
        raise InputError(f"{where} selects no layer ({asked}); check it against model.named_modules()")
    for key, given in sorted(idle):
        _logger.warning("%s: %s: the model has no module %r", where, key, given)
    return {name: module for name, module in names.items() if name in selected}


def _settings_of(entry: _Entry) -> dict[Key, dict[str, Any]]:
    public = {key: value for key, value in entry.config.items() if not key.startswith(("op_", "exclude_"))}
    found: dict[Key, dict[str, Any]] = {}
    for name, module in entry.modules.items():
        kind = type(module).__name__
        if kind not in PruningSetting.registry:
            raise InputError(
                f"{entry.where} selects {name!r}, a {kind}, and NNI knows nothing to prune in one; exclude it, add "
                "op_types, or call NNI's PruningSetting.register()"
            )
        try:
            settings = PruningSetting.get(module, public)
        except KeyError as error:
            raise InputError(
                f"{entry.where}: target_names: {name}, a {kind}, has no target {error}; "
                f"it has {', '.join(PruningSetting.registry[kind])}"
            ) from None
        for target, setting in settings.items():
            if target.startswith((INPUT_PREFIX, OUTPUT_PREFIX)):
                if setting.get("sparse_ratio") is not None:
                    raise InputError(f"{entry.where}: PwoA prunes parameters, and {target} is none; leave it out")
            elif not hasattr(module, target):
                raise InputError(f"{entry.where}: {name}, a {kind}, has no parameter {target!r}; leave it out")
            found[name, target] = setting
    return found


# -- entries together ----------------------------------------------------------------------------


def _exclude_aliases(model: nn.Module, entries: list[_Entry]) -> None:
    """A module under two names is pruned under its first; NNI would wrap it twice."""
    first = {module: name for name, module in model.named_modules()}
    selected = {name for entry in entries for name in entry.modules}
    for entry in entries:
        for name, module in list(entry.modules.items()):
            if first[module] == name:
                continue
            if first[module] not in selected:
                raise InputError(f"{entry.where}: {name!r} is the module {first[module]!r} again; name that one")
            entry.config.setdefault("exclude_op_names", []).append(name)
            del entry.modules[name]


def _share_out(model: nn.Module, entries: list[_Entry], wrappers: Mapping[str, ModuleWrapper]) -> None:
    """Give each parameter to the first entry that has it, and refuse entries without one."""
    owner: dict[Key, _Entry] = {}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for entry in entries:
        asked = _settings_of(entry)
        entry.settings = {}
        taken: dict[Key, _Entry | None] = {}
        for key, setting in asked.items():
            name, target = key
            if name in wrappers and target in wrappers[name].pruning_target_spaces:
                taken[key] = None
            elif key in owner:
                taken[key] = owner[key]
            else:
                owner[key] = entry
                entry.settings[key] = setting
        active = {key for key, setting in asked.items() if setting.get("sparse_ratio") is not None}
        if not active and not any((setting.get("align") or {}).get("module_name") for setting in asked.values()):
            raise InputError(f"{entry.where} gives no weight a sparse_ratio; PwoA needs one")
        _check_overlap(entry, asked, {key: other for key, other in taken.items() if key in active})
        for name, target in entry.own:
            _check_parameter(model, entry.where, name, target, names)


def _check_overlap(entry: _Entry, asked: dict[Key, dict[str, Any]], taken: dict[Key, _Entry | None]) -> None:
    others: set[str] = set()
    for (name, target), other in taken.items():
        if other is None:
            _logger.warning("%s: %s of %s is pruned by another compressor already", entry.where, target, name)
            continue
        before = (other.settings or {})[name, target]
        if (before, other.rule) == (asked[name, target], entry.rule):
            continue
        others.add(other.where)
        if name in other.config.get("op_names", ()) and name in entry.config.get("op_names", ()):
            raise InputError(
                f"{other.where} and {entry.where} contradict each other: both name {name!r} in op_names and ask for "
                "different things; take it out of one"
            )
    if entry.own or not taken:
        return
    if others:
        raise InputError(
            f"{entry.where} contradicts {', '.join(sorted(others))}: all its layers are there already, and the first "
            "entry wins; put it before, or take it out"
        )
    if None in taken.values():
        raise InputError(
            f"{entry.where}: all its layers are pruned by another compressor already; call that one's unwrap_model() "
            "and PwoAPruner(model, ...), or select others"
        )
    _logger.warning("%s repeats an entry before it", entry.where)


def _check_parameter(model: nn.Module, where: str, name: str, target: str, names: dict[int, list[str]]) -> None:
    module = model.get_submodule(name)
    parameter = module._parameters.get(target)
    if not isinstance(parameter, nn.Parameter):
        raise InputError(
            f"{where}: {target} of {name} is computed from others (a parametrization, weight_norm); remove that first, "
            "or exclude the layer"
        )
    if not parameter.requires_grad:
        raise InputError(f"{where}: {target} of {name} has requires_grad=False; set it to True, or exclude the layer")
    shared = names[id(parameter)]
    if len({id(model.get_submodule(n.rpartition(".")[0])) for n in shared}) > 1:
        raise InputError(
            f"{where}: {' and '.join(shared)} are one parameter, which NNI's wrappers would make two; exclude the layer"
        )
    spec = inspect.getfullargspec(module.forward)
    if spec.kwonlydefaults:
        raise InputError(
            f"{where}: forward of {name} has keyword-only arguments ({', '.join(spec.kwonlydefaults)}), whose defaults "
            "NNI's wrappers lose; exclude the layer"
        )


# -- allocation ----------------------------------------------------------------------------------


def _allocate(model: nn.Module, entry: _Entry) -> dict[str, Target]:
    """What an entry's parameters keep; its total is spread over those of one ratio and one sparsity set."""
    totals: dict[tuple[float, str], dict[Key, SparsitySet]] = {}
    for (name, target), setting in entry.own.items():
        module = model.get_submodule(name)
        key, ratio = _key(name, target), setting["sparse_ratio"]
        granularity = setting.get("granularity") or "default"
        sparsity_set = sparsity_set_of(
            [1] if granularity == "default" else granularity,
            module.get_parameter(target).shape,
            f"{entry.where}: {key}",
        )
        if target == "weight":
            refuse_transposed({name: module}, sparsity_set)
        density = sparsity_set.fixed_density
        if density is not None and abs(1 - density - ratio) > 1e-9:
            raise InputError(
                f"{entry.where}: sparse_ratio={ratio} contradicts granularity={granularity!r}, which prunes "
                f"{1 - density:g}; leave sparse_ratio out"
            )
        alike = (ratio, repr((type(sparsity_set).__name__, vars(sparsity_set))))
        totals.setdefault(alike, {})[name, target] = sparsity_set
    found: dict[str, Target] = {}
    for (ratio, _), sets in totals.items():
        weights = {_key(*key): model.get_submodule(key[0]).get_parameter(key[1]).detach() for key in sets}
        sparsity_set = next(iter(sets.values()))
        try:
            budget = Budget(ratio, sparsity_set, ALLOCATIONS[entry.rule])
            allocated = budget.allocate(weights)
        except ValueError as error:
            raise InputError(f"{entry.where}: {error}") from None
        for name, target in sets:
            share = allocated[_key(name, target)]
            if share.dense_because:
                _logger.warning("%s: layer %s stays dense: %s", entry.where, name, share.dense_because)
            found[_key(name, target)] = Target(name, target, share, budget)
    return found
