"""Optimizers and schedulers as NNI can rebuild them on the wrapped model, and tasks around an optimizer's step."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

from nni.common import is_traceable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import SequentialLR

from ...errors import InputError

Task = Callable[[], object]


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Check that NNI can rebuild an optimizer, and that it then trains something."""
    kind = type(optimizer).__name__.removeprefix("_")
    name = f"optimizer: this {kind}"
    if not is_traceable(optimizer, must_be_instance=True):
        raise InputError(
            f"{name} is not traced, so that NNI cannot rebuild it on the wrapped model; make it by "
            f"nni.trace(torch.optim.{kind})(model.parameters(), ...)"
        )
    if any(group.get("param_names") for group in optimizer.param_groups):
        raise InputError(f"{name} was built from named_parameters(), which NNI loses; pass model.parameters()")
    given = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    lost = len(given - {*model.parameters()})
    if lost or not given:
        raise InputError(
            f"{name} has {len(given)} parameters, {lost} of them not the model's (a compressor that wraps it makes new "
            "ones); pass model.parameters(), and give the evaluator to the first compressor"
        )


def check_scheduler(scheduler: Any) -> None:
    """Check that NNI can rebuild a learning rate scheduler, if there is one."""
    refuse_sequential(scheduler)
    if scheduler is not None and not is_traceable(scheduler, must_be_instance=True):
        raise InputError(
            f"lr_scheduler: this {type(scheduler).__name__} is not traced; make it by nni.trace(...)(optimizer, ...), "
            "optimizer traced likewise"
        )


def refuse_sequential(scheduler: Any) -> None:
    if isinstance(scheduler, SequentialLR):
        raise InputError("lr_scheduler: NNI cannot rebuild a SequentialLR; write the schedule as one LambdaLR")


def patch_step(optimizer: Optimizer, before: Sequence[Task], after: Sequence[Task]) -> None:
    """Have tasks called around each step of an optimizer.

    Those before it see its gradients, also if a closure computes them, as Lightning's does.
    """
    step, before, after = optimizer.step, list(before), list(after)

    def patched(_: Optimizer, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        def with_tasks() -> Any:
            result = None if closure is None else closure()
            for task in before:
                task()
            return result

        if closure is None:
            with_tasks()
        else:
            options["closure"] = with_tasks
        output = step(**options)
        for task in after:
            task()
        return output

    optimizer.step = types.MethodType(patched, optimizer)  # type: ignore[method-assign]
