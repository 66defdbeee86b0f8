"""`Planner`: a traced model, its groups of channels, and which of them go."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE

from .._modes import modes_kept
from ..errors import InputError
from ..method.allocation import ALLOCATIONS, Allocation
from ..removal.inputs import call_saying_where, largest_difference, tensors_of
from ..removal.trace import Tracing, grouping_errors, traceable
from .checks import (
    Fields,
    check_layers,
    check_options,
    check_ratio,
    check_reached,
    keyed_by_module,
    keyed_by_parameter,
    modules_named,
)
from .coupling import MIXING, Axis, Coupling, Plan, channel_scores, parts_of
from .importance import PwoAImportance, normalised
from .removals import Adapt, Removal, removed_from
from .selection import Candidates, Rounding, keep
from .trial import LARGEST_DIFFERENCE, Expectation, try_out

_logger = logging.getLogger(__name__)

_TRACING = ("forward_fn", "output_transform", "unwrapped_parameters", "customized_pruners")
_BY_MODULE = ("in_channel_groups", "out_channel_groups", "num_heads", "head_pruning_ratio_dict", "pruning_ratio_dict")
_ROOTS = (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR)


class Planner(tp.pruner.BasePruner):
    """Plans which channels of a model go.

    Torch-Pruning's `BasePruner` reads the options, traces the model and numbers the steps of an iteration; groups and
    the choice of channels are ours. Torch-Pruning's ``options`` are its own; ``ignored_layers`` is what `modules_named`
    reads. ``allocation`` spreads the ratio over groups that are ranked together; default: by one global ranking where
    ``global_pruning`` or ``isomorphic`` is set, else each group has the ratio.
    """

    DG: Any
    current_step: int

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        options: Mapping[str, Any],
        *,
        ratio: float,
        ignored_layers: Any,
        rounding: Rounding,
        adapt: Adapt | None,
        allocation: Allocation | None,
        fields: Fields,
    ) -> None:
        self.rounding, self.adapt, self.fields = rounding, adapt, fields
        self._arguments: dict[str, Any] = {
            "ratio": ratio,
            "rounding": rounding,
            "adapt": adapt,
            "allocation": allocation,
            "fields": fields,
        }
        self.options, self._inputs = dict(options), inputs
        check_ratio(fields.ratio, ratio)
        check_options(options)
        options = dict(options)
        for name in _BY_MODULE:  # fresh ones: Torch-Pruning shares its mutable defaults between pruners
            options[name] = keyed_by_module(model, options.get(name, {}), name)
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):  # each head loses as many
                options["out_channel_groups"].setdefault(module, module.num_heads)
        together = bool(allocation or options.get("global_pruning") or options.get("isomorphic"))
        self.allocation = (allocation or ALLOCATIONS["global"]) if together else None
        options["global_pruning"] = together
        ignored = modules_named(model, ignored_layers, fields.ignored, parameters=True)
        self._ignored = list(ignored)
        if "unwrapped_parameters" in options:
            options["unwrapped_parameters"] = keyed_by_parameter(model, options["unwrapped_parameters"])
        self.tracing = Tracing(
            inputs,
            **{name: options.pop(name) for name in _TRACING if name in options},
            ignored_params=[entry for entry in ignored if isinstance(entry, nn.Parameter)],
        )
        self._deterministic = self._try_forward(model)
        roots = options.pop("root_module_types", _ROOTS)
        self._trace(model, ratio, ignored, options)
        if len(self.per_step_pruning_ratio) != self.iterative_steps + 1:
            raise InputError(
                f"iterative_pruning_ratio_scheduler: let it return {self.iterative_steps + 1} ratios, from 0 to the "
                "one that it receives"
            )
        self.root_module_types: list[type] = [roots] if isinstance(roots, type) else list(roots)
        self.untouched: list[str] = []  # names of the layers that produce the model's output
        self._removed_before = len(self.removals)
        self._first_units: dict[tuple[str, str], int] = {}
        self._couplings: list[Coupling] | None = None

    def _try_forward(self, model: nn.Module) -> bool:
        """Check the model's output on the example inputs, and say whether it is the same at a second call."""
        self._ran: set[nn.Module] = set()
        with modes_kept(model), torch.no_grad(), contextlib.ExitStack() as hooks:
            for module in model.modules():
                hooks.enter_context(module.register_forward_hook(lambda module, *_: self._ran.add(module)))
            output = call_saying_where(model.eval(), self.tracing.inputs, self.tracing.forward, name=self.fields.inputs)
        outputs = tensors_of(output)
        if not outputs or not all(tensor.numel() and tensor.isfinite().all() for tensor in outputs):
            raise InputError(
                f"model: its output on {self.fields.inputs} is empty or not finite; give a trained model and images"
            )
        deterministic = largest_difference(outputs, self.tracing.run(model)) <= LARGEST_DIFFERENCE
        if not deterministic:
            _logger.warning(
                "the model is random in eval mode, or changes its inputs: its outputs with channels removed and with "
                "the same channels at 0 cannot be compared, only its weights"
            )
        return deterministic

    def _trace(self, model: nn.Module, ratio: float, ignored: Sequence[Any], options: Mapping[str, Any]) -> None:
        try:
            with traceable(model):
                super().__init__(
                    model,
                    self.tracing.inputs,
                    PwoAImportance(),
                    pruning_ratio=ratio,
                    ignored_layers=ignored,
                    round_to=self.rounding.to,
                    forward_fn=self.tracing.forward,
                    output_transform=self.tracing.outputs,
                    unwrapped_parameters=self.tracing.unwrapped(),
                    customized_pruners=dict(self.tracing.customized_pruners or {}) or None,
                    root_module_types=[],  # with some it would go through all groups, to count channels
                    **options,
                )
        except Exception:
            self.tracing.graph(model)  # whose errors say where
            raise
        self.DG.verbose = False

    def again(self, ignored: Iterable[Any] = (), **options: Any) -> Planner:
        """A new planner of the same model, with more ``ignored_layers`` and other options."""
        return Planner(
            self.model,
            self._inputs,
            self.options | options,
            ignored_layers=[*self._ignored, *ignored],
            **self._arguments,
        )

    def checked_plan(self) -> Plan:
        """What goes in the end, by the weights as they are; groups are checked, and the removal is tried out."""
        fields = self.fields
        check_reached(self.model, self.DG, self._ran, self.ignored_layers, fields)
        if self.prune_num_heads and len({*self.num_heads.values()}) > 1:
            raise InputError(
                "prune_num_heads: num_heads differ; grouped-query attention is not supported, leave it out"
            )
        couplings = self.couplings
        if self.untouched:
            _logger.info("%s: produces the model's output, and keeps its channels", ", ".join(self.untouched))
        if not couplings:
            raise InputError(
                f"model: no layer is left to prune (those that produce the output stay whole); shorten {fields.ignored}"
            )
        check_layers(self.model, couplings, fields)
        self._first_units = {(each.root, axis.kind): axis.units for each in couplings for axis in each.axes}
        plan = self.plan(self.iterative_steps)
        if not plan.removals():
            rounding = f" with round_to={self.rounding.to}" if self.rounding.to > 1 else ""
            raise InputError(f"{fields.ratio}={self.pruning_ratio}{rounding} leaves every channel; raise the ratio")
        try_out(self.model, plan, self.expect(plan), self.adapt)
        return plan

    def expect(self, plan: Plan) -> Expectation:
        """What the model must be after the planned removal."""
        return Expectation(self.model, plan, self.tracing, self.fields, deterministic=self._deterministic)

    @property
    def removals(self) -> list[Removal]:
        """All that was removed from the model so far, by earlier pruners, too."""
        return removed_from(self.model)

    @property
    def own_removals(self) -> list[Removal]:
        return self.removals[self._removed_before :]

    # -- groups ----------------------------------------------------------------------------------

    @property
    def couplings(self) -> list[Coupling]:
        """The groups of the model as it is now; kept until channels are removed."""
        if self._couplings is None:
            groups = self.DG.get_all_groups(
                ignored_layers=self.ignored_layers, root_module_types=self.root_module_types
            )
            with grouping_errors():
                self._couplings = [each for group in groups if (each := self._coupling(group)) is not None]
        return self._couplings

    def forget_groups(self, *, trace: bool = False) -> None:
        """Called after channels were removed or given back, the latter with ``trace``, for the graph is another one."""
        self._couplings = None
        if trace:
            self.DG = self.tracing.graph(self.model)

    def _coupling(self, group: Any) -> Coupling | None:
        """A group as a `Coupling`; None if its channels stay."""
        if any(item.dep.target.type == OPTYPE.OUTPUT for item in group):
            self._leave_whole(group)
            return None
        is_attention, attention = self._is_atten_group(group)
        if is_attention:
            group = self._downstream_node_as_root_if_attention(group)
            if group is None:
                return None
        parts, channels, module = list(parts_of(group)), len(group[0].idxs), group[0].dep.target.module
        name = self.DG._module2name[module]
        axes = self._axes(group, channels, attention, name)
        if not parts or not axes:
            return None
        return Coupling(
            root=name,
            module=module,
            out=bool(self.DG.is_out_channel_pruning_fn(group[0].dep.handler)),
            channels=channels,
            axes=axes,
            parts=parts,
            group=group,
            mixing=any(item.dep.target.type in MIXING for item in group),
        )

    def _leave_whole(self, group: Any) -> None:
        for item in group:
            module = item.dep.target.module
            is_layer = isinstance(module, tuple(self.root_module_types))
            if is_layer and self.DG.is_out_channel_pruning_fn(item.dep.handler):
                self.ignored_layers.append(module)  # Torch-Pruning begins no other group with it
                self.untouched.append(self.DG._module2name[module])

    def _axes(self, group: Any, channels: int, attention: list[nn.Module], name: str) -> list[Axis]:
        width = self._get_channel_groups(group)
        if channels % width:
            raise InputError(f"{name}: its {channels} channels cannot be split into {width} channel groups or heads")
        numbers = torch.arange(channels)
        axes = []
        if not attention or self.prune_head_dims:
            axes.append(Axis("channels", numbers % (channels // width), channels // width))
        if attention and self.prune_num_heads:
            heads = max(self.num_heads[layer] for layer in attention)
            axes.append(Axis("heads", numbers // (channels // heads), heads))
        return axes

    # -- which channels go -----------------------------------------------------------------------

    def _scope(self, coupling: Coupling, kind: str, step: int) -> tuple[str, float]:
        """The scope in which a group is ranked, and the share of that scope which goes."""
        made = [
            item.dep.target.module
            for item in coupling.group
            if self.DG.is_out_channel_pruning_fn(item.dep.handler) and isinstance(item.dep.target.module, nn.Module)
        ]
        if kind == "heads":
            first = next(layer for layer in made if layer in self.num_heads)
            ratios = self.head_pruning_ratio_dict.get(first, self.per_step_head_pruning_ratio)
            return ("heads" if self.global_pruning else coupling.root), ratios[step]
        own = next((layer for layer in made if layer in self._layer_to_scope), None)
        ratio = self.pruning_ratio_dict.get(own, self.per_step_pruning_ratio)[step]
        if own is not None:
            return self._layer_to_scope[own][0], ratio
        if self.isomorphic:
            structure = " ".join(
                f"{type(item.dep.target.module).__name__}.{item.dep.handler.__name__}"
                for item in coupling.group
                if isinstance(item.dep.target.module, (nn.Module, nn.Parameter))
            )
            return structure, ratio
        return ("all" if self.global_pruning else coupling.root), ratio

    def _kept(self, scores: Sequence[Tensor], step: int) -> list[list[Tensor]]:
        """Units that stay, for each axis of each group; ``scores`` are the squared norms of each group's channels."""
        scopes: dict[tuple[str, str, float], list[tuple[int, int]]] = defaultdict(list)
        for number, coupling in enumerate(self.couplings):
            for place, axis in enumerate(coupling.axes):
                scopes[axis.kind, *self._scope(coupling, axis.kind, step)].append((number, place))
        kept = [[torch.empty(0)] * len(coupling.axes) for coupling in self.couplings]
        for (kind, _, ratio), members in scopes.items():
            candidates = [self._candidates(self.couplings[number], place, scores[number]) for number, place in members]
            chosen = keep(
                candidates,
                ratio,
                rounding=self.rounding if kind == "channels" else Rounding(),
                allocation=self.allocation if len(candidates) > 1 else None,
            )
            for (number, place), which in zip(members, chosen, strict=True):
                kept[number][place] = which
        return kept

    def _candidates(self, coupling: Coupling, place: int, scores: Tensor) -> Candidates:
        axis = coupling.axes[place]
        norms = torch.zeros(axis.units).index_add_(0, axis.unit, scores).sqrt()
        weight = getattr(coupling.module, "weight", None)
        return Candidates(
            scores=normalised(norms),
            width=axis.width,
            before=self._first_units.get((coupling.root, axis.kind), axis.units),
            shape=(axis.units,) if weight is None else tuple(weight.shape),
            most=self.max_pruning_ratio,
        )

    @torch.no_grad()
    def plan(self, step: int, values: Mapping[nn.Parameter, Tensor] | None = None) -> Plan:
        """The plan of a step of the iteration, from 1: the projection of these values; default: of the weights."""
        scores = [channel_scores(each.parts, each.channels, values) for each in self.couplings]
        return Plan(self.couplings, self._kept(scores, step))

    @property
    def done(self) -> bool:
        return bool(self.current_step >= self.iterative_steps)

    def next_plan(self) -> Plan:
        """The plan of the next step: the projection of the weights alone, without ADMM's dual."""
        if self.done:
            raise InputError(f"step: all {self.iterative_steps} iterative_steps are done; make a new pruner")
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():  # NaN would decide which channels go
                raise InputError(f"{name}: a weight is not finite; lower the learning rate")
        return self.plan(self.current_step + 1)
