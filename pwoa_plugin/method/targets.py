"""What to prune: here, weights under masks; toolkits have targets of their own."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InputError
from .admm import ADMM, Projections
from .allocation import ALLOCATIONS, LayerAllocation
from .constants import dead_constants
from .gradual import Budget
from .layers import prunable_layers, refuse_transposed
from .snapshot import Snapshot, copy_into
from .sparsity import make_sparsity_set


class Target(ABC):
    """What to prune, and how. Phases decide when: they call `cut`; their `Schedule` calls `prune` and `hold`.

    Attributes:
        layers: the layers to prune, by name.
        allocation: what each layer keeps.
        masks: ``{layer: boolean mask}`` of the last cut or the hard prune; empty if nothing is masked.
        admm: the ADMM that moves the weights; None in other phases.
    """

    admm: ADMM | None = None
    layers: dict[str, nn.Module]
    allocation: dict[str, LayerAllocation]
    masks: dict[str, Tensor]

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether the hard prune has happened."""

    @abstractmethod
    def begin(self, images: Tensor | None = None) -> None:
        """Begin a run, and forget the last one; InputError if the model cannot be pruned in its current state.

        ``images`` ``(2, C, H, W)`` are for trial forwards.
        """

    @abstractmethod
    def weights_and_projections(self) -> tuple[Mapping[str, Tensor], Projections]:
        """The arguments of `ADMM`: the weights, and the masks of their projections."""

    def cut(self, progress: float) -> None:
        """Set weights to 0 after a share ``progress``, in (0, 1), of the gradual phase (see `GradualPhase`)."""
        raise NotImplementedError(f"{type(self).__name__} prunes at once; set gradual.epochs to 0")

    @abstractmethod
    def prune(self, *, allocate: bool) -> None:
        """The hard prune: project the weights, without ADMM's dual; ``allocate`` anew by the current weights or not."""

    def hold(self) -> None:  # noqa: B027 (optional)
        """Keep what is pruned at 0; called after every step."""

    def student_channels(self) -> Mapping[str, tuple[int, Tensor]]:
        """Of layers that lost inputs: the dimension of their input, and the indices that are left."""
        return {}

    @abstractmethod
    def state(self) -> Snapshot:
        """For `load_state`."""

    @abstractmethod
    def load_state(self, saved: Snapshot) -> None:
        """Restore the model's structure (not its values) as of `state`; StateError if it does not fit."""

    def undo(self) -> None:  # noqa: B027 (optional)
        """After an error: restore the model's structure."""

    def discard_undo(self) -> None:  # noqa: B027 (optional)
        """After success: drop what `undo` needs."""


class MaskTarget(Target):
    """Groups of weights that masks hold at 0.

    Attributes:
        held: ``{parameter: boolean}``, False where constants of dead filters stay 0 after the hard prune, so that
            removing these filters changes nothing; only for sets that zero filters.

    Raises:
        InputError: the layers cannot be pruned in this set or to this sparsity.
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], budget: Budget) -> None:
        self.model, self.layers, self.budget = model, layers, budget
        refuse_transposed(layers, budget.sparsity_set)
        self.allocation = self._of_dense = budget.allocate(self._weights())
        self.masks: dict[str, Tensor] = {}
        self.held: dict[str, Tensor] = {}
        self._images: Tensor | None = None
        self._done = False

    @property
    def done(self) -> bool:
        return self._done

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: layer.get_parameter("weight") for name, layer in self.layers.items()}

    def _mask_of(self, name: str) -> Callable[[Tensor], Tensor]:
        return partial(self.allocation[name].mask, self.budget.sparsity_set)

    def begin(self, images: Tensor | None = None) -> None:
        self.undo()
        self._images = images
        frozen = [name for name, weight in self._weights().items() if not weight.requires_grad]
        if frozen:
            raise InputError(
                f"{', '.join(frozen[:3])}: the weight has requires_grad=False; set it to True, or exclude the layer"
            )

    def undo(self) -> None:
        self.masks, self.held, self.allocation, self._done = {}, {}, self._of_dense, False

    def weights_and_projections(self) -> tuple[Mapping[str, Tensor], Projections]:
        return self._weights(), {name: self._mask_of(name) for name in self.layers}

    def cut(self, progress: float) -> None:
        self.masks = self.budget.masks(self._weights(), progress)
        self.hold()

    @torch.no_grad()
    def prune(self, *, allocate: bool) -> None:
        weights = self._weights()
        if allocate:
            self.allocation = self.budget.allocate(weights)
        self.masks = {name: self._mask_of(name)(weight) for name, weight in weights.items()}
        self._done = True
        if self.budget.sparsity_set.zeroes_filters and self._images is not None:
            self.held = dead_constants(self.model, self.masks, self._images)

    @torch.no_grad()
    def hold(self) -> None:
        weights = self._weights()
        for name, mask in self.masks.items():
            weights[name].mul_(mask)
        for name, keep in self.held.items():
            self.model.get_parameter(name).mul_(keep)

    def state(self) -> Snapshot:
        keep = {name: layer.keep for name, layer in self.allocation.items()}
        return Snapshot.of({"done": self._done, "keep": keep}, mask=Snapshot(self.masks), held=Snapshot(self.held))

    def load_state(self, saved: Snapshot) -> None:
        if masks := saved.part("mask").tensors:
            self._done = bool(saved.facts["done"])
            self.masks = {n: torch.empty_like(weight, dtype=torch.bool) for n, weight in self._weights().items()}
            copy_into(self.masks, masks, "masks")
            keep: dict[str, int] = saved.facts["keep"]
            self.allocation = {n: dataclasses.replace(layer, keep=keep[n]) for n, layer in self.allocation.items()}
            held = saved.part("held").tensors
            self.held = {name: kept.to(self.model.get_parameter(name).device) for name, kept in held.items()}


def mask_target(
    model: nn.Module,
    sparsity: float | None,
    *,
    granularity: str = "unstructured",
    allocation: str = "uniform",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> MaskTarget:
    """The target for fields of `PwoAConfig`; InputError if the model has no layers for them."""
    sparsity_set = make_sparsity_set(granularity)
    if sparsity is None:  # n:m fixes it
        sparsity = 1 - (sparsity_set.fixed_density or 0.0)
    layers = prunable_layers(model, include, exclude)
    return MaskTarget(model, layers, Budget(sparsity, sparsity_set, ALLOCATIONS[allocation]))
