"""Which toolkit prunes in which kind of sparsity set: how a run is built, written and read. One line a toolkit."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn

from ._files import write_tensors
from .config import ConfigError, PwoAConfig
from .masks import check_masks, load_masks, save_masks
from .method.sparsity import find_sparsity_set
from .method.trainer import Trainer
from .models import load_checkpoint
from .runs.folder import RunFolder


@dataclass(frozen=True)
class Saved:
    """What a backend wrote.

    Attributes:
        kept: weights left, by layer.
        cost: before and after, JSON-ready, where the network got smaller; else None.
    """

    kept: dict[str, int]
    cost: dict[str, Any] | None = None


class Backend(ABC):
    """How runs in one kind of sparsity set are built, written and read."""

    @abstractmethod
    def build(self, model: nn.Module, config: PwoAConfig) -> Trainer:
        """The trainer of a run.

        Raises:
            InputError: the model or the config cannot be used.
        """

    @abstractmethod
    def save(self, trainer: Trainer, folder: RunFolder) -> Saved:
        """Write the pruned network into a run's folder."""

    @abstractmethod
    def is_saved(self, folder: RunFolder) -> bool:
        """Whether `save` has written all its files."""

    @abstractmethod
    def load(self, model: nn.Module, folder: RunFolder) -> nn.Module:
        """The pruned network.

        Args:
            model: a fresh network of the run's architecture; it may be changed.
            folder: of the run.

        Raises:
            InputError: a file is damaged, or of another architecture.
        """


class MaskBackend(Backend):
    """Weights under masks; needs no toolkit."""

    def build(self, model: nn.Module, config: PwoAConfig) -> Trainer:
        return Trainer(model, config)

    def save(self, trainer: Trainer, folder: RunFolder) -> Saved:
        save_masks({name: {"weight": mask} for name, mask in trainer.masks.items()}, folder.masks)
        write_tensors(folder.pruned, trainer.model.state_dict(), {"format": "pt"})
        return Saved({name: int(mask.sum()) for name, mask in trainer.masks.items()})

    def is_saved(self, folder: RunFolder) -> bool:
        return folder.pruned.exists() and folder.masks.exists()

    def load(self, model: nn.Module, folder: RunFolder) -> nn.Module:
        load_checkpoint(model, folder.pruned)
        masks = load_masks(folder.masks)
        check_masks(model, masks)
        for name, targets in masks.items():
            for target, mask in targets.items():
                if model.get_submodule(name).get_parameter(target)[mask == 0].any():
                    raise ConfigError(
                        f"{folder.pruned}: {name}.{target} is not 0 where {folder.masks.name} prunes it; prune again"
                    )
        return model


#: Backends by the name that sparsity sets have for them: a module of this package, and the class in it.
BACKENDS: dict[str, str] = {"masks": "backends:MaskBackend", "channels": "torch_pruning.backend:ChannelBackend"}


def backend_of(config: PwoAConfig) -> Backend:
    """The backend of a config's granularity; its toolkit is imported now."""
    module, _, name = BACKENDS[find_sparsity_set(config.granularity).backend].partition(":")
    made: Backend = getattr(importlib.import_module(f".{module}", __package__), name)()
    return made
