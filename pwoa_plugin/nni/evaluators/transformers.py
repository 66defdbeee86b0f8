"""`TransformersEvaluator`: NNI's, mended for today's Transformers."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import nni
from torch import Tensor, nn

from ...errors import missing

try:
    from transformers import Trainer
except ModuleNotFoundError as error:
    raise missing("TransformersEvaluator", "transformers and accelerate", "transformers") from error

from nni.compression import TransformersEvaluator as NNITransformersEvaluator

from .optimizers import Task, check_optimizer, check_scheduler, patch_step


class TransformersEvaluator(NNITransformersEvaluator):
    """NNI's ``TransformersEvaluator`` on today's Transformers: the default optimizer, ``patch_loss`` and
    ``patch_optimizer_step`` work, without changing Transformers' classes.

    Under gradient accumulation the loss of each batch is its own mean, and these are averaged.

    Args:
        trainer: made by ``nni.trace(transformers.Trainer)(...)``, all arguments by name; each training makes a new one
            by its arguments.
        dummy_input: NNI's.

    Raises:
        MissingPackageError: on import, without ``transformers``.
    """

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch in each process; None if the data set has no length."""
        try:
            batches = len(self.traced_trainer.get_train_dataloader())
        except (TypeError, ValueError):
            return None
        accumulated: int = self.traced_trainer.args.gradient_accumulation_steps
        return max(1, -(-batches // accumulated))

    def _init_optimizer_helpers(self, pure_model: nn.Module) -> None:
        trainer = self.traced_trainer
        own = trainer.optimizer
        if own is None:
            given = trainer.optimizer_cls_and_kwargs
            kind, options = given or trainer.get_optimizer_cls_and_kwargs(trainer.args, pure_model)
            trainer.optimizer_cls_and_kwargs = nni.trace(kind), dict(options)
            try:
                trainer.create_optimizer()  # groups parameters by weight decay
            finally:
                trainer.optimizer_cls_and_kwargs = given
        check_optimizer(trainer.optimizer, pure_model)
        check_scheduler(trainer.lr_scheduler)
        try:
            super()._init_optimizer_helpers(pure_model)
        finally:
            trainer.optimizer = own

    def patch_loss(self, patch: Callable[[Tensor, Any], Tensor]) -> None:
        compute = self.trainer.compute_loss
        # A mean per batch, additions included, which the Trainer divides by the number of accumulated batches.
        self.trainer.model_accepts_loss_kwargs = False
        self.trainer.loss_is_scaled_for_ga = False

        def patched(
            trainer: Trainer, model: nn.Module, inputs: Any, return_outputs: bool = False, **options: Any
        ) -> Any:
            batch = dict(inputs)  # the Trainer may remove the labels
            result = compute(model, inputs, return_outputs=return_outputs, **{**options, "num_items_in_batch": None})
            if return_outputs:
                return patch(result[0], batch), result[1]
            return patch(result, batch)

        self.trainer.compute_loss = types.MethodType(patched, self.trainer)

    def patch_optimizer_step(self, before_step_tasks: list[Task], after_step_tasks: list[Task]) -> None:
        patch_step(self.trainer.optimizer, before_step_tasks, after_step_tasks)

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        args = self.trainer.args
        before = args.max_steps, args.num_train_epochs
        if max_steps is None and max_epochs is not None:
            args.max_steps = -1  # the user's own would win over the epochs
        try:
            super().train(max_steps, max_epochs)
        finally:
            args.max_steps, args.num_train_epochs = before
