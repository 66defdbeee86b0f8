"""Who decides a parameter that several entries of a config_list, or several compressors, would prune."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from nni.compression.base.wrapper import ModuleWrapper
from torch import nn

from .._weights import cure_of_computed
from ..errors import InputError
from .entries import Entry, Key, with_ratio

_logger = logging.getLogger(__name__)


def decide(model: nn.Module, entries: list[Entry], wrappers: Mapping[str, ModuleWrapper]) -> None:
    """Give each parameter to the first entry that selects it: fills in ``decided`` of the entries.

    A parameter that another compressor's wrapper prunes stays that one's. Raises InputError if entries contradict each
    other, or NNI's wrappers cannot prune a parameter correctly.
    """
    _exclude_aliases(model, entries)
    owners: dict[Key, Entry] = {}
    for entry in entries:
        taken: dict[Key, Entry | None] = {}
        for (name, target), setting in entry.asked.items():
            if name in wrappers and target in wrappers[name].pruning_target_spaces:
                taken[name, target] = None
            elif (name, target) in owners:
                taken[name, target] = owners[name, target]
            else:
                owners[name, target] = entry
                entry.decided[name, target] = setting
        to_prune = with_ratio(entry.asked)
        aligned = any((setting.get("align") or {}).get("module_name") for setting in entry.asked.values())
        if not to_prune and not aligned:
            raise InputError(f"{entry.where} gives no weight a sparse_ratio; PwoA needs one")
        _check_overlap(entry, {key: other for key, other in taken.items() if key in to_prune})
        for name, target in entry.pruned:
            _check_parameter(model, entry.where, name, target)


def _exclude_aliases(model: nn.Module, entries: list[Entry]) -> None:
    """Keep a module that has two names under its first; NNI would wrap it twice."""
    first = {module: name for name, module in model.named_modules()}
    selected = {name for entry in entries for name, _ in entry.asked}
    originals = {name: first[model.get_submodule(name)] for name in selected}
    for entry in entries:
        aliases = sorted({name for name, _ in entry.asked if originals[name] != name})
        for name in aliases:
            if originals[name] not in selected:
                raise InputError(f"{entry.where}: {name!r} is the module {originals[name]!r} again; name that one")
            entry.config.setdefault("exclude_op_names", []).append(name)
        entry.asked = {key: setting for key, setting in entry.asked.items() if key[0] not in aliases}


def _check_overlap(entry: Entry, taken: Mapping[Key, Entry | None]) -> None:
    """Check the parameters that earlier entries, or another compressor (None), have taken from an entry."""
    others: set[str] = set()
    for (name, target), other in taken.items():
        if other is None:
            _logger.warning("%s: another compressor already prunes %s of %s", entry.where, target, name)
            continue
        if (other.decided[name, target], other.rule) == (entry.asked[name, target], entry.rule):
            continue
        others.add(other.where)
        if name in other.config.get("op_names", ()) and name in entry.config.get("op_names", ()):
            raise InputError(
                f"{other.where} and {entry.where} contradict each other: both name {name!r} in op_names with different "
                "settings; take it out of one"
            )
    if entry.pruned or not taken:
        return
    if others:
        raise InputError(
            f"{entry.where} contradicts {', '.join(sorted(others))}: earlier entries have all its layers, and the "
            "first entry wins; put it before, or take it out"
        )
    if None in taken.values():
        raise InputError(
            f"{entry.where}: another compressor already prunes all its layers; call that one's unwrap_model() and "
            "PwoAPruner(model, ...), or select others"
        )
    _logger.warning("%s repeats an earlier entry", entry.where)


def _check_parameter(model: nn.Module, where: str, name: str, target: str) -> None:
    """Refuse what NNI's wrappers would silently get wrong."""
    parameter = model.get_submodule(name)._parameters.get(target)
    if parameter is None:
        cure = cure_of_computed(model.get_submodule(name), target)
        raise InputError(f"{where}: {target} of {name} is computed from others {cure}, or exclude the layer")
    if not parameter.requires_grad:
        raise InputError(f"{where}: {target} of {name} has requires_grad=False; set it to True, or exclude the layer")
    names = [n for n, value in model.named_parameters(remove_duplicate=False) if value is parameter]
    owners = {id(model.get_submodule(n.rpartition(".")[0])) for n in names}
    if len(owners) > 1:
        raise InputError(
            f"{where}: {' and '.join(names)} are one parameter, which NNI's wrappers would make two; exclude the layer"
        )
