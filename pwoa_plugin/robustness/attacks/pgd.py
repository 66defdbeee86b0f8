"""Projected gradient descent: https://arxiv.org/abs/1706.06083."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ..._pixels import positive_pixels
from .base import Attack, AttackSettings, Cost, positive_int


class PGD(Attack):
    """Gradient steps on the cross-entropy from a random start, projected on the ball: signed in Linf, normed in L2.

    Targeted, it aims at one wrong class after another, the likeliest first (https://arxiv.org/abs/1910.09338), which
    works where the untargeted loss misleads. It succeeds when the model answers any wrong class.

    Args:
        steps: number of gradient steps, for each target where there are targets.
        step_size: in pixel units. Default: the evaluation's, else 2.5 * eps / steps (Madry et al.), which lets the
            search cross the ball and come back.
        restarts: random starts; one that succeeds is enough.
        targets: number of wrong classes to aim at, at most all of them; 0 is untargeted.
        name: name of its column in the report. Default: ``PGD-<steps>``, and ``PGD-<steps>-T`` where targeted.
    """

    loss: ClassVar[str] = "cross-entropy"
    family: ClassVar[str] = "PGD"
    bounded = True
    needs_gradients = True

    def __init__(
        self,
        *,
        steps: int,
        step_size: float | None = None,
        restarts: int = 1,
        targets: int = 0,
        name: str | None = None,
    ) -> None:
        self.steps = positive_int("steps", steps)
        self.restarts = positive_int("restarts", restarts)
        self.targets = 0 if isinstance(targets, int) and targets == 0 else positive_int("targets", targets)
        self.step_size = None if step_size is None else positive_pixels("step_size", step_size)
        super().__init__(name=f"{self.family}-{steps}" + "-T" * bool(targets) if name is None else name)

    def _step_size(self, settings: AttackSettings) -> float:
        given = settings.step_size if self.step_size is None else self.step_size
        return 2.5 * settings.eps / self.steps if given is None else given

    def cost(self, n_classes: int) -> Cost:
        targets = min(self.targets, n_classes - 1)
        gradients = (self.steps + 2) * self.restarts * max(1, targets)
        return Cost(gradients + (targets > 0), gradients)

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        made: dict[str, Any] = {"steps": self.steps, "step_size": self._step_size(settings)}
        made |= {"restarts": self.restarts, "loss": self.loss}
        if self.targets:
            made["targets"] = min(self.targets, settings.n_classes - 1)
        return made

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        return ProjectedGradientDescentPyTorch(
            estimator,
            norm=settings.art_norm,
            eps=settings.eps,
            eps_step=self._step_size(settings),
            max_iter=self.steps,
            num_random_init=self.restarts,
            targeted=bool(self.targets),
            batch_size=settings.batch_size,
            verbose=False,
        )

    def _batch(self, attack: EvasionAttack, images: np.ndarray, labels: np.ndarray) -> Tensor:
        if not self.targets:
            return super()._batch(attack, images, labels)
        found = torch.from_numpy(images.copy())
        logits = attack.estimator.predict(images, batch_size=len(images))
        logits[np.arange(len(labels)), labels] = -np.inf
        likeliest = np.argsort(-logits, axis=1, kind="stable")
        left = np.arange(len(labels))
        for rank in range(min(self.targets, logits.shape[1] - 1)):
            tried = super()._batch(attack, images[left], likeliest[left, rank])
            fooled = attack.estimator.predict(tried.numpy(), batch_size=len(left)).argmax(1) != labels[left]
            found[left[fooled]] = tried[fooled]
            left = left[~fooled]
            if not len(left):
                break
        return found
