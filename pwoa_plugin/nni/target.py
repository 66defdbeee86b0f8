"""What NNI's pruners prune, as a target of our phases: parameters that wrappers own, under the wrappers' masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from ..method.gradual import Budget
from ..method.snapshot import Snapshot
from ..method.targets import MaskTarget, Target
from .config_list import PrunedParameter
from .wrappers import bake_masks, live_parameter, read_parameters

__all__ = ["SpaceTarget"]

Spaces = dict[str, dict[str, PruningTargetSpace]]  # by module and parameter


class SpaceTarget(Target):
    """Parameters of wrapped modules, each entry of a config_list with its own budget.

    Args:
        model: the network whose layers NNI wraps.
        parameters: what to prune, by name.
        spaces: NNI's spaces of these parameters, and of others whose masks are aligned with theirs (biases).
        reference: the same network without wrappers; only its structure matters.

    Attributes:
        parameters: as given, with the allocation of the last hard prune.
        images: two images of the training, ``(2, C, H, W)``; the constants of dead filters are found with them.
        scheduled: whether a scheduler of NNI's ramps the sparsity that ADMM projects to.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, PrunedParameter], spaces: Spaces, *, reference: nn.Module
    ) -> None:
        self.model, self.parameters = model, dict(parameters)
        self._spaces, self._reference = spaces, reference
        self.layers = {name: model.get_submodule(parameter.module) for name, parameter in parameters.items()}
        self._wrappers = {space._wrapper for of_module in spaces.values() for space in of_module.values()}
        self.images: Tensor | None = None
        self.scheduled = False
        self._done = False
        # Constants of dead filters: False where a parameter stays 0. None until they are known.
        self._held: dict[str, Tensor] | None = None
        self._before: tuple[bool, dict[str, Tensor] | None, dict[str, PrunedParameter]] | None = None

    @property
    def done(self) -> bool:
        return self._done

    @property
    def allocation(self) -> dict[str, LayerAllocation]:  # type: ignore[override]
        return {name: parameter.allocation for name, parameter in self.parameters.items()}

    @property
    def masks(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: self._space(name).mask for name in self.parameters}

    def _space(self, name: str) -> PruningTargetSpace:
        parameter = self.parameters[name]
        return self._spaces[parameter.module][parameter.name]

    # -- a run -----------------------------------------------------------------------------------

    def begin(self, images: Tensor | None = None) -> None:
        self._before = self._done, self._held, dict(self.parameters)
        self._done, self._held, self.images = False, None, images
        for spaces in self._spaces.values():
            for space in spaces.values():
                if space.mask is not None:
                    space.mask = torch.ones_like(space.mask)

    def undo(self) -> None:
        if self._before is not None:
            self._done, self._held, self.parameters = self._before
        self.discard_undo()

    def discard_undo(self) -> None:
        self._before = None

    def weights_and_projections(self) -> tuple[Mapping[str, Tensor], Projections]:
        weights = {name: self._space(name).target for name in self.parameters}
        return weights, {name: partial(self._mask_now, name) for name in self.parameters}

    def _mask_now(self, name: str, value: Tensor) -> Tensor:
        parameter = self.parameters[name]
        share = self._space(name).sparse_ratio / parameter.ratio if self.scheduled else 1.0
        return parameter.mask(value, share)

    def end_scheduler(self) -> None:
        """Set NNI's ratios, which a scheduler ramps, back to the full ones."""
        self.scheduled = False
        for name, parameter in self.parameters.items():
            self._space(name).sparse_ratio = parameter.ratio

    @torch.no_grad()
    def cut(self, progress: float) -> None:
        for budget, weights in self._by_budget():
            for name, mask in budget.masks(weights, progress).items():
                self._space(name).mask = mask.to(weights[name].dtype)
        self.hold()

    @torch.no_grad()
    def prune(self, *, allocate: bool) -> None:
        if allocate:
            for budget, weights in self._by_budget():
                self._allocate(budget.allocate(weights))
        for module, masks in self.make_masks(self.values()).items():
            for name, mask in masks.items():
                self._spaces[module][name].mask = mask
        self.count_as_pruned()

    def count_as_pruned(self) -> None:
        """Take the masks as they are now for those of the hard prune."""
        self._done, self._held = True, None

    @torch.no_grad()
    def hold(self) -> None:
        """Keep at 0 what is pruned, in the wrappers' own parameters, and later the constants of dead filters."""
        bake_masks(self._wrappers)
        if self._done and self._held is None:
            self._held = self._constants()
        for name, keep in (self._held or {}).items():
            parameter = live_parameter(self.model, name)
            parameter.mul_(keep.to(parameter.device))

    def adopt(self, target: MaskTarget) -> None:
        """Take over what was pruned in the unwrapped model: weights, masks and constants."""
        read_parameters(self._wrappers)
        self._allocate(target.allocation)
        for name, mask in target.masks.items():
            space = self._space(name)
            setattr(space._wrapper, space._mask_name, mask.to(space.target.dtype))  # on the mask's own device
        self._done, self._held = True, dict(target.held)

    def _allocate(self, allocation: Mapping[str, LayerAllocation]) -> None:
        for name, layer in allocation.items():
            self.parameters[name] = replace(self.parameters[name], allocation=layer)

    def _by_budget(self) -> Iterator[tuple[Budget, dict[str, Tensor]]]:
        shared: dict[Budget, dict[str, Tensor]] = {}
        for name, parameter in self.parameters.items():
            shared.setdefault(parameter.budget, {})[name] = self._space(name).target
        yield from shared.items()

    def _constants(self) -> dict[str, Tensor] | None:
        """Constants of the filters that are dead by our masks; None before the first batch."""
        masks = {
            parameter.module: self._space(name).mask
            for name, parameter in self.parameters.items()
            if parameter.sparsity_set.zeroes_filters and parameter.name == "weight" and is_weighted(self.layers[name])
        }
        if not masks:
            return {}
        return None if self.images is None else dead_constants(self._reference, masks, self.images)

    # -- NNI's masks -----------------------------------------------------------------------------

    def values(self) -> dict[str, dict[str, Tensor]]:
        """The parameters to prune, ``{module: {parameter: tensor}}``: the weights alone, without ADMM's dual."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.parameters.items():
            found.setdefault(parameter.module, {})[parameter.name] = self._space(name).target.detach()
        return found

    def make_masks(self, values: Mapping[str, Mapping[str, Tensor]]) -> Masks:
        """0/1 masks of the projections of ``values``, and of the parameters that are aligned with them."""
        masks: Masks = {}
        for parameter in self.parameters.values():
            value = values[parameter.module][parameter.name]
            masks.setdefault(parameter.module, {})[parameter.name] = parameter.mask(value).to(value.dtype)
        for module, spaces in self._spaces.items():
            for name, space in spaces.items():
                aligned = self._aligned(module, space, masks) if space.align and space.target is not None else None
                if aligned is not None:
                    own = masks.setdefault(module, {}).get(name)
                    masks[module][name] = aligned if own is None else own * aligned
        return masks

    def _aligned(self, name: str, space: PruningTargetSpace, masks: Masks) -> Tensor | None:
        """As NNI does: a mask follows the pruned slices of another, a bias above all those of its filters."""
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

    def state(self) -> Snapshot:
        raise NotImplementedError("an evaluator's training cannot be resumed")

    def load_state(self, saved: Snapshot) -> None:
        raise NotImplementedError("an evaluator's training cannot be resumed")
