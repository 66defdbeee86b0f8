"""`ChannelTarget`: channels that ADMM draws to 0 by group, and that are then removed."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from .._weights import is_weighted
from ..errors import InputError
from ..method.admm import LARGEST_RESIDUAL, Projections
from ..method.allocation import LayerAllocation
from ..method.snapshot import Snapshot, StateError
from ..method.targets import Target
from ..removal.groups import without
from .coupling import Plan, channel_scores, inputs_of
from .diagnosis import checked_plan
from .planner import Planner
from .removals import Removal, group_of, make_structure_undo, removals_from_json, removals_to_json, replay
from .trial import try_out

_logger = logging.getLogger(__name__)


class ChannelTarget(Target):
    """Channels are drawn to 0 by group, and removed, as the planner says."""

    def __init__(self, planner: Planner) -> None:
        self.planner, self.masks = planner, {}
        self._channels: dict[str, tuple[int, Tensor]] = {}
        self._undo: Callable[[], None] | None = None
        planned = checked_plan(planner).tensors(planner.model)
        self.layers = {
            name: module
            for name, module in planner.model.named_modules()
            if is_weighted(module) and f"{name}.weight" in planned
        }
        self.allocation = {}
        for name, module in self.layers.items():
            shape = tuple(module.get_parameter("weight").shape)
            before, kept = math.prod(shape), planned[f"{name}.weight"].numel()
            because = "none of its channels go" if kept == before else None
            self.allocation[name] = LayerAllocation(shape, before, kept, because)

    @property
    def done(self) -> bool:
        return bool(self.planner.own_removals)

    def begin(self, images: Tensor | None = None) -> None:
        self._undo = None
        if self.done:
            raise InputError("channels are removed already; make a new PwoAGroupPruner to prune on")

    def weights_and_projections(self) -> tuple[Mapping[str, Tensor], Projections]:
        planner = self.planner
        members = {part.parameter for coupling in planner.couplings for part in coupling.parts}
        weights = {name: parameter for name, parameter in planner.model.named_parameters() if parameter in members}

        def masks_of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            step = min(planner.current_step + 1, planner.iterative_steps)
            masks = planner.plan(step, {weights[name]: value for name, value in values.items()}).masks()
            return {name: masks[parameter] for name, parameter in weights.items()}

        return weights, masks_of

    def prune(self, *, allocate: bool) -> None:
        self._undo = self.make_undo()
        self.carry_out(self.planner.next_plan())

    def student_channels(self) -> dict[str, tuple[int, Tensor]]:
        """Always the same dict; its indices are those before any removal here."""
        return self._channels

    def state(self) -> Snapshot:
        return Snapshot(facts={"removals": removals_to_json(self.planner.own_removals)})

    def load_state(self, saved: Snapshot) -> None:
        try:
            if removals := removals_from_json(saved.facts.get("removals")):
                self._undo = self.make_undo()
                self.remove(removals)
                self.planner.current_step = self.planner.iterative_steps
        except InputError as error:
            raise StateError(f"the saved state is of another network ({error}); resume with the same model") from error

    def undo(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None

    def discard_undo(self) -> None:
        self._undo = None

    # -- removal ---------------------------------------------------------------------------------

    def carry_out(self, plan: Plan) -> None:
        """Remove the planned channels: one step of the iteration. After an error the model is as it was."""
        self._warn_of_undrawn(plan)
        expected = self.planner.expect(plan)
        with self._undone_on_error():
            self.remove(plan.removals())
            expected.check(self.planner.model)
            self.planner.current_step += 1

    def groups_of(self, plan: Plan) -> Iterator[ChosenGroup]:
        """The planned groups one by one, for the user to prune or not: one step of the iteration."""
        try_out(self.planner.model, plan, self.planner.expect(plan), self.planner.adapt)
        self._warn_of_undrawn(plan)
        self.planner.current_step += 1
        self.admm = None
        return self._groups(plan.removals(), self.planner.current_step)

    def _groups(self, removals: Sequence[Removal], step: int) -> Iterator[ChosenGroup]:
        for removal in removals:
            self.check_step(step)
            yield ChosenGroup(self, removal)

    def check_step(self, step: int) -> None:
        if self.planner.current_step != step:
            raise InputError("prune: this group is of an earlier step(); its channels have other numbers now")

    def remove(self, removals: Sequence[Removal]) -> None:
        """Remove channels. After an error the model is as it was."""
        with self._undone_on_error():
            replay(self.planner.model, self.planner.DG, removals, self.planner.adapt, self._note)
            self.planner.forget_groups()
            self.admm = None  # its weights are replaced

    def _note(self, group: Any, channels: int) -> None:
        """Note which inputs and heads are left once a group goes, of a root with this number of channels."""
        planner = self.planner
        gone: dict[nn.Module, tuple[int, set[int]]] = {}
        for reader, dim, indices in inputs_of(group):
            gone.setdefault(reader, (dim, set()))[1].update(indices)
        device = next(planner.model.parameters()).device
        for reader, (dim, numbers) in gone.items():
            name, size = planner.DG._module2name[reader], planner.DG.get_in_channels(reader)
            _, left = self._channels.get(name, (dim, torch.arange(size, device=device)))
            self._channels[name] = dim, without(left, numbers)
        attention, layers = planner._is_atten_group(group)
        if attention:
            heads = max(planner.num_heads[layer] for layer in layers)
            left_heads = len(without(torch.arange(channels) // (channels // heads), group[0].idxs).unique())
            if left_heads < heads:
                for layer in layers:
                    planner.num_heads[layer] = planner.out_channel_groups[layer] = left_heads

    def make_undo(self) -> Callable[[], None]:
        """A function that gives the model its present channels and parameters back, and the planner its state."""
        planner, restore = self.planner, make_structure_undo(self.planner.model)
        step, admm = planner.current_step, self.admm
        counts = (self._channels, planner.num_heads, planner.out_channel_groups)
        before = [dict(count) for count in counts]

        def undo() -> None:
            restore()
            planner.forget_groups(trace=True)
            planner.current_step, self.admm = step, admm
            for count, content in zip(counts, before, strict=True):
                count.clear()
                count.update(content)

        return undo

    @contextlib.contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        undo = self.make_undo()
        try:
            yield
        except BaseException:
            undo()
            raise

    @torch.no_grad()
    def _warn_of_undrawn(self, plan: Plan) -> None:
        """Warn if ADMM has not converged: the projection of W goes, and Z is that of W + U at the last dual update."""
        if (admm := self.admm) is None:
            return
        z = {parameter: admm.z[name] for name, parameter in self.planner.model.named_parameters() if name in admm.z}
        undrawn = removed = 0
        for coupling, gone in plan.losing():
            removed += int(gone.sum())
            undrawn += int((channel_scores(coupling.parts, coupling.channels, z)[gone] > 0).sum())
        residual = admm.residual()
        if undrawn or residual > LARGEST_RESIDUAL or admm.rho < admm.rho_max * (1 - 1e-6):
            _logger.warning(
                "ADMM has not converged (residual %.2f, rho %.3g of %.3g, %d of %d removed channels not drawn to 0): "
                "train for more epochs and set admm.epochs to their number, or raise admm.rho",
                residual,
                admm.rho,
                admm.rho_max,
                undrawn,
                removed,
            )


class ChosenGroup(tp.dependency.Group):
    """A group that a user may prune, at a time of their choice: it is then removed as the model is by then."""

    def __init__(self, target: ChannelTarget, removal: Removal) -> None:
        super().__init__()
        group, _ = group_of(target.planner.model, target.planner.DG, removal)
        self._group, self._DG = group.items, group._DG
        self._target, self._removal, self._step = target, removal, target.planner.current_step
        self._is_pruned = False

    def prune(self, idxs: Sequence[int] | None = None, record_history: bool = True) -> None:
        """Remove all channels of the group, or those of its root that ``idxs`` lists."""
        if self._is_pruned:
            raise InputError("prune: this group is pruned already")
        self._target.check_step(self._step)
        channels = self._removal.channels if idxs is None else tuple(int(i) for i in idxs)
        self._target.remove([replace(self._removal, channels=channels)])
        self._is_pruned = True
