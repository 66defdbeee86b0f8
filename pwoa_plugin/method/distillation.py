"""Distillation from the frozen robust network: of logits, hidden features and input gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .._section import Section
from .._wrapped import deep_copy, unwrapped


class DistillationConfig(Section):
    """Self-distillation from the frozen robust network.

    Attributes:
        alpha: weight on the authors' scale: KL averaged over batch and classes (alpha = 10 for 10 classes is 1 by
            ``batchmean``).
        temperature: tau. None: 30; 4 in a run that leaves ``epochs`` out and has few images (see `TrainingConfig`).
        feature_weight: weight of the hidden layers' squared difference, relative to the teacher's; 0 is off (the
            paper).
        feature_share: share of the training steps with this term, drawn at random; there it counts
            ``1 / feature_share`` times. None: see `HSICConfig`.
        gradient_weight: weight of the input gradients' squared difference, relative to the teacher's (see
            `gradient_loss`); 0 is off (the paper). 1 kept more of the study's CIFAR-10 network at 16x, in 2 to 3 times
            the time, and less of its MNIST network (docs/results.md). The network must be twice differentiable; with
            BatchNorm, batches need some tens of images.
        gradient_share: share of the steps with this term, drawn at random; they run without autocast.
    """

    alpha: float = Field(default=10.0, ge=0)
    temperature: float | None = Field(default=None, gt=0)
    feature_weight: float = Field(default=1.0, ge=0)
    feature_share: float | None = Field(default=None, gt=0, le=1)
    gradient_weight: float = Field(default=0.0, ge=0)
    gradient_share: float = Field(default=0.5, gt=0, le=1)

    @property
    def wanted(self) -> bool:
        """Whether a term of it is in the loss."""
        return self.alpha > 0 or self.feature_weight > 0 or self.gradient_weight > 0

    @property
    def tau(self) -> float:
        """The temperature, set or by default."""
        return 30.0 if self.temperature is None else self.temperature


def frozen_copy(model: nn.Module) -> nn.Module:
    """The teacher: a deep copy in eval mode, without gradients, of the network inside its wrappers."""
    teacher = deep_copy(unwrapped(model, adapters=False)).eval().requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.grad = None
    return teacher


def distillation_loss(student: Tensor, teacher: Tensor, *, alpha: float = 10.0, temperature: float = 30.0) -> Tensor:
    """``alpha * tau^2 * KL(teacher || student)`` on softened logits (PwoA, eq. 6; Hinton et al. 2015).

    The KL divergence is averaged over the batch *and the classes*, as in the authors' ``nn.KLDivLoss()``, so that their
    alpha applies unchanged: for 10 classes, alpha = 10 here is alpha = 1 with ``reduction="batchmean"``.

    Args:
        student, teacher: logits ``(N, classes)``; the teacher's without gradient.
        alpha, temperature: see `DistillationConfig`.

    Returns:
        A scalar, float32 also under autocast.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    # torch warns that reduction="mean" will change its meaning.
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).mean()
    return alpha * temperature**2 * divergence


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Squared difference of hidden layers, relative to the teacher's: mean over layers of |s - t|^2 / |t|^2.

    Both are ``{layer: activations}``; the teacher's layers are compared. 1 if all the student's activations are 0.
    """
    terms = []
    for name, target in teacher.items():
        target = target.float()
        size = torch.linalg.vector_norm(target).square() / target.numel()
        terms.append(F.mse_loss(student[name].float(), target) / size.clamp_min(torch.finfo(torch.float32).tiny))
    return torch.stack(terms).mean()


def gradient_loss(student: Tensor, teacher: Tensor, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Squared difference of the networks' input gradients, relative to the teacher's: |s - t|^2 / |t|^2 over the batch.

    Of each image the gradient of one margin is compared: the logit of the teacher's first class minus that of its
    second, or, for half of the images, of a random other class. Attacks follow these gradients; none is run here.
    Zagoruyko and Komodakis (ICLR 2017, arXiv 1612.03928, sec. 3.2) match the loss's gradient; Shao et al. (arXiv
    2110.12072) do so to transfer robustness. With batch statistics in BatchNorm the loss is above 0 even for the
    teacher's own weights; the smaller the batch, the more.

    Args:
        student, teacher: logits ``(N, classes)`` of ``x``, with graphs to ``x``; the student's is twice differentiable.
        x: images ``(N, C, H, W)`` that require a gradient.
        generator: source of randomness, on the images' device.

    Returns:
        A scalar, float32 also under autocast; 1 if the student's logits do not change with ``x``.
    """
    first, second = teacher.detach().topk(2, dim=1).indices.split(1, dim=1)
    other = torch.randint(teacher.shape[1] - 1, second.shape, generator=generator, device=x.device)
    other = other + (other >= first)  # any class but the first, whose margin to itself has no gradient
    at_random = torch.rand(second.shape, generator=generator, device=x.device) < 0.5
    second = torch.where(at_random, other, second)

    def gradient(logits: Tensor, *, again: bool) -> Tensor:
        logits = logits.float()
        margin = (logits.gather(1, first) - logits.gather(1, second)).sum()
        return torch.autograd.grad(margin, x, create_graph=again)[0].float()

    with torch.autocast(x.device.type, enabled=False):
        wanted, got = gradient(teacher, again=False), gradient(student, again=True)
    size = wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return F.mse_loss(got, wanted) / size
