"""What to prune: here, weights under masks; toolkits have targets of their own."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
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
        budgets: of each layer; layers that share a budget share its total.
        held: ``{parameter: boolean}``, False where constants of dead filters stay 0 after the hard prune, so that
            removing these filters changes nothing; only for sets that zero filters. None: not known yet.
        images: ``(2, C, H, W)``, to find these constants.
    """

    held: dict[str, Tensor] | None
    images: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        budgets: Mapping[str, Budget],
        allocation: dict[str, LayerAllocation],
    ) -> None:
        self.model, self.layers, self.budgets = model, layers, budgets
        self.allocation = self._of_dense = allocation
        self.masks, self.held, self.images, self._done = {}, None, None, False

    @property
    def done(self) -> bool:
        return self._done

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: layer.get_parameter("weight") for name, layer in self.layers.items()}

    def _parameter(self, name: str) -> nn.Parameter:
        return self.model.get_parameter(name)

    def _by_budget(self) -> Iterable[tuple[Budget, dict[str, nn.Parameter]]]:
        shared: dict[Budget, dict[str, nn.Parameter]] = {}
        for name, weight in self._weights().items():
            shared.setdefault(self.budgets[name], {})[name] = weight
        return shared.items()

    def _mask(self, name: str, weight: Tensor) -> Tensor:
        return self.allocation[name].mask(self.budgets[name].sparsity_set, weight)

    def begin(self, images: Tensor | None = None) -> None:
        self._forget()
        self.images = images
        frozen = [name for name, weight in self._weights().items() if not weight.requires_grad]
        if frozen:
            raise InputError(
                f"{', '.join(frozen[:3])}: the weight has requires_grad=False; set it to True, or exclude the layer"
            )

    def _forget(self) -> None:
        self.masks, self.held, self.allocation, self._done = {}, None, self._of_dense, False

    def undo(self) -> None:
        self._forget()

    def weights_and_projections(self) -> tuple[Mapping[str, Tensor], Projections]:
        return self._weights(), {name: partial(self._mask, name) for name in self.layers}

    def cut(self, progress: float) -> None:
        self.masks = {
            name: mask
            for budget, weights in self._by_budget()
            for name, mask in budget.masks(weights, progress).items()
        }
        self.hold()

    @torch.no_grad()
    def prune(self, *, allocate: bool) -> None:
        if allocate:
            for budget, weights in self._by_budget():
                self.allocation = self.allocation | budget.allocate(weights)
        self._make_masks()
        self._done, self.held = True, None

    def _make_masks(self) -> None:
        self.masks = {name: self._mask(name, weight) for name, weight in self._weights().items()}

    @torch.no_grad()
    def hold(self) -> None:
        self._bake()
        if self._done and self.held is None and self.images is not None:
            self.held = self._constants(self.images)
        for name, keep in (self.held or {}).items():
            parameter = self._parameter(name)
            parameter.mul_(keep.to(parameter.device))

    def _bake(self) -> None:
        weights = self._weights()
        for name, mask in self.masks.items():
            weights[name].mul_(mask)

    def _constants(self, images: Tensor) -> dict[str, Tensor]:
        masks = {name: mask for name, mask in self.masks.items() if self.budgets[name].sparsity_set.zeroes_filters}
        return dead_constants(self.model, masks, images) if masks else {}

    def state(self) -> Snapshot:
        facts = {"done": self._done, "keep": {name: layer.keep for name, layer in self.allocation.items()}}
        return Snapshot.of(facts, mask=Snapshot(self.masks), held=Snapshot(self.held or {}))

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
    refuse_transposed(layers, sparsity_set)
    budget = Budget(sparsity, sparsity_set, ALLOCATIONS[allocation])
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    return MaskTarget(model, layers, dict.fromkeys(layers, budget), budget.allocate(weights))
