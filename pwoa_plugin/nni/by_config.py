"""`PwoAPruner` by a `PwoAConfig`: our own trainer prunes the unwrapped model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .. import _ranks
from .._random import seeded
from ..config import PwoAConfig
from ..errors import InputError
from ..method.callback import Callback, check_callbacks
from ..method.phases import Phase
from ..method.targets import MaskTarget
from ..method.trainer import Trainer
from .config_list import PrunedParameter
from .entries import register_settings
from .target import SpaceTarget


class ByConfig:
    """A run of our `Trainer`, and what NNI's books need to know of it.

    Attributes:
        entries: a config_list of the layers that it prunes.
        parameters: their weights by name.
        loss: the trainer's; a fused training continues with it.
    """

    def __init__(self, model: nn.Module, config: PwoAConfig, callbacks: Sequence[Callback]) -> None:
        self.trainer, self._callbacks = Trainer(model, config), check_callbacks(callbacks)
        self.loss = self.trainer.loss
        assert isinstance(self.trainer.target, MaskTarget)
        self._target = self.trainer.target
        register_settings(self.trainer.network)
        allocation = self._target.allocation
        self.parameters = {
            name: PrunedParameter(name, "weight", layer, self._target.budgets[name])
            for name, layer in allocation.items()
        }
        dense = sum(layer.weights for layer in allocation.values())
        kept = sum(layer.weights * layer.density for layer in allocation.values())
        entry = {"op_names": list(allocation), "target_names": ["weight"], "granularity": [1]}
        # NNI gets the total ratio; what each layer keeps is in `parameters`.
        self.entries: list[dict[str, Any]] = [entry | {"sparse_ratio": 1 - kept / dense}]

    def run(self, target: SpaceTarget) -> None:
        """Train and prune the model; ``target`` then holds its masks."""
        callbacks = list(self._callbacks)
        if self.trainer.config.progress and _ranks.is_main():
            from ..progress import default_progress

            callbacks.append(default_progress())
        with seeded(self.trainer.config.seed):
            self.trainer.fit(callbacks)
        target.adopt(self._target)

    def phases(self, *_: Any, **__: Any) -> list[Phase]:
        """Refused: an evaluator only fine-tunes what `run` has pruned."""
        raise InputError("a PwoAConfig's run trains by itself; call PwoAPruner's compress() before the others'")
