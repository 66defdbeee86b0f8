"""ART's own ensemble named AutoAttack: not the standard one, hence its other name here."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import AutoAttack as ARTEnsemble
from art.attacks.evasion import AutoProjectedGradientDescent, DeepFool, SquareAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from .base import Attack, AttackSettings, Cost, project

_DLR_CLASSES = 3  # the DLR loss divides by the largest logit minus the third largest
_RESTARTS = 5
_DEEPFOOL_CLASSES = 10


class _Ensemble(ARTEnsemble):
    """ART's ensemble, with notes on what it had to leave out."""

    notes: tuple[str, ...] = ()


class ARTAutoAttack(Attack):
    """ART's ensemble: APGD on the cross-entropy and on the DLR loss, DeepFool and Square.

    Its members and numbers are ART's defaults, except that the first step of APGD is its authors' 2 * eps, where ART
    takes 0.1 whatever eps is. Neither the attacks (untargeted, DeepFool in place of FAB) nor the numbers are those of
    the standard AutoAttack, so the two are not comparable.

    Args:
        name: name of its column in the report.
    """

    packages = ("multiprocess",)  # ART imports it even to run serially
    bounded = True
    needs_gradients = True

    def __init__(self, *, name: str = "ART-AutoAttack") -> None:
        super().__init__(name=name)

    def _losses(self, settings: AttackSettings) -> tuple[str, ...]:
        losses = ("cross_entropy", "difference_logits_ratio")
        return losses if settings.n_classes >= _DLR_CLASSES else losses[:1]

    def _step_size(self, settings: AttackSettings) -> float:
        return 2 * settings.eps if settings.step_size is None else settings.step_size

    def cost(self, n_classes: int) -> Cost:
        return Cost(77_400, 2_300)

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        return {
            "attacks": [*(f"apgd {loss}" for loss in self._losses(settings)), "deepfool", "square"],
            "step_size": self._step_size(settings),
            "restarts": _RESTARTS,
        }

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        common: dict[str, Any] = {"norm": settings.art_norm, "eps": settings.eps}
        quiet: dict[str, Any] = {"batch_size": settings.batch_size, "verbose": False}
        step_size = self._step_size(settings)
        # The ensemble has no `verbose`, so its members are made here.
        members: list[EvasionAttack] = [
            AutoProjectedGradientDescent(
                estimator,
                eps_step=step_size,
                nb_random_init=_RESTARTS,
                loss_type=loss,
                **common,
                **quiet,
            )
            for loss in self._losses(settings)
        ]
        n_gradients = min(_DEEPFOOL_CLASSES, settings.n_classes)
        members.append(DeepFool(estimator, max_iter=100, epsilon=1e-3, nb_grads=n_gradients, **quiet))
        members.append(SquareAttack(estimator, max_iter=5000, p_init=0.8, nb_restarts=_RESTARTS, **common, **quiet))
        ensemble = _Ensemble(estimator, eps_step=step_size, attacks=members, batch_size=settings.batch_size, **common)
        if settings.n_classes < _DLR_CLASSES:
            ensemble.notes = (
                f"{self.name}: APGD on the DLR loss left out: it needs {_DLR_CLASSES} classes and "
                f"the model has {settings.n_classes}; the other attacks ran",
            )
        return ensemble

    def _batch(self, attack: EvasionAttack, images: np.ndarray, labels: np.ndarray) -> Tensor:
        found = super()._batch(attack, images, labels)
        # ART accepts images of its members up to 1.0001 * eps away.
        return project(found, torch.from_numpy(images), norm=attack.norm, eps=attack.eps)
