"""`LightningEvaluator`: NNI's, mended for today's Lightning."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from ...errors import InputError, missing

try:
    import pytorch_lightning as pl
except ModuleNotFoundError as error:
    raise missing("LightningEvaluator", "pytorch_lightning (not lightning)", "lightning") from error

from nni.compression import LightningEvaluator as NNILightningEvaluator

from .optimizers import Task, check_optimizer, check_scheduler, patch_step


class LightningEvaluator(NNILightningEvaluator):
    """NNI's ``LightningEvaluator`` on today's Lightning.

    Differences: ``max_steps`` works like ``max_epochs``; tasks before an optimizer step see the gradients of that step
    instead of the last one's; ``configure_optimizers`` may return a plain scheduler in ``{"optimizer": ...,
    "lr_scheduler": ...}``; what NNI could not rebuild is refused with a cure.

    With ``strategy="ddp"`` every process runs the script, and all end with the same weights and masks. HSIC is then
    computed over each process's own batch. ``ddp_spawn`` and ``ddp_fork`` lose the compressors' state with the
    processes, and are refused.

    Args:
        trainer: made by ``nni.trace(pytorch_lightning.Trainer)(...)``; each training makes a new one by its arguments.
        data_module: made by ``nni.trace(...)`` of your class.
        dummy_input: NNI's.

    Raises:
        InputError: the strategy cannot be used.
        MissingPackageError: on import, without ``pytorch_lightning``.
    """

    def __init__(self, trainer: pl.Trainer, data_module: pl.LightningDataModule, dummy_input: Any = None) -> None:
        super().__init__(trainer, data_module, dummy_input)
        if type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher":
            raise InputError("trainer: masks do not come back from spawned processes; use strategy='ddp'")

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch in each process; None if the data module cannot tell before it is set up."""
        try:
            loader = self.data_module.train_dataloader()
            if not isinstance(loader, DataLoader):
                return None
            batches = len(loader)
        except Exception:  # a data module may do anything before its setup()
            return None
        trainer = self.trainer
        if trainer.world_size > 1:
            sampler = loader.sampler
            if not isinstance(sampler, (RandomSampler, SequentialSampler)) or loader.batch_size is None:
                return None
            images = math.ceil(len(sampler) / trainer.world_size)  # as DistributedSampler splits them
            batches = images // loader.batch_size if loader.drop_last else math.ceil(images / loader.batch_size)
        limit = trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return max(1, math.ceil(batches / int(trainer.accumulate_grad_batches)))

    def _init_optimizer_helpers(self, pure_model: pl.LightningModule) -> None:
        if not isinstance(pure_model, pl.LightningModule):
            raise InputError("model is not a pytorch_lightning.LightningModule (those of `lightning` are others)")
        configured = _as_nni_knows_it(pure_model.configure_optimizers())
        optimizers, schedulers = _parts(configured)
        for optimizer in optimizers:
            check_optimizer(optimizer, pure_model)
        for scheduler in schedulers:
            check_scheduler(scheduler)
        pure_model.configure_optimizers = lambda: configured
        try:
            super()._init_optimizer_helpers(pure_model)
        finally:
            del pure_model.configure_optimizers

    def patch_optimizer_step(self, before_step_tasks: list[Task], after_step_tasks: list[Task]) -> None:
        model: Any = self.model
        configure = model.configure_optimizers

        def patched(_: Any) -> Any:
            configured = configure()
            patch_step(_parts(configured)[0][0], before_step_tasks, after_step_tasks)
            return configured

        model.configure_optimizers = types.MethodType(patched, model)

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        trainer = self.trainer.trace_copy()
        lengths = {}  # finetune(): those of the user's trainer
        if max_steps is not None or max_epochs is not None:
            lengths = {"max_steps": -1 if max_steps is None else max_steps}
            lengths["max_epochs"] = -1 if max_epochs is None else max_epochs
        # No sanity steps of validation: forwards that no training step follows.
        trainer.trace_kwargs = {**trainer.trace_kwargs, **lengths, "num_sanity_val_steps": 0}
        trainer.get().fit(self.model, self.data_module)
        self.model.trainer = None


def _as_nni_knows_it(configured: Any) -> Any:
    """What ``configure_optimizers`` returned, in a form that NNI reads correctly."""
    if isinstance(configured, dict):
        configured = [configured]
    if isinstance(configured, (list, tuple)) and configured and isinstance(configured[0], dict):
        return [
            {**entry, "lr_scheduler": {"scheduler": entry["lr_scheduler"]}}
            if isinstance(entry.get("lr_scheduler"), LRScheduler)
            else dict(entry)
            for entry in configured
        ]
    return configured


def _parts(configured: Any) -> tuple[Sequence[Optimizer], Sequence[Any]]:
    """Optimizers and schedulers of the forms that NNI reads; it refuses others."""
    if isinstance(configured, Optimizer):
        return [configured], []
    if not isinstance(configured, (list, tuple)) or not configured:
        return [], []
    if isinstance(configured[0], (list, tuple)):
        return configured[0], configured[1]
    if isinstance(configured[0], dict):
        schedulers = [entry["lr_scheduler"].get("scheduler") for entry in configured if entry.get("lr_scheduler")]
        return [entry["optimizer"] for entry in configured], schedulers
    return configured, []
