"""How far a training by an evaluator is: a bar or lines, as for a run by `PwoAConfig`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nni.compression import TorchEvaluator
from nni.compression.utils import Evaluator

from ..method.callback import Callback, Status, always_ended
from ..progress import default_progress
from .training import Training

_EVERY = 10  # steps


def callbacks_for(evaluator: Evaluator, wanted: bool) -> list[Callback]:
    """The default progress; none for Lightning and Transformers, which show their own."""
    return [default_progress()] if wanted and isinstance(evaluator, TorchEvaluator) else []


@contextmanager
def reported(
    training: Training, callbacks: Sequence[Callback], steps: int | None, epochs: int | None
) -> Iterator[None]:
    """Report a training to callbacks: its first step, every tenth, and the last. Without ``steps`` nothing is said."""
    if steps is None or not callbacks:
        yield
        return
    status = Status(training.phase, epochs or 1, steps)
    began = time.perf_counter()

    def after_step() -> None:
        status.step = training.step
        if status.step != 1 and status.step % _EVERY and status.step != steps:
            return
        status.phase, status.seconds = training.phase, time.perf_counter() - began
        status.epoch = status.step * status.epochs // steps
        status.images_per_second = training.images / max(1e-9, status.seconds)
        status.terms = training.mean_terms()
        status.loss = sum(status.terms.values())
        for callback in callbacks:
            if status.step == steps:
                callback.on_epoch_end(status)
            else:
                callback.on_report(status)

    training.reports.append(after_step)
    with always_ended(callbacks, lambda failed: status):
        for callback in callbacks:
            callback.on_start(status)
        yield
