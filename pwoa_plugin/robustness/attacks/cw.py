"""What papers on robust training call CW: PGD on the margin loss of https://arxiv.org/abs/1608.04644."""

from __future__ import annotations

from typing import ClassVar

import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..estimator import twin_of
from .base import AttackSettings
from .pgd import PGD


class CarliniWagnerMargin(nn.Module):
    """Largest wrong logit minus the true one, averaged over the images; positive once the image is fooled.

    Not clipped at a confidence: the ball, not the margin, bounds these attacks.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean margin, a scalar.

        Args:
            logits: ``(N, C)``, C >= 2.
            labels: ``(N,)`` integers or ``(N, C)`` one-hot.
        """
        true = (labels.argmax(1) if labels.dim() == 2 else labels.long()).unsqueeze(1)
        wrong = logits.scatter(1, true, -torch.inf).amax(1)
        return (wrong - logits.gather(1, true).squeeze(1)).mean()


class CW(PGD):
    """PGD that ascends the Carlini-Wagner margin instead of the cross-entropy; targeted, that of the target.

    Not ART's ``CarliniLInfMethod``, which minimises the perturbation one image at a time and is far
    weaker at its defaults. Arguments are those of `PGD`.

    Args:
        steps: number of gradient steps.
        name: name of its column in the report; ``CW``, or ``CW-<steps>`` where steps is not 20, ``CW-<steps>-T`` where
            targeted.
    """

    loss: ClassVar[str] = "Carlini-Wagner margin"
    family: ClassVar[str] = "CW"

    def __init__(
        self,
        *,
        steps: int = 20,
        step_size: float | None = None,
        restarts: int = 1,
        targets: int = 0,
        name: str | None = None,
    ) -> None:
        if name is None and steps == 20 and not targets:
            name = "CW"
        super().__init__(steps=steps, step_size=step_size, restarts=restarts, targets=targets, name=name)

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        margin = twin_of(estimator, type(estimator), _loss=CarliniWagnerMargin(), _reduce_labels=False)
        return super().build(margin, settings)
