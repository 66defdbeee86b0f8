"""Adversarial examples of the network that trains. No run makes any unless its config asks for them.

A new attack is one class here and one line in ``TRAINING_ATTACKS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from .._pixels import check_radius
from .._section import Pixels, Section, check_options, key_of
from ..errors import InputError


class TrainingAttack(ABC):
    """How the examples of a batch are made.

    Args:
        eps: Linf radius, in pixel units.
        pixel_range: ``(low, high)`` of a valid image.
    """

    def __init__(self, *, eps: float, pixel_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self.eps, self.pixel_range = float(eps), pixel_range

    @abstractmethod
    def __call__(self, x: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """Examples of natural images.

        Args:
            x: ``(N, C, H, W)`` in ``pixel_range``.
            gradient: of the loss to increase, shaped as the images that it is given.

        Returns:
            Images shaped as ``x``, in ``pixel_range``, without a graph.
        """


class _SignedSteps(TrainingAttack):
    """Uniform noise, then steps along the sign of the gradient; lengths are multiples of ``eps``."""

    def __init__(
        self,
        *,
        eps: float,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        noise: float,
        step: float,
        steps: int = 1,
        project: bool = True,
    ) -> None:
        super().__init__(eps=eps, pixel_range=pixel_range)
        if noise < 0 or step <= 0 or steps < 1:
            raise InputError(f"noise={noise}, step={step}, steps={steps}: give 0 or more, above 0, and 1 or more")
        self.noise, self.step, self.steps, self.project = noise, step, steps, project

    def __call__(self, x: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        examples = torch.rand_like(x).mul_(2).sub_(1).mul_(self.noise * self.eps).add_(x)
        for _ in range(self.steps):
            examples = torch.add(examples, gradient(examples).sign(), alpha=self.step * self.eps)
            if self.project:
                examples = torch.clamp(examples, x - self.eps, x + self.eps)
        return examples.clamp_(*self.pixel_range)


class NFGSM(_SignedSteps):
    """N-FGSM (de Jorge et al., NeurIPS 2022, arXiv 2202.01181): one step from strong noise, not projected on the ball.

    Args:
        eps, pixel_range: see `TrainingAttack`.
        noise: half width of the uniform noise, in ``eps``.
        step: in ``eps``.
    """

    def __init__(
        self, *, eps: float, pixel_range: tuple[float, float] = (0.0, 1.0), noise: float = 2.0, step: float = 1.0
    ) -> None:
        super().__init__(eps=eps, pixel_range=pixel_range, noise=noise, step=step, project=False)


class FGSMRS(_SignedSteps):
    """FGSM from a random start (Wong et al., ICLR 2020, arXiv 2001.03994): one step, projected on the ball.

    Args:
        eps, pixel_range: see `TrainingAttack`.
        step: in ``eps``.
    """

    def __init__(self, *, eps: float, pixel_range: tuple[float, float] = (0.0, 1.0), step: float = 1.25) -> None:
        super().__init__(eps=eps, pixel_range=pixel_range, noise=1.0, step=step)


class PGD(_SignedSteps):
    """PGD (Madry et al., ICLR 2018, arXiv 1706.06083): several steps of ``2.5 eps / steps``, each projected.

    Args:
        eps, pixel_range: see `TrainingAttack`.
        steps: how many; each costs a forward and a backward.
    """

    def __init__(self, *, eps: float, pixel_range: tuple[float, float] = (0.0, 1.0), steps: int = 7) -> None:
        super().__init__(eps=eps, pixel_range=pixel_range, noise=1.0, step=2.5 / max(1, steps), steps=steps)


TRAINING_ATTACKS: dict[str, type[TrainingAttack]] = {"n-fgsm": NFGSM, "fgsm-rs": FGSMRS, "pgd": PGD}


def gradient_of(logits: Callable[[Tensor], Tensor], classes: Tensor) -> Callable[[Tensor], Tensor]:
    """The gradient at images of a network's cross-entropy with these ``classes`` ``(N,)``; its weights get none."""

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(logits(x).float(), classes, reduction="sum")  # a mean loses digits in float16
        return torch.autograd.grad(loss, x)[0]

    return gradient


class AdversarialConfig(Section):
    """Adversarial examples in training.

    Teacher and student then see examples of the student in place of the random perturbation.

    Attributes:
        attack: a key of ``TRAINING_ATTACKS``: ``n-fgsm`` (one step), ``fgsm-rs`` (one step) or ``pgd``.
        eps: Linf radius, in pixel units, also as ``"8/255"``. None: the run's ``eps``.
        weight: of the cross-entropy of the examples, beside distillation. 0: distillation alone.
        classes: of that cross-entropy. ``labels``: the data's where it has some, else the teacher's classes.
            ``teacher``: the teacher's classes, which kept more robustness and less accuracy (docs/results.md).
        epochs: the last epochs of a run that make examples, as a polish; None: all.
        options: of the attack: ``noise`` and ``step`` of ``n-fgsm``, ``step`` of ``fgsm-rs``, ``steps`` of ``pgd``.
    """

    attack: Annotated[str, key_of(TRAINING_ATTACKS)] = "n-fgsm"
    eps: Pixels | None = Field(default=None, gt=0)
    weight: float = Field(default=1.0, ge=0)
    classes: Literal["labels", "teacher"] = "labels"
    epochs: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def reads_labels(self) -> bool:
        """Whether examples look at labels where the data has some."""
        return self.weight > 0 and self.classes == "labels"

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        check_options(TRAINING_ATTACKS[self.attack], self.options, eps=1.0, pixel_range=(0.0, 1.0))
        return self

    def check(self, eps: float | None, pixel_range: tuple[float, float], epochs: int | None) -> None:
        """InputError unless a run of this ``eps`` and of ``epochs`` (None: not known yet) can have this section."""
        self.make(eps, pixel_range)
        if epochs is not None:
            self.check_length(epochs)

    def check_length(self, epochs: float) -> None:
        """InputError if examples are for the last epochs of a run, and these are more than it has."""
        if self.epochs is not None and self.epochs > epochs:
            raise InputError(f"adversarial.epochs={self.epochs}: more than the run's {epochs:g}; give at most as many")

    def make(self, eps: float | None, pixel_range: tuple[float, float]) -> TrainingAttack:
        """The attack, with its options; ``eps`` is the run's. InputError if no radius is known, or it is too wide."""
        radius = eps if self.eps is None else self.eps
        if radius is None:
            raise InputError("adversarial.eps is missing; give it, or eps, in pixel units")
        try:
            check_radius(radius, pixel_range)
        except InputError as error:
            raise InputError(f"adversarial.{error}") from None
        return TRAINING_ATTACKS[self.attack](eps=radius, pixel_range=pixel_range, **self.options)
