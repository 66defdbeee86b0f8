"""Backends: how to build, save and load a run, by the toolkit that prunes. One line per toolkit in ``BACKENDS``."""

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
    """What a backend wrote."""

    kept: dict[str, int]  # weights left, by layer
    cost: dict[str, Any] | None = None  # before and after, JSON-ready, if the network got smaller


class Backend(ABC):
    """How to build, save and load runs of some sparsity sets."""

    @abstractmethod
    def build(self, model: nn.Module, config: PwoAConfig) -> Trainer:
        """The trainer of a run; InputError if the model or the config cannot be used."""

    @abstractmethod
    def save(self, trainer: Trainer, folder: RunFolder) -> Saved:
        """Write the pruned network into a run's folder."""

    @abstractmethod
    def is_saved(self, folder: RunFolder) -> bool:
        """Whether `save` has written all its files."""

    @abstractmethod
    def load(self, model: nn.Module, folder: RunFolder) -> nn.Module:
        """The pruned network, made of ``model`` or from scratch; InputError if a file does not fit or is damaged.

        ``model`` is a fresh network of the run's architecture, and may be changed.
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
        masks = check_masks(model, load_masks(folder.masks))
        for name, targets in masks.items():
            for target, mask in targets.items():
                if model.get_submodule(name).get_parameter(target)[mask == 0].any():
                    raise ConfigError(
                        f"{folder.pruned}: {name}.{target} is not 0 where {folder.masks.name} prunes it; prune again"
                    )
        return model


#: By the sparsity sets' name for them: a module of this package, and the class in it.
BACKENDS: dict[str, str] = {"masks": "backends:MaskBackend", "channels": "torch_pruning.backend:ChannelBackend"}


def backend_of(config: PwoAConfig) -> Backend:
    """The backend for a config's granularity; imports its toolkit."""
    module, _, name = BACKENDS[find_sparsity_set(config.granularity).backend].partition(":")
    made: Backend = getattr(importlib.import_module(f".{module}", __package__), name)()
    return made
