"""How runs that remove channels are built, written and read."""

from __future__ import annotations

from torch import nn

from ..backends import Backend, Saved
from ..config import PwoAConfig
from ..method.trainer import Trainer
from ..runs.cost import cost_report
from ..runs.folder import RunFolder
from .pruner import PwoAGroupPruner
from .saving import load_pruned, save_pruned
from .target import ChannelTarget


class ChannelBackend(Backend):
    """Channels that Torch-Pruning removes."""

    def build(self, model: nn.Module, config: PwoAConfig) -> Trainer:
        trainer = PwoAGroupPruner(model, config=config).run
        assert trainer is not None
        return trainer

    def save(self, trainer: Trainer, folder: RunFolder) -> Saved:
        assert isinstance(trainer.target, ChannelTarget)
        save_pruned(trainer.target.planner, folder.pruned)
        cost = cost_report(trainer.teacher, trainer.model, trainer.batches.first(1))
        kept = {name: module.get_parameter("weight").numel() for name, module in trainer.target.layers.items()}
        return Saved(kept, cost.to_dict())

    def is_saved(self, folder: RunFolder) -> bool:
        return folder.pruned.exists()

    def load(self, model: nn.Module, folder: RunFolder) -> nn.Module:
        return load_pruned(model, folder.pruned)
