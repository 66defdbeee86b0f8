"""The fast gradient sign method: https://arxiv.org/abs/1412.6572."""

from __future__ import annotations

from typing import Any

from art.attacks.attack import EvasionAttack
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier

from .base import Attack, AttackSettings, Cost


class FGSM(Attack):
    """One step of eps along the sign of the cross-entropy's gradient, from the image itself; in L2 along the gradient.

    Args:
        name: name of its column in the report.
    """

    bounded = True
    needs_gradients = True

    def __init__(self, *, name: str = "FGSM") -> None:
        super().__init__(name=name)

    def cost(self, n_classes: int) -> Cost:
        return Cost(1, 1)

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        return {"steps": 1, "step_size": settings.eps, "restarts": 0, "loss": "cross-entropy"}

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        return FastGradientMethod(
            estimator,
            norm=settings.art_norm,
            eps=settings.eps,
            eps_step=settings.eps,
            batch_size=settings.batch_size,
        )
