"""Projected gradient descent: https://arxiv.org/abs/1706.06083."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from art.attacks.attack import EvasionAttack
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier

from .base import Attack, AttackSettings, positive_int

__all__ = ["PGD"]


class PGD(Attack):
    """Signed gradient steps on the cross-entropy from a random start, projected on the ball.

    Args:
        steps: number of gradient steps.
        step_size: in pixel units; by default that of the evaluation, and failing that 2.5 * eps / steps
            (Madry et al.), which lets the search cross the ball and come back.
        restarts: random starts; an image falls when any of them fells it.
        name: name of its column in the report, ``PGD-<steps>`` by default.

    Raises:
        ValueError: ``steps`` or ``restarts`` is no integer of 1 or more, or ``step_size`` is not positive.
    """

    loss: ClassVar[str] = "cross-entropy"

    def __init__(
        self, *, steps: int, step_size: float | None = None, restarts: int = 1, name: str | None = None
    ) -> None:
        self.steps = positive_int("steps", steps)
        self.restarts = positive_int("restarts", restarts)
        if step_size is not None and not 0 < step_size < float("inf"):
            raise ValueError(f"step_size={step_size!r} is no step; give a positive number of pixel units")
        self.step_size = step_size
        super().__init__(name=f"PGD-{steps}" if name is None else name)

    def _step_size(self, settings: AttackSettings) -> float:
        given = settings.step_size if self.step_size is None else self.step_size
        return 2.5 * settings.eps / self.steps if given is None else float(given)

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "step_size": self._step_size(settings),
            "restarts": self.restarts,
            "loss": self.loss,
        }

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        return ProjectedGradientDescentPyTorch(
            estimator,
            norm=np.inf,
            eps=settings.eps,
            eps_step=self._step_size(settings),
            max_iter=self.steps,
            num_random_init=self.restarts,
            batch_size=settings.batch_size,
            verbose=False,
        )
