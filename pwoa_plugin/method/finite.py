"""Whether losses and weights are finite while a network trains."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .. import _ranks
from .._network import not_finite
from ..errors import TrainingError
from .callback import Status

_CURE = "the model is as it was before; lower the learning rate"
_CALLS_BETWEEN_CHECKS = 10


def check_finite(model: nn.Module, step: int) -> None:
    """TrainingError if a trained parameter or a running statistic, which a finite loss does not show, is not finite."""
    if (name := not_finite(model)) is not None:
        raise TrainingError(f"{name} is not finite after step {step}; {_CURE}")


def check_loss(status: Status) -> None:
    """TrainingError, in all processes, if a term of the loss is not finite."""
    if not math.isfinite(status.loss):
        bad = ", ".join(name for name, value in status.terms.items() if not math.isfinite(value))
        error = TrainingError(
            f"the loss is not finite at step {status.step} ({bad}); the model is as it was: lower optimizer.lr (now "
            f"{status.lr:.3g}) or the weight of that term"
        )
        raise _ranks.told_by_main(error)


class FiniteLosses:
    """Watches losses. The flag stays on their device and is read every tenth call: reading waits for an accelerator."""

    def __init__(self) -> None:
        self._finite: Tensor | None = None
        self._calls = 0

    def add(self, loss: Tensor) -> None:
        """Note a loss; every tenth call is a `check`."""
        finite = loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite.to(finite.device) & finite
        self._calls += 1
        if self._calls % _CALLS_BETWEEN_CHECKS == 1:
            self.check()

    def check(self) -> None:
        """TrainingError if a loss was not finite."""
        if self._finite is not None and not self._finite:
            raise TrainingError(f"the loss is not finite at step {self._calls}, or shortly before; {_CURE}")
