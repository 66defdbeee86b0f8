"""The entries of NNI's config_list: checked one by one, and the modules and parameters that each selects."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nni.compression.base.config import default_config_schema, select_modules_by_config, trans_legacy_config_list
from nni.compression.base.setting import INPUT_PREFIX, OUTPUT_PREFIX, PruningSetting
from schema import SchemaError
from torch import nn

from .._text import did_you_mean, one_line
from .._weights import is_weighted
from ..errors import InputError
from ..method.allocation import ALLOCATIONS
from ..method.sparsity import make_sparsity_set

__all__ = ["Entry", "Key", "check_schema", "read_entries", "register_settings", "select_modules"]

_logger = logging.getLogger(__name__)

_NNI_GRANULARITIES = ("default", "in_channel", "out_channel", "per_channel")
_UNSUPPORTED = {
    "sparse_threshold": "give sparse_ratio",
    "max_sparse_ratio": "give the layer its own entry",
    "min_sparse_ratio": "give the layer its own entry",
    "global_group_id": "write 'allocation': 'global' in the entry",
    "dependency_group_id": "leave it out; speedup() removes what all layers of a residual sum agree on",
    "internal_metric_block": "leave it out",
    "total_sparsity": "give sparse_ratio and 'allocation': 'global'",
    "max_sparsity_per_layer": "give sparse_ratio, and an own entry for layers with another ratio",
}

Key = tuple[str, str]  # module name, parameter name


@dataclass
class Entry:
    """One entry of a config_list.

    Attributes:
        where: its name in errors, ``config_list[0]``.
        config: as NNI takes it.
        rule: the allocation, a key of `ALLOCATIONS`.
        modules: the modules that it selects, by name.
        asked: NNI's setting for each parameter that it selects.
        decided: those of ``asked`` in which no earlier entry and no other compressor comes first.
    """

    where: str
    config: dict[str, Any]
    rule: str
    modules: dict[str, nn.Module]
    asked: dict[Key, dict[str, Any]]
    decided: dict[Key, dict[str, Any]] = field(default_factory=dict)

    @property
    def pruned(self) -> dict[Key, dict[str, Any]]:
        """Those of ``decided`` that are pruned to a ratio; the others are aligned with another parameter's mask."""
        return {key: setting for key, setting in self.decided.items() if setting.get("sparse_ratio") is not None}


def register_settings(model: nn.Module) -> None:
    """Make NNI know all convolutions and linear layers of a model: it knows classes by name, without subclasses."""
    for module in model.modules():
        if is_weighted(module) and type(module).__name__ not in PruningSetting.registry:
            PruningSetting.register(type(module).__name__, PruningSetting.default_setting)


def read_entries(model: nn.Module, config_list: list[dict[str, Any]], allocation: str) -> list[Entry]:
    """The entries of a config_list, NNI's legacy form included.

    Raises:
        InputError: one line that names the entry that cannot be used.
    """
    _check_rule("allocation", allocation)
    entries = []
    for where, config, rule in _translated(config_list):
        modules = select_modules(model, where, config)
        entries.append(Entry(where, config, rule or allocation, modules, _settings_of(where, config, modules)))
    return entries


def check_schema(kind: str, where: str, config: Mapping[str, Any]) -> None:
    """Raise InputError unless NNI's own schema of that kind (``pruning``, ``distillation``) accepts an entry."""
    try:
        default_config_schema(kind).validate(config)
    except SchemaError as error:
        raise InputError(f"{where}: {one_line(error)}") from None


def _check_rule(where: str, rule: Any) -> None:
    if not isinstance(rule, str) or rule not in ALLOCATIONS:
        raise InputError(f"{where}={rule!r} is unknown; use one of {', '.join(ALLOCATIONS)}")


def _translated(config_list: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """For each entry: its name in errors, what NNI takes, and its rule if it names one."""
    for i, entry in enumerate(config_list):
        for setting in (entry, *entry.get("target_settings", {}).values()):
            for key, cure in _UNSUPPORTED.items():
                if setting.get(key) is not None:
                    raise InputError(f"config_list[{i}]: {key} is not supported; {cure}")
    translated = trans_legacy_config_list(copy.deepcopy(config_list))
    for i, (given, config) in enumerate(zip(config_list, translated, strict=True)):
        where = f"config_list[{i}]"
        if given.get("exclude") and "exclude" not in config:
            continue  # a legacy entry that is now an exclusion in all others
        rule = config.pop("allocation", "uniform" if "sparsity_per_layer" in given else None)
        if rule is not None:
            _check_rule(f"{where}: allocation", rule)
        _check_settings(where, config)
        yield where, config, rule


def _check_settings(where: str, config: dict[str, Any]) -> None:
    """Check an entry against NNI's schema, which does not know our granularities; n:m fills in its sparse_ratio."""
    as_nni = copy.deepcopy(config)
    pairs = [(config, as_nni)]
    pairs += [
        (config["target_settings"][name], as_nni["target_settings"][name]) for name in as_nni.get("target_settings", ())
    ]
    for ours, nnis in pairs:
        if ours.get("apply_method", "mul") != "mul":
            raise InputError(f"{where}: apply_method={ours['apply_method']!r} is not supported; leave it out")
        granularity = ours.get("granularity")
        if isinstance(granularity, str) and granularity not in _NNI_GRANULARITIES:
            try:
                density = make_sparsity_set(granularity).fixed_density
            except ValueError as error:
                raise InputError(f"{where}: {error}, or NNI's out_channel, in_channel or a list") from None
            nnis["granularity"] = "default"
            if density is not None:
                ours.setdefault("sparse_ratio", 1 - density)
    check_schema("pruning", where, as_nni)


def select_modules(model: nn.Module, where: str, config: dict[str, Any]) -> dict[str, nn.Module]:
    """The modules that an entry selects by NNI's rules, by name in the model's order.

    Args:
        model: not wrapped.
        where: the entry's name in errors.
        config: the entry. Types, patterns and exclusions that match nothing are logged; NNI ignores them silently.

    Raises:
        InputError: the model lacks a module of ``op_names``, or nothing is left.
    """
    names = dict(model.named_modules(remove_duplicate=False))
    kinds = {type(module).__name__ for module in names.values()}
    for name in config.get("op_names", ()):
        if name not in names:
            hint = did_you_mean(name, names, f"it has {', '.join([n for n in names if n][:3])}", most=3)
            raise InputError(f"{where}: op_names: the model has no module {name!r}{hint}")
    idle = {("exclude_op_names", name) for name in config.get("exclude_op_names", ()) if name not in names}
    for key in ("op_types", "exclude_op_types"):
        idle |= {(key, kind) for kind in config.get(key, ()) if kind not in kinds}
    for key in ("op_names_re", "exclude_op_names_re"):
        for pattern in config.get(key, ()):
            if not any(re.match(pattern, name) for name in names):
                idle.add((key, pattern))
    selected, _, _ = select_modules_by_config(model, config)
    if not selected:
        asked = ", ".join(f"{key}={value}" for key, value in config.items() if key.startswith(("op_", "exclude_")))
        raise InputError(f"{where} selects no layer ({asked}); check it against model.named_modules()")
    for key, given in sorted(idle):
        _logger.warning("%s: %s: the model has no module %r", where, key, given)
    return {name: module for name, module in names.items() if name in selected}


def _settings_of(where: str, config: dict[str, Any], modules: dict[str, nn.Module]) -> dict[Key, dict[str, Any]]:
    public = {key: value for key, value in config.items() if not key.startswith(("op_", "exclude_"))}
    found: dict[Key, dict[str, Any]] = {}
    for name, module in modules.items():
        kind = type(module).__name__
        if kind not in PruningSetting.registry:
            raise InputError(
                f"{where} selects {name!r}, a {kind}, in which NNI finds nothing to prune; exclude it, add op_types, "
                "or call NNI's PruningSetting.register()"
            )
        for target, setting in PruningSetting.get(module, public).items():
            if target.startswith((INPUT_PREFIX, OUTPUT_PREFIX)) and setting.get("sparse_ratio") is not None:
                raise InputError(f"{where}: PwoA prunes parameters, and {target} is an activation; leave it out")
            found[name, target] = setting
    return found
