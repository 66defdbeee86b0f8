"""NNI's config_list: checked before the model is touched, and turned into what each parameter keeps.

An entry is NNI's own, with two additions: ``granularity`` also takes the names of our sparsity sets, and the key
``allocation`` names the rule that spreads the entry's ``sparse_ratio`` over its layers::

    [
        {"op_types": ["Conv2d"], "sparse_ratio": 0.9, "allocation": "lamp"},     # 90 % of all convolutions together
        {"op_types": ["Linear"], "sparse_ratio": 0.8, "allocation": "uniform"},  # 80 % of each linear layer
    ]
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nni.compression.base.wrapper import ModuleWrapper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._weights import cure_of_computed, is_weighted
from ..errors import InputError
from ..method.allocation import ALLOCATIONS, LayerAllocation
from ..method.gradual import Budget
from ..method.layers import refuse_transposed
from ..method.sparsity import SparsitySet
from .entries import Entry, Key, read_entries, register_settings
from .granularity import sparsity_set_of
from .owners import decide

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrunedParameter:
    """One parameter to prune: ``name`` (``weight``) of ``module``; its entry's parameters share the budget."""

    module: str
    name: str
    allocation: LayerAllocation
    budget: Budget


def read_config_list(
    model: nn.Module,
    config_list: list[dict[str, Any]],
    allocation: str = "uniform",
    wrappers: Mapping[str, ModuleWrapper] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, PrunedParameter]]:
    """The config_list as NNI takes it, and the parameters it prunes. The model is not changed.

    As in NNI, the first entry that selects a parameter decides (see `decide` for contradictions). Each entry has its
    own total, and ``allocation`` is the rule of those that name none. Earlier compressors, whose ``wrappers`` these
    are, keep what they prune.

    Returns:
        Entries without our key, and ``{layer: PrunedParameter}`` in the model's order; a parameter that is not a weight
        has the key ``layer.parameter``.
    """
    if not isinstance(config_list, list) or not config_list:
        raise InputError(
            "config_list: give a PwoAConfig, or a list of NNI's dicts: [{'op_types': ['Linear'], 'sparse_ratio': 0.9}]"
        )
    register_settings(model)
    entries = read_entries(model, config_list, allocation)
    _warn_of_parametrized(model, config_list)
    decide(model, entries, wrappers or {})
    found: dict[str, PrunedParameter] = {}
    for entry in entries:
        found |= _allocate(model, entry)
    ordered = {
        key: found[key]
        for name, module in model.named_modules()
        for parameter, _ in module.named_parameters(recurse=False, remove_duplicate=False)
        if (key := _key(name, parameter)) in found
    }
    return [entry.config for entry in entries], ordered


def _warn_of_parametrized(model: nn.Module, config_list: list[dict[str, Any]]) -> None:
    """Log layers that ``op_types`` leaves out: a parametrized layer is of a class of its own."""
    for name, module in model.named_modules():
        if not is_weighted(module) or not parametrize.is_parametrized(module, "weight"):
            continue
        kind = type(module).__bases__[0].__name__
        for i, entry in enumerate(config_list):
            if kind in (entry.get("op_types") or ()) and name not in (entry.get("exclude_op_names") or ()):
                cure = cure_of_computed(module)
                _logger.warning("config_list[%d]: %s stays dense: its weight is computed from others %s", i, name, cure)


def _key(module: str, parameter: str) -> str:
    return module if parameter == "weight" else f"{module}.{parameter}"


def _allocate(model: nn.Module, entry: Entry) -> dict[str, PrunedParameter]:
    """What an entry's parameters keep; its total is spread over those of the same ratio and sparsity set."""
    totals: dict[tuple[float, str], tuple[SparsitySet, dict[Key, Tensor]]] = {}
    for (name, target), setting in entry.pruned.items():
        module, ratio = model.get_submodule(name), setting["sparse_ratio"]
        granularity = setting.get("granularity") or "default"
        weight = module.get_parameter(target).detach()
        where = f"{entry.where}: {_key(name, target)}"
        sparsity_set = sparsity_set_of([1] if granularity == "default" else granularity, weight.shape, where)
        if target == "weight":
            refuse_transposed({name: module}, sparsity_set)
        density = sparsity_set.fixed_density
        if density is not None and abs(1 - density - ratio) > 1e-9:
            raise InputError(
                f"{entry.where}: sparse_ratio={ratio} contradicts granularity={granularity!r}, which prunes "
                f"{1 - density:g}; leave sparse_ratio out"
            )
        alike = (ratio, repr((type(sparsity_set).__name__, vars(sparsity_set))))
        totals.setdefault(alike, (sparsity_set, {}))[1][name, target] = weight
    found: dict[str, PrunedParameter] = {}
    for (ratio, _), (sparsity_set, weights) in totals.items():
        budget = Budget(ratio, sparsity_set, ALLOCATIONS[entry.rule])
        try:
            allocated = budget.allocate({_key(*key): weight for key, weight in weights.items()})
        except ValueError as error:
            raise InputError(f"{entry.where}: {error}") from None
        for name, target in weights:
            layer = allocated[_key(name, target)]
            if layer.dense_because:
                _logger.warning("%s: layer %s stays dense: %s", entry.where, name, layer.dense_because)
            found[_key(name, target)] = PrunedParameter(name, target, layer, budget)
    return found
