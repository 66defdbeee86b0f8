"""What a run prunes, and how: by masks on weights here; a toolkit's door may bring another way."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import InputError
from .admm import ADMM, MasksOfAll
from .allocation import ALLOCATIONS, LayerAllocation
from .constants import dead_constants
from .gradual import Budget
from .layers import prunable_layers, refuse_transposed, tell_of_uncounted
from .sparsity import Filter, make_sparsity_set
from .state import State, copy_into

if TYPE_CHECKING:
    from ..config import PwoAConfig

__all__ = ["Masking", "Pruning"]


class Pruning(ABC):
    """The part of a `Compression` that depends on what is pruned.

    Attributes:
        layers: the layers to prune, by name.
        allocation: what each is to keep.
        masks: ``{layer: boolean mask}`` as of the last cut or the hard prune; empty where nothing is masked.
    """

    layers: dict[str, nn.Module]
    allocation: dict[str, LayerAllocation]
    masks: dict[str, Tensor]

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether the hard prune is behind."""

    @abstractmethod
    def begin(self) -> None:
        """A run begins: forget the last one.

        Raises:
            ValueError: the model cannot be pruned as it is now.
        """

    @abstractmethod
    def admm_problem(self) -> tuple[Mapping[str, Tensor], Mapping[str, Callable[[Tensor], Tensor]] | MasksOfAll]:
        """What `ADMM` is made of."""

    def cut(self, progress: float) -> None:
        """Set weights to 0 on the way to the hard prune (see `GradualConfig`).

        Args:
            progress: share of the gradual phase that is behind, in (0, 1).
        """
        raise NotImplementedError(f"{type(self).__name__} prunes at once; set gradual.epochs to 0")

    @abstractmethod
    def prune(self, images: Tensor, admm: ADMM | None) -> None:
        """The hard prune.

        Args:
            images: two of them, ``(2, C, H, W)``.
            admm: as training left it; None where there was none.
        """

    @abstractmethod
    def hold(self) -> None:
        """Called after every step: what is pruned stays so."""

    @abstractmethod
    def save(self, state: State) -> None:
        """Add what `resume` needs to a state."""

    @abstractmethod
    def resume(self, state: State) -> None:
        """Take the model, not yet its values, to where `save` left it.

        Raises:
            StateError: the state does not fit.
        """

    def kept_inputs(self) -> Mapping[str, tuple[int, Tensor]]:
        """Of layers that lost inputs in the hard prune: the dimension of their input, and the indices that are left."""
        return {}

    @abstractmethod
    def undo(self) -> None:
        """Give the model its structure back, after an error."""

    @abstractmethod
    def settle(self) -> None:
        """A run ended well: what `undo` would need may go."""


class Masking(Pruning):
    """Groups of weights are held at 0 by masks.

    Args:
        model: it is pruned in place.
        config: says which layers, how much, and in which groups.

    Attributes:
        sparsity_set: how weights are grouped.
        budget: how many are kept in all, and how that is spread.
        held: ``{parameter: boolean}``, False where the constants of dead filters are held at 0 after the hard prune, so
            that removing these filters changes nothing; filter granularity only.

    Raises:
        ValueError: the model or the config cannot be used.
    """

    def __init__(self, model: nn.Module, config: PwoAConfig) -> None:
        self.model = model
        self.layers = prunable_layers(model, config.include, config.exclude)
        tell_of_uncounted(model)
        self.sparsity_set = make_sparsity_set(config.granularity)
        refuse_transposed(self.layers, self.sparsity_set)
        # In a set with a fixed density (n:m) the total follows from the set.
        sparsity = config.sparsity if config.sparsity is not None else 1 - (self.sparsity_set.fixed_density or 0.0)
        self.budget = Budget(sparsity, self.sparsity_set, ALLOCATIONS[config.allocation])
        self._gradual = config.gradual_epochs > 0
        self.allocation = self._of_dense = self.budget.allocate(self._weights())
        self.masks = {}
        self._done = False
        self.held: dict[str, Tensor] = {}

    @property
    def done(self) -> bool:
        """Whether the last masks are there."""
        return self._done

    def _weight(self, name: str) -> nn.Parameter:
        return self.layers[name].get_parameter("weight")

    def _weights(self) -> dict[str, Tensor]:
        return {name: self._weight(name) for name in self.layers}

    def _mask_of(self, name: str) -> Callable[[Tensor], Tensor]:
        return partial(self.allocation[name].mask, self.sparsity_set)

    def begin(self) -> None:
        self.masks, self.held, self.allocation, self._done = {}, {}, self._of_dense, False
        frozen = [name for name in self.layers if not self._weight(name).requires_grad]
        if frozen:
            raise InputError(
                f"{', '.join(frozen[:3])}: the weight has requires_grad=False; set it to True, or exclude the layer"
            )

    def admm_problem(self) -> tuple[Mapping[str, Tensor], Mapping[str, Callable[[Tensor], Tensor]] | MasksOfAll]:
        return self._weights(), {name: self._mask_of(name) for name in self.layers}

    def cut(self, progress: float) -> None:
        self.masks = self.budget.masks(self._weights(), progress)
        self.hold()

    @torch.no_grad()
    def prune(self, images: Tensor, admm: ADMM | None) -> None:
        """The weights alone are projected, without the dual; what each layer keeps follows them in gradual pruning."""
        if self._gradual:
            self.allocation = self.budget.allocate(self._weights())
        for name in self.layers:
            self.masks[name] = self._mask_of(name)(self._weight(name))
        self._done = True
        if isinstance(self.sparsity_set, Filter):
            self.held = dead_constants(self.model, self.masks, images)

    @torch.no_grad()
    def hold(self) -> None:
        for name, mask in self.masks.items():
            self._weight(name).mul_(mask)
        for name, keep in self.held.items():
            self.model.get_parameter(name).mul_(keep)

    def save(self, state: State) -> None:
        state.add("mask", self.masks)
        state.add("held", self.held)
        state.facts["keep"] = {name: layer.keep for name, layer in self.allocation.items()}

    def resume(self, state: State) -> None:
        if masks := state.part("mask"):
            self._done = state.facts["status"]["phase"] == "fine-tune"
            self.masks = {name: torch.empty_like(self._weight(name), dtype=torch.bool) for name in self.layers}
            copy_into(self.masks, masks, "masks")
            keep: dict[str, int] = state.facts["keep"]
            self.allocation = {n: dataclasses.replace(layer, keep=keep[n]) for n, layer in self.allocation.items()}
            self.held = {
                name: keep.to(self.model.get_parameter(name).device) for name, keep in state.part("held").items()
            }

    def undo(self) -> None:
        """Nothing: parameters stay the same objects."""

    def settle(self) -> None:
        """Nothing is kept for `undo`."""
