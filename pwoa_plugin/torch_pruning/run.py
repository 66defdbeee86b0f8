"""A `Compression` that removes channels: what `PwoAGroupPruner.compress` and ``pwoa prune`` train by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .._random import seeded
from .._section import as_section
from .._weights import is_weighted
from ..config import ADMMConfig, ConfigError, PwoAConfig
from ..errors import InputError
from ..method.admm import Projections
from ..method.allocation import LayerAllocation
from ..method.batches import Batches
from ..method.layers import prunable_layers
from ..method.snapshot import Snapshot, StateError
from ..method.sparsity import find_sparsity_set
from ..method.targets import Target
from .graph import removals_from_json, removals_to_json

if TYPE_CHECKING:
    from .pruner import PwoAGroupPruner

__all__ = ["ChannelRemoval", "admm_of_a_loop", "images_of", "settings_of"]


def settings_of(config: PwoAConfig, model: nn.Module, given: Mapping[str, Any]) -> tuple[float, list[nn.Module]]:
    """The ratio and the layers left alone that a config asks for.

    Args:
        config: of the run.
        model: the network.
        given: what was given beside it, of what the config says; None where nothing was.

    Raises:
        ConfigError: it is no config of channels, or something is said twice.
    """
    if find_sparsity_set(config.granularity).backend != "channels":
        raise ConfigError(
            f"granularity={config.granularity!r} masks weights, with pwoa_plugin.PwoAPruner; here it is 'structured'"
        )
    if twice := [name for name, value in given.items() if value is not None]:
        raise ConfigError(
            f"{', '.join(twice)}: with a config, say it there (sparsity, allocation, include, exclude, admm; channels "
            "go at once)"
        )
    chosen = prunable_layers(model, config.include, config.exclude)
    ignored = [module for name, module in model.named_modules() if is_weighted(module) and name not in chosen]
    assert config.sparsity is not None  # the config's own check
    return config.sparsity, ignored


def admm_of_a_loop(given: ADMMConfig | Mapping[str, Any] | None) -> ADMMConfig:
    """What a user says of ADMM in a loop of their own.

    Raises:
        ValueError: it is something else, or says what the loop itself decides.
    """
    config, default = as_section(ADMMConfig, given, "admm"), ADMMConfig()
    for name in ("interval", "hsic", "optimizer", "schedule"):
        if getattr(config, name) != getattr(default, name):
            raise InputError(
                f"admm.{name}: in a loop of your own that is the loop's to decide, each update_regularizer() being a "
                "dual update; leave it out"
            )
    return config


def images_of(config: PwoAConfig, model: nn.Module) -> Tensor:
    """Two of the config's images, ``(2, C, H, W)``, on the model's device; no random state is used up."""
    parameter = next(model.parameters())
    with seeded(config.seed):
        batches = Batches(
            config.train_loader,
            batch_size=config.batch_size,
            device=parameter.device,
            dtype=parameter.dtype,
            pixel_range=config.pixel_range,
        )
        return batches.first(2)


class ChannelRemoval(Target):
    """Channels are drawn to 0 by group, and removed.

    Args:
        pruner: whose model it is.
        planned: the model's parameters as the dense weights would have them pruned.
    """

    def __init__(self, pruner: PwoAGroupPruner, planned: Mapping[str, Tensor]) -> None:
        self.pruner, self.masks = pruner, {}
        self._undo: Callable[[], None] | None = None
        model = pruner.model
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if is_weighted(module) and f"{name}.weight" in planned
        }
        self.allocation = {}
        for name, module in self.layers.items():
            shape = tuple(module.get_parameter("weight").shape)
            kept = planned[f"{name}.weight"].numel()
            same = kept == math.prod(shape)
            self.allocation[name] = LayerAllocation(
                shape, math.prod(shape), kept, "none of its channels go" if same else None
            )

    @property
    def done(self) -> bool:
        """Whether channels are removed."""
        return bool(self.pruner.own_removals)

    def begin(self, images: Tensor | None = None) -> None:
        self._undo = None
        if self.done:
            raise InputError("channels are removed already; make a new PwoAGroupPruner to prune on")

    def weights_and_projections(self) -> tuple[Mapping[str, Tensor], Projections]:
        return self.pruner.admm_problem()

    def prune(self, *, allocate: bool) -> None:
        """The weights alone are projected, without the dual; what the projection has at 0 is removed."""
        self._undo = self.pruner.remembered()
        self.pruner.use(self.admm)
        self.pruner.step()

    def student_channels(self) -> Mapping[str, tuple[int, Tensor]]:
        return self.pruner.inputs_left

    def hold(self) -> None:
        """Nothing: what is pruned is gone."""

    def state(self) -> Snapshot:
        return Snapshot(facts={"removals": removals_to_json(self.pruner.own_removals)})

    def load_state(self, saved: Snapshot) -> None:
        try:
            removals = removals_from_json(saved.facts.get("removals"))
            if removals:
                self._undo = self.pruner.remembered()
                self.pruner.load_pruning_history(removals_to_json(removals))
                self.pruner.current_step = self.pruner.iterative_steps
        except ValueError as error:
            raise StateError(f"the saved state is of another network ({error}); resume with the same model") from error

    def discard_undo(self) -> None:
        self._undo = None

    def undo(self) -> None:
        """Layers have their channels and their own parameters again."""
        if self._undo is not None:
            self._undo()
            self._undo = None
