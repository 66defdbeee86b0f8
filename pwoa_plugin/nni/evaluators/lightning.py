"""`LightningEvaluator`: NNI's, mended for today's Lightning."""

from __future__ import annotations

import math
import types
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from ...errors import InputError, MissingPackageError

try:
    import pytorch_lightning as pl
except ModuleNotFoundError as error:
    raise MissingPackageError(
        'LightningEvaluator needs pytorch_lightning (not `lightning`): pip install "pwoa-plugin[lightning]"',
        name="pytorch_lightning",
    ) from error

from nni.common import is_traceable
from nni.compression import LightningEvaluator as NNILightningEvaluator

from .optimizers import Task, check_optimizer, check_scheduler, patch_step

__all__ = ["LightningEvaluator"]


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
        InputError: trainer or data module are not traced, or the strategy cannot be used.
        MissingPackageError: on import, without ``pytorch_lightning``.
    """

    def __init__(self, trainer: pl.Trainer, data_module: pl.LightningDataModule, dummy_input: Any = None) -> None:
        kinds = {"trainer": (trainer, pl.Trainer), "data_module": (data_module, pl.LightningDataModule)}
        for name, (given, kind) in kinds.items():
            if not isinstance(given, kind) or not is_traceable(given, must_be_instance=True):
                raise InputError(
                    f"{name} is not a traced pytorch_lightning.{kind.__name__} (classes of the package `lightning` are "
                    f"others); make it by nni.trace({kind.__name__})(...)"
                )
        launcher = getattr(trainer.strategy, "launcher", None)
        if type(launcher).__name__ == "_MultiProcessingLauncher":
            raise InputError("trainer: masks do not come back from spawned processes; use strategy='ddp'")
        super().__init__(trainer, data_module, dummy_input)

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
        for optimizer, scheduler in _pairs(configured):
            if optimizer is not None:
                check_optimizer(optimizer, pure_model)
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
            optimizer = next(optimizer for optimizer, _ in _pairs(configured) if optimizer is not None)
            patch_step(optimizer, before_step_tasks, after_step_tasks)
            return configured

        model.configure_optimizers = types.MethodType(patched, model)

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        trainer = self.trainer.trace_copy()
        lengths = {"max_steps": -1 if max_steps is None else max_steps, "max_epochs": max_epochs}
        if max_steps is None and max_epochs is None:  # finetune(): the length is the user's trainer's
            lengths = {}
        elif max_epochs is None:
            lengths["max_epochs"] = -1
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


def _pairs(configured: Any) -> list[tuple[Optimizer | None, Any]]:
    """Optimizers and schedulers, whatever form ``configure_optimizers`` gives them."""
    if isinstance(configured, Optimizer):
        return [(configured, None)]
    if not isinstance(configured, (list, tuple)) or not configured:
        return []  # NNI refuses it
    if isinstance(configured[0], (list, tuple)):
        optimizers, schedulers = configured
        return [(optimizer, None) for optimizer in optimizers] + [(None, _scheduler(given)) for given in schedulers]
    if isinstance(configured[0], dict):
        return [(entry["optimizer"], _scheduler(entry.get("lr_scheduler"))) for entry in configured]
    return [(optimizer, None) for optimizer in configured]


def _scheduler(given: Any) -> Any:
    return given.get("scheduler") if isinstance(given, dict) else given
