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

from .._text import did_you_mean, one_line, short
from .._weights import is_weighted
from ..errors import InputError
from ..method.allocation import ALLOCATIONS
from ..method.sparsity import make_sparsity_set

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
    "max_sparsity_per_layer": "give the layer its own entry",
}

Key = tuple[str, str]  # module name, parameter name
Settings = dict[Key, dict[str, Any]]  # NNI's setting for each parameter


@dataclass
class Entry:
    """One entry of a config_list.

    Attributes:
        where: its name in errors, ``config_list[0]``.
        config: as NNI takes it.
        rule: the allocation, a key of `ALLOCATIONS`.
        asked: the parameters that it selects.
        decided: those of ``asked`` in which no earlier entry and no other compressor comes first.
    """

    where: str
    config: dict[str, Any]
    rule: str
    asked: Settings
    decided: Settings = field(default_factory=dict)

    @property
    def pruned(self) -> Settings:
        """Those of ``decided`` that are pruned to a ratio; the others are aligned with another parameter's mask."""
        return with_ratio(self.decided)


def with_ratio(settings: Settings) -> Settings:
    return {key: setting for key, setting in settings.items() if setting.get("sparse_ratio") is not None}


def register_settings(model: nn.Module) -> None:
    """Make NNI know all convolutions and linear layers of a model: it knows classes by name, without subclasses."""
    for module in model.modules():
        if is_weighted(module) and type(module).__name__ not in PruningSetting.registry:
            PruningSetting.register(type(module).__name__, PruningSetting.default_setting)


def read_entries(model: nn.Module, config_list: list[dict[str, Any]], allocation: str) -> list[Entry]:
    """The entries of a config_list, NNI's legacy form included; ``allocation`` is the rule of those that name none."""
    entries = []
    for where, config, rule in _translated(config_list, allocation):
        settings = _settings_of(where, config, select_modules(model, where, config))
        entries.append(Entry(where, config, rule, settings))
    if not entries:
        raise InputError("config_list: every entry has 'exclude', so nothing is pruned; add one with sparse_ratio")
    return entries


#: Keys of NNI 2, and what NNI 3 says instead.
_OF_NNI_2 = {
    "exclude": "name the layers in exclude_op_names, or exclude_op_types, of the entry that selects the others",
    "sparsity": "write sparse_ratio",
    "sparsity_per_layer": "write sparse_ratio (and 'allocation': 'uniform')",
    "op_partial_names": "write op_names_re, a list of patterns (['.*conv.*'])",
    "op_type": "write op_types, a list of names of classes",
    "op_name": "write op_names, a list of names of modules",
    "exclude_op_name": "write exclude_op_names",
    "exclude_op_type": "write exclude_op_types",
    "quant_types": "it is a quantizer's; write target_names there",
    "quant_bits": "it is a quantizer's; write quant_dtype there ('int8')",
}


_KEYS = (
    *("op_types", "op_names", "op_names_re", "exclude_op_types", "exclude_op_names", "exclude_op_names_re"),
    *("sparse_ratio", "target_names", "target_settings", "granularity", "allocation"),
)


def check_schema(kind: str, where: str, config: Mapping[str, Any]) -> None:
    """Raise InputError unless NNI's own schema of that kind (``pruning``, ``distillation``) accepts an entry."""
    _check_form(where, config)
    for setting in (config, *config.get("target_settings", {}).values()):
        for key, cure in _OF_NNI_2.items():
            if key in setting:
                raise InputError(f"{where}: {key!r} is a key of NNI 2; {cure}")
    try:
        default_config_schema(kind).validate(config)
    except SchemaError as error:
        said = one_line(error)
        wrong = re.search("Wrong keys? '(\\w+)'", said)
        raise InputError(f"{where}: {said}{did_you_mean(wrong[1], _KEYS) if wrong else ''}") from None


def _check_form(where: str, entry: Any) -> None:
    """Refuse an entry that is no dict, and target_settings that are no dicts by the names of targets."""
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: {short(entry)} is no dict; write {{'op_types': ['Linear'], 'sparse_ratio': 0.9}}")
    settings = entry.get("target_settings", {})
    if not isinstance(settings, Mapping) or not all(isinstance(each, Mapping) for each in settings.values()):
        raise InputError(f"{where}: target_settings={short(settings)}; write {{'weight': {{'sparse_ratio': 0.9}}}}")


def _translated(config_list: list[dict[str, Any]], allocation: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """For each entry: its name in errors, what NNI takes, and its allocation."""
    for i, entry in enumerate(config_list):
        _check_form(f"config_list[{i}]", entry)
        for setting in (entry, *entry.get("target_settings", {}).values()):
            for key, cure in _UNSUPPORTED.items():
                if setting.get(key) is not None:
                    raise InputError(f"config_list[{i}]: {key} is not supported; {cure}")
    translated = trans_legacy_config_list(copy.deepcopy(config_list))
    for i, (given, config) in enumerate(zip(config_list, translated, strict=True)):
        where = f"config_list[{i}]"
        if given.get("exclude") and "exclude" not in config:
            continue  # a legacy entry that is now an exclusion in all others
        rule = config.pop("allocation", "uniform" if "sparsity_per_layer" in given else allocation)
        if rule not in list(ALLOCATIONS):
            raise InputError(f"{where}: allocation={rule!r} is unknown; use one of {', '.join(ALLOCATIONS)}")
        _check_settings(where, config)
        yield where, config, rule


def _check_settings(where: str, config: dict[str, Any]) -> None:
    """Check an entry against NNI's schema, which does not know our granularities; n:m fills in its sparse_ratio."""
    as_nni = copy.deepcopy(config)
    ours = [config, *config.get("target_settings", {}).values()]
    nnis = [as_nni, *as_nni.get("target_settings", {}).values()]
    for our, nni in zip(ours, nnis, strict=True):
        if our.get("apply_method", "mul") != "mul":
            raise InputError(f"{where}: apply_method={our['apply_method']!r} is not supported; leave it out")
        granularity = our.get("granularity")
        if isinstance(granularity, str) and granularity not in _NNI_GRANULARITIES:
            try:
                density = make_sparsity_set(granularity).fixed_density
            except ValueError as error:
                raise InputError(f"{where}: {error}, or NNI's out_channel, in_channel or a list") from None
            nni["granularity"] = "default"
            if density is not None:
                our.setdefault("sparse_ratio", 1 - density)
    check_schema("pruning", where, as_nni)


def select_modules(model: nn.Module, where: str, config: dict[str, Any]) -> dict[str, nn.Module]:
    """The modules that an entry selects by NNI's rules, by name in the model's order.

    Types, patterns and exclusions that match nothing are logged; NNI ignores them silently.
    """
    names = dict(model.named_modules(remove_duplicate=False))
    kinds = {type(module).__name__ for module in names.values()}
    for name in config.get("op_names", ()):
        if name not in names:
            hint = did_you_mean(name, names, f"it has {', '.join([n for n in names if n][:3])}", most=3)
            raise InputError(f"{where}: op_names: the model has no module {name!r}{hint}")
    selected, _, _ = select_modules_by_config(model, config)
    if not selected:
        asked = ", ".join(f"{key}={value}" for key, value in config.items() if key.startswith(("op_", "exclude_")))
        raise InputError(f"{where} selects no layer ({asked}); check it against model.named_modules()")

    def matches(key: str, given: str) -> bool:
        if key.endswith("_types"):
            return given in kinds
        return any(re.match(given, name) for name in names) if key.endswith("_re") else given in names

    for key in ("exclude_op_names", "exclude_op_names_re", "exclude_op_types", "op_names_re", "op_types"):
        for given in config.get(key, ()):
            if not matches(key, given):
                _logger.warning("%s: %s: the model has no module %r", where, key, given)
    return {name: module for name, module in names.items() if name in selected}


def _settings_of(where: str, config: dict[str, Any], modules: dict[str, nn.Module]) -> Settings:
    public = {key: value for key, value in config.items() if not key.startswith(("op_", "exclude_"))}
    found: Settings = {}
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
