"""Ways to make a robust network smaller: ours, and the usual ones.

To add a method, write one function and one line in ``METHODS``. Each prunes its model in place, with the same images,
epochs, batch size and seed as the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin import PwoAConfig, PwoAPruner
from pwoa_plugin._random import seeded
from pwoa_plugin.data.augment import crop_and_flip, draw_crops_and_flips
from pwoa_plugin.method.layers import prunable_layers
from pwoa_plugin.method.oneshot import prune_once

__all__ = ["METHODS", "Method", "Task"]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loader:
    """Batches of images and labels in a new order in every epoch, the draws from torch's global generator.

    Attributes:
        images: ``(N, C, H, W)`` in [0, 1], and labels; batches are on their device.
        batch_size: images in a batch; the last has what is left.
        augment: random crop after padding by 4, and horizontal flip.
    """

    images: tuple[Tensor, Tensor]
    batch_size: int
    augment: bool

    def __len__(self) -> int:
        return math.ceil(len(self.images[0]) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.images
        order = torch.randperm(len(x))
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ()))) if self.augment else None
        for index in order.split(self.batch_size):
            batch = x[index]
            yield (crop_and_flip(batch, *draw_crops_and_flips(len(index), generator)) if generator else batch), y[index]


@dataclass(frozen=True)
class Task:
    """What a method is to do.

    Attributes:
        paper: name of the published settings.
        sparsity: share of all convolution and linear weights to prune.
        images: to prune with, and their labels.
        eps: Linf radius, in pixel units.
        augment: whether training images are cropped and flipped.
        epochs, batch_size, seed: of the training.
        lr: of Adam, for every method but the default and the published one, which have their own.
        fields: of `PwoAConfig`, over the method's own.
    """

    paper: Literal["mnist", "cifar10"]
    sparsity: float
    images: tuple[Tensor, Tensor]
    eps: float
    epochs: int
    augment: bool = False
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0
    fields: dict[str, Any] = field(default_factory=dict)

    def loader(self) -> Loader:
        return Loader(self.images, self.batch_size, self.augment)

    def prune(self, model: nn.Module, config: Callable[..., PwoAConfig] = PwoAConfig, **own: Any) -> None:
        common = {"sparsity": self.sparsity, "train_loader": self.loader(), "eps": self.eps, "epochs": self.epochs}
        common |= {"seed": self.seed, "progress": False}
        PwoAPruner(model, config(**common | own | self.fields)).compress()


def fine_tune(model: nn.Module, masks: dict[str, Tensor], task: Task, loss: Loss) -> None:
    """Train under masks with Adam, its rate falling to 0 as a cosine."""
    loader = task.loader()
    weights = {name: layer.get_parameter("weight") for name, layer in prunable_layers(model, None, ()).items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs * len(loader))
    device = next(model.parameters()).device
    with seeded(task.seed):
        for _ in range(task.epochs):
            for x, y in loader:
                model.train()
                value = loss(model, x.to(device), y.to(device))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                scheduler.step()
                with torch.no_grad():
                    for name, mask in masks.items():
                        weights[name].mul_(mask)
    model.eval()


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def pgd7(eps: float) -> Loss:
    """Cross-entropy on PGD-7 examples (Madry et al., ICLR 2018), made anew for every batch."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        adversarial = torch.min(torch.max(x + eps * (2 * torch.rand_like(x) - 1), low), high)
        model.eval()
        for _ in range(7):
            adversarial.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(adversarial), y), adversarial)
            adversarial = torch.min(torch.max(adversarial.detach() + 2.5 * eps / 7 * gradient.sign(), low), high)
        model.train()
        return F.cross_entropy(model(adversarial), y)

    return loss


def dense(model: nn.Module, task: Task) -> None:
    """The network as it is."""


def one_shot(model: nn.Module, task: Task) -> None:
    """The smallest weights of every layer at once, no training."""
    prune_once(model, task.sparsity)


def level_cross_entropy(model: nn.Module, task: Task) -> None:
    """NNI's own LevelPruner, then cross-entropy on natural images under its masks."""
    from nni.compression.pruning import LevelPruner

    model.to(memory_format=torch.contiguous_format)  # NNI views a layer's importances as one row
    entry = {"op_names": list(prunable_layers(model, None, ())), "target_names": ["weight"]}
    pruner = LevelPruner(model, [entry | {"sparse_ratio": task.sparsity}])
    _, masks = pruner.compress()
    pruner.unwrap_model()
    model.to(memory_format=torch.channels_last)
    fine_tune(model, {name: targets["weight"] for name, targets in masks.items()}, task, cross_entropy)


def distillation(model: nn.Module, task: Task) -> None:
    """The smallest weights of every layer, then distillation on natural images: PwoA without ADMM and HSIC."""
    task.prune(
        model,
        allocation="uniform",
        perturbation={"kind": "none"},
        distillation={"feature_weight": 0},
        hsic={"lambda_x": 0, "lambda_y": 0},
        admm={"epochs": 0},
        optimizer={"lr": task.lr},
    )


def published(model: nn.Module, task: Task) -> None:
    """PwoA as published, its phases and milestones cut to the epochs there are."""
    task.prune(model, lambda **fields: PwoAConfig.paper(task.paper, **fields))


def default(model: nn.Module, task: Task) -> None:
    """`PwoAConfig` as it comes."""
    task.prune(model)


def adversarial(model: nn.Module, task: Task) -> None:
    """Adversarial fine-tuning under LAMP's mask: the anchor from above, several attack steps for every step."""
    fine_tune(model, prune_once(model, task.sparsity, allocation="lamp"), task, pgd7(task.eps))


@dataclass(frozen=True)
class Method:
    """A way to prune, and which parts of a `Task` it heeds.

    Attributes:
        prune: prunes the model in place.
        has_fields: whether ``Task.fields`` change it: a run of `PwoAPruner`.
        has_lr: whether ``Task.lr`` is its learning rate.
    """

    prune: Callable[[nn.Module, Task], None]
    has_fields: bool = False
    has_lr: bool = False


METHODS = {
    "dense": Method(dense),
    "one-shot": Method(one_shot),
    "level-ce": Method(level_cross_entropy, has_lr=True),
    "distillation": Method(distillation, has_fields=True, has_lr=True),
    "paper": Method(published, has_fields=True),
    "default": Method(default, has_fields=True),
    "adversarial": Method(adversarial, has_lr=True),
}
