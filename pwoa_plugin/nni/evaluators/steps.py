"""Tasks around an optimizer's step."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

__all__ = ["Task", "patch_step"]

Task = Callable[[], object]


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
            output = step(**options)
        else:
            output = step(closure=with_tasks, **options)
        for task in after:
            task()
        return output

    optimizer.step = types.MethodType(patched, optimizer)  # type: ignore[method-assign]
