"""What NNI's pruners prune, as a target of our phases: parameters that wrappers own, under the wrappers' masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from nni.compression.base.target_space import PruningTargetSpace
from torch import Tensor, nn

from .._weights import is_weighted
from ..masks import Masks
from ..method.admm import Projections
from ..method.allocation import LayerAllocation
from ..method.constants import dead_constants, links
from ..method.targets import MaskTarget
from .config_list import PrunedParameter
from .wrappers import bake_masks, live_parameter, read_parameters


class SpaceTarget(MaskTarget):
    """Parameters of wrapped modules, each entry of a config_list with its own budget.

    Args:
        model: the network whose layers NNI wraps.
        parameters: what to prune, by name.
        spaces: NNI's spaces by module and parameter: of these parameters, and of others that are aligned (biases).
        reference: the same network without wrappers; only its structure matters.

    Attributes:
        images: of the first batch, for the constants of dead filters.
        scheduled: whether a scheduler of NNI's ramps the sparsity that ADMM projects to.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, PrunedParameter],
        spaces: dict[str, dict[str, PruningTargetSpace]],
        *,
        reference: nn.Module,
    ) -> None:
        self.parameters, self._spaces, self._reference = parameters, spaces, reference
        self._wrappers = {space._wrapper for of_module in spaces.values() for space in of_module.values()}
        self.scheduled = False
        self._before: tuple[bool, dict[str, Tensor] | None, dict[str, LayerAllocation]] | None = None
        super().__init__(
            model,
            {name: model.get_submodule(parameter.module) for name, parameter in parameters.items()},
            {name: parameter.budget for name, parameter in parameters.items()},
            {name: parameter.allocation for name, parameter in parameters.items()},
        )

    @property
    def masks(self) -> dict[str, Tensor]:
        return {name: self._space(name).mask for name in self.parameters}

    @masks.setter
    def masks(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            self._space(name).mask = mask

    def _space(self, name: str) -> PruningTargetSpace:
        parameter = self.parameters[name]
        return self._spaces[parameter.module][parameter.name]

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: self._space(name).target for name in self.parameters}

    def _parameter(self, name: str) -> nn.Parameter:
        return live_parameter(self.model, name)

    # -- a run -----------------------------------------------------------------------------------

    def begin(self, images: Tensor | None = None) -> None:
        self._before = self._done, self.held, self.allocation
        super().begin(images)
        for spaces in self._spaces.values():
            for space in spaces.values():
                if space.mask is not None:
                    space.mask = torch.ones_like(space.mask)

    def undo(self) -> None:
        if self._before is not None:
            self._done, self.held, self.allocation = self._before

    def end(self) -> None:
        """After a run: set NNI's ratios, which a scheduler ramps, back to the full ones."""
        self.scheduled, self._before = False, None
        for name, budget in self.budgets.items():
            self._space(name).sparse_ratio = budget.sparsity

    def weights_and_projections(self) -> tuple[Mapping[str, Tensor], Projections]:
        return self._weights(), {name: partial(self._mask_now, name) for name in self.parameters}

    def _mask_now(self, name: str, value: Tensor) -> Tensor:
        """The mask at the ratio that a scheduler has reached; n:m has no ramp: any ratio above 0 is the full one."""
        final, budget = self.allocation[name], self.budgets[name]
        share = self._space(name).sparse_ratio / budget.sparsity if self.scheduled else 1.0
        if share <= 0:
            return torch.ones_like(value, dtype=torch.bool)
        if budget.sparsity_set.fixed_density is None:
            final = replace(final, keep=final.groups - round((final.groups - final.keep) * min(share, 1.0)))
        return final.mask(budget.sparsity_set, value)

    def _make_masks(self) -> None:
        for module, masks in self.make_masks().items():
            for name, mask in masks.items():
                self._spaces[module][name].mask = mask

    def count_as_pruned(self) -> None:
        """Treat the current masks as those of the hard prune."""
        self._done, self.held = True, None

    def _bake(self) -> None:
        bake_masks(self._wrappers)

    def adopt(self, target: MaskTarget) -> None:
        """Take over what was pruned in the unwrapped model: weights, masks and constants."""
        read_parameters(self._wrappers)
        for name, mask in target.masks.items():
            space = self._space(name)
            setattr(space._wrapper, space._mask_name, mask.to(space.target.dtype))  # on the mask's own device
        self.allocation, self._done, self.held = target.allocation, True, target.held

    def _constants(self, images: Tensor) -> dict[str, Tensor]:
        masks = {
            parameter.module: self._space(name).mask
            for name, parameter in self.parameters.items()
            if parameter.budget.sparsity_set.zeroes_filters
            and parameter.name == "weight"
            and is_weighted(self.layers[name])
        }
        return dead_constants(self._reference, masks, images) if masks else {}

    # -- NNI's masks -----------------------------------------------------------------------------

    def make_masks(self) -> Masks:
        """0/1 masks of the projections of the weights, without ADMM's dual, and of parameters aligned with them."""
        masks: Masks = {}
        for name, parameter in self.parameters.items():
            weight = self._space(name).target
            masks.setdefault(parameter.module, {})[parameter.name] = self._mask(name, weight).to(weight.dtype)
        for module, spaces in self._spaces.items():
            for target, space in spaces.items():
                aligned = self._aligned(module, space, masks) if space.align and space.target is not None else None
                if aligned is not None:
                    own = masks.setdefault(module, {}).get(target)
                    masks[module][target] = aligned if own is None else own * aligned
        return masks

    def _aligned(self, name: str, space: PruningTargetSpace, masks: Masks) -> Tensor | None:
        """As in NNI, a mask follows the pruned slices of another: above all a bias those of its filters."""
        align = space.align
        source = masks.get(align["module_name"] or name, {}).get(align["target_name"])
        if source is None:
            return None
        dims = [d % source.dim() for d in align["dims"]]
        module = self.model.get_submodule(align["module_name"] or name)
        if is_weighted(module) and dims == [0] and align["target_name"] == "weight":
            alive = links(module, source != 0).any(2).flatten()  # a transposed convolution's filters lie elsewhere
        else:
            kept = (source != 0).sum([d for d in range(source.dim()) if d not in dims]) if source.dim() > 1 else source
            alive = kept != 0
        return alive.to(space.target.dtype)
