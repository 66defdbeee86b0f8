"""Why a network cannot lose channels, in the user's words: the layer, the parameter, and a cure that was tried."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch_pruning.ops import OPTYPE

from ..errors import InputError
from ..removal.inputs import ForwardError
from ..removal.trace import RemovalError, grouping_errors
from .coupling import Plan
from .planner import Planner
from .trial import try_out

_logger = logging.getLogger(__name__)

_MOST_TRIED = 24  # ways to set dimensions of parameters
_MOST_NAMED = 4  # layers, before names become patterns
_SPLITTING = (OPTYPE.SPLIT, OPTYPE.SLICE)
_LEFT_WHOLE = -1  # in place of a dimension: the parameter stays as it is

Groups = dict[str, Any]  # Torch-Pruning's group by the name of the layer that it begins with


def checked_plan(planner: Planner) -> Plan:
    """`Planner.checked_plan`; where channels cannot be removed, the error names the layers and a cure that works."""
    try:
        return planner.checked_plan()
    except RemovalError as failed:
        _logger.warning("channels cannot be removed: trying which layers, and what helps; it takes seconds to minutes")
        raise InputError(_explained(planner, failed)) from failed


def _explained(planner: Planner, failed: RemovalError) -> str:
    failing = _failing(planner)
    names, ignored = _names(failing) or "model", planner.fields.ignored
    whole = _left_whole(planner, failing)
    instead = f"or list {whole} in {ignored}" if whole else "or prune by masks, without removing channels"
    if cure := _by_parameters(planner, failing):
        return f"{cure}, {instead}"
    bare = _to_blame(planner, failing, failed)
    nodes = [planner.DG.module2node[each] for each in bare]
    if any(after.type == OPTYPE.RESHAPE for node in nodes for after in node.outputs):
        return (
            f"{_shown(planner, bare)}, goes with the channels of {names} by a view or reshape, which Torch-Pruning "
            f"cannot follow; index it, as in gamma[None, :, None, None], {instead}"
        )
    if cure := _by_parts(planner, failing):
        return f"{cure}, {instead}"
    reason, cure = failed.reason, failed.cure
    if bare and isinstance(failed.__cause__, ForwardError):
        reason += f", or with {_shown(planner, bare)}, which Torch-Pruning cannot make smaller as the code uses it"
        cure += ", keep weights in modules (nn.Linear)"
    elif bare:
        reason += f": it cannot make {_shown(planner, bare)}, smaller as the code uses it"
        cure = "keep weights in modules (nn.Linear)"
    return f"{names}: {reason}; {cure}, {instead}"


# -- which layers -------------------------------------------------------------------------------


def _failing(planner: Planner) -> Groups:
    """The groups that cannot lose channels on their own."""
    lost: Groups = {}
    for name, group in _groups(planner):
        try:
            with grouping_errors():
                planner._coupling(group())
        except RemovalError:
            lost[name] = group
    if lost:
        return {name: _or_nothing(group) for name, group in lost.items()}
    plan = planner.plan(planner.iterative_steps)
    found: Groups = {}
    for coupling, kept in zip(plan.couplings, plan.kept, strict=True):
        alone = Plan([coupling], [kept])
        try:
            try_out(planner.model, alone, planner.expect(alone), planner.adapt)
        except RemovalError:
            found[coupling.root] = coupling.group
    return found


def _groups(planner: Planner) -> Iterator[tuple[str, Any]]:
    """Each layer that a group can begin with, and a function that gives its group."""
    graph, seen = planner.DG, set(planner.ignored_layers)
    for module in list(graph.module2node):
        if module in seen or not isinstance(module, tuple(planner.root_module_types)):
            continue

        def group(module: Any = module) -> Any:
            pruner = graph.get_pruner_of_module(module)
            found = graph.get_pruning_group(
                module, pruner.prune_out_channels, list(range(graph.get_out_channels(module)))
            )
            members = [item.dep.target.module for item in found if graph.is_out_channel_pruning_fn(item.dep.handler)]
            seen.update(member for member in members if isinstance(member, nn.Module))
            return found

        yield graph._module2name[module], group


def _left_whole(planner: Planner, failing: Groups) -> str | None:
    """The layers to leave whole, as messages list them, so that the rest can be pruned; None if nothing helps."""
    names = [*failing]
    while failing:
        other = planner.again(names)
        try:
            other.checked_plan()
        except RemovalError:
            failing = _failing(other)
            names += failing
        except InputError:
            return None
        else:
            patterns = [*dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names)]
            shorter = len(names) > _MOST_NAMED and _works(planner, patterns)
            return _names(patterns if shorter else names)
    return None


def _works(planner: Planner, ignored: Iterable[Any] = (), **options: Any) -> bool:
    try:
        planner.again(ignored, **options).checked_plan()
    except InputError:
        return False
    return True


# -- what helps ---------------------------------------------------------------------------------


def _by_parameters(planner: Planner, failing: Groups) -> str:
    """The dimensions of bare parameters with which all can be pruned, or empty."""
    names, now, candidates = planner.DG._param_to_name, {}, {}
    for group in failing.values():
        for parameter in _parameters({"": group}):
            now[parameter] = planner.DG.module2node[parameter].pruning_dim
            fitting = [dim for dim, size in enumerate(parameter.shape) if size == len(group[0].idxs)]
            others = [now[parameter]] if planner.fields.ignored == "exclude" else [_LEFT_WHOLE, now[parameter]]
            candidates[parameter] = [*dict.fromkeys([*fitting, *others])]
    given = dict(planner.options.get("unwrapped_parameters", ()))
    for choice in itertools.islice(itertools.product(*candidates.values()), _MOST_TRIED):
        changed = {p: dim for p, dim in zip(candidates, choice, strict=True) if dim != now[p]}
        dims = {names[p]: dim for p, dim in changed.items() if dim != _LEFT_WHOLE}
        left = [names[p] for p, dim in changed.items() if dim == _LEFT_WHOLE]
        if changed and _works(planner, left, unwrapped_parameters=given | dims):
            cures = [f"give unwrapped_parameters={dims} to PwoAGroupPruner"] if dims else []
            cures += [f"list {_names(left)} in {planner.fields.ignored}"] if left else []
            return (
                f"{_shown(planner, changed)}, goes with the channels of {_names(failing)}, and Torch-Pruning shortens "
                f"its dimension {', '.join(str(now[p]) for p in changed)}; {' and '.join(cures)}"
            )
    return ""


def _by_parts(planner: Planner, failing: Groups) -> str:
    """The numbers of parts in which channels are split, if all can be pruned with them, or empty."""
    parts = {}
    for name, group in failing.items():
        if not any(item.dep.target.type in _SPLITTING for item in group):
            continue
        root = group[0].dep
        together = len(planner.DG.get_pruning_group(root.target.module, root.handler, [0])[0].idxs)
        if together > 1:
            parts[name] = together
    if not parts:
        return ""
    works = _works(planner, out_channel_groups=planner.options.get("out_channel_groups", {}) | parts)
    rewrite = "" if works else "write sizes that follow the input, as in chunk(2, 1), and "
    return (
        f"{_names(parts)}: the code splits its channels into parts that go together; {rewrite}give "
        f"out_channel_groups={parts} to PwoAGroupPruner"
    )


# -- words --------------------------------------------------------------------------------------


def _parameters(failing: Groups) -> list[nn.Parameter]:
    """The parameters in groups that are not of a layer that Torch-Pruning knows."""
    found = [item.dep.target for group in failing.values() for item in group]
    return [*dict.fromkeys(node.module for node in found if node.type == OPTYPE.PARAMETER)]


def _to_blame(planner: Planner, failing: Groups, failed: RemovalError) -> list[nn.Parameter]:
    """The bare parameters that may be why a removal fails: those of the module that fails, and square ones."""
    error = failed.__cause__
    where = error.where.split(" (")[0] if isinstance(error, ForwardError) else None
    found = []
    for group in failing.values():
        for parameter in _parameters({"": group}):
            owner = planner.DG._param_to_name[parameter].rpartition(".")[0]
            here = where is None or owner == where or (not owner and where.startswith("the forward"))
            if here or list(parameter.shape).count(len(group[0].idxs)) > 1:
                found.append(parameter)
    return [*dict.fromkeys(found)]


def _shown(planner: Planner, parameters: Iterable[nn.Parameter]) -> str:
    """Parameters as messages show them: the first three, with their shapes."""
    shown = [f"{planner.DG._param_to_name[each]}, a parameter of shape {tuple(each.shape)}" for each in parameters]
    return "; ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _or_nothing(group: Any) -> Any:
    try:
        return group()
    except IndexError:  # Torch-Pruning cannot even list it
        return []
