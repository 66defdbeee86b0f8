"""Ways to make a robust network smaller: ours, and the usual ones.

To add a method, write one function and one line in ``METHODS``. Each prunes its model in place, with the same images,
epochs, batch size and seed as the others.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
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
from pwoa_plugin.method.phases import GradualConfig, GradualPhase
from pwoa_plugin.method.schedule import Schedule
from pwoa_plugin.method.targets import mask_target

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
        pgd_by_epoch: what single-step methods note after each epoch, at most 50 times: accuracy by PGD-10 on training
            images. It shows catastrophic overfitting, where it falls towards 0 within an epoch while the loss keeps
            falling.
        watch_seconds: what those looks took; not part of the method's own time.
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
    pgd_by_epoch: list[float] = field(default_factory=list)
    watch_seconds: list[float] = field(default_factory=list)

    def loader(self) -> Loader:
        return Loader(self.images, self.batch_size, self.augment)

    def prune(self, model: nn.Module, config: Callable[..., PwoAConfig] = PwoAConfig, **own: Any) -> None:
        common = {"sparsity": self.sparsity, "train_loader": self.loader(), "eps": self.eps, "epochs": self.epochs}
        common |= {"seed": self.seed, "progress": False}
        PwoAPruner(model, config(**common | own | self.fields)).compress()


def train(
    model: nn.Module,
    task: Task,
    loss: Loss,
    after_step: Callable[[], None],
    after_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Train with Adam, its rate falling to 0 as a cosine."""
    loader = task.loader()
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
                after_step()
            after_epoch()
    model.eval()


def fine_tune(model: nn.Module, masks: dict[str, Tensor], task: Task, loss: Loss) -> None:
    """Train under masks."""
    weights = {name: layer.get_parameter("weight") for name, layer in prunable_layers(model, None, ()).items()}

    @torch.no_grad()
    def hold() -> None:
        for name, mask in masks.items():
            weights[name].mul_(mask)

    train(model, task, loss, hold)


def tune_gradually(model: nn.Module, task: Task, loss: Loss) -> None:
    """Train while LAMP's cuts prune over the first half, as in our default."""
    target = mask_target(model, task.sparsity, allocation="lamp")
    target.begin()
    per_epoch = len(task.loader())
    cutting = task.epochs // 2 * per_epoch
    schedule = Schedule(
        target, [GradualPhase(target, GradualConfig(), cutting)], tuning=task.epochs * per_epoch - cutting
    )

    def after_step() -> None:
        schedule.after_step()
        while schedule.due:
            schedule.advance()

    epochs = itertools.count(1)

    def after_epoch() -> None:
        if next(epochs) % math.ceil(task.epochs / 50) == 0:  # a look costs as much as some epochs of few images
            watch(model, task)

    schedule.start()
    train(model, task, loss, after_step, after_epoch)
    schedule.finish()


def watch(model: nn.Module, task: Task) -> None:
    """Note what PGD-10 leaves of 256 training images, and say so if it fell to less than half within an epoch."""
    started = time.perf_counter()
    device = next(model.parameters()).device
    x, y = (part[:256].to(device) for part in task.images)
    with seeded(task.seed):
        attacked = pgd(model, x, y, task.eps, steps=10)
    with torch.no_grad():
        now = (model(attacked).argmax(1) == y).float().mean().item()
    before = task.pgd_by_epoch[-1] if task.pgd_by_epoch else now
    task.pgd_by_epoch.append(now)
    if now < before / 2:
        print(f"catastrophic overfitting: PGD-10 left {before:.1%} after the last epoch, {now:.1%} after this one")
    task.watch_seconds.append(time.perf_counter() - started)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int) -> Tensor:
    """PGD's examples in Linf (Madry et al., ICLR 2018), made in eval mode from a random start."""
    model.eval()
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    adversarial = torch.min(torch.max(x + eps * (2 * torch.rand_like(x) - 1), low), high)
    for _ in range(steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(adversarial), y), adversarial)
        adversarial = torch.min(torch.max(adversarial.detach() + 2.5 * eps / steps * gradient.sign(), low), high)
    return adversarial


def pgd7(eps: float) -> Loss:
    """Cross-entropy on PGD-7 examples, made anew for every batch."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        adversarial = pgd(model, x, y, eps, steps=7)
        model.train()
        return F.cross_entropy(model(adversarial), y)

    return loss


def single_step(eps: float, *, noise: float, step: float, project: bool, teacher: nn.Module | None = None) -> Loss:
    """Cross-entropy on examples of one signed gradient step from uniform noise, made in training mode as published.

    Args:
        eps: Linf radius, in pixel units.
        noise, step: as multiples of ``eps``.
        project: whether the examples are projected on the ball.
        teacher: whose answers stand for labels.
    """

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if teacher is not None:
            with torch.no_grad():
                y = teacher(x).argmax(1)
        start = (x + noise * eps * (2 * torch.rand_like(x) - 1)).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
        adversarial = start.detach() + step * eps * gradient.sign()
        if project:
            adversarial = torch.min(torch.max(adversarial, x - eps), x + eps)
        return F.cross_entropy(model(adversarial.clamp(0, 1)), y)

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


def n_fgsm(model: nn.Module, task: Task) -> None:
    """N-FGSM (de Jorge et al., NeurIPS 2022): noise of 2 eps, a step of eps, no projection."""
    tune_gradually(model, task, single_step(task.eps, noise=2, step=1, project=False))


def n_fgsm_unlabelled(model: nn.Module, task: Task) -> None:
    """N-FGSM with the dense network's classes for labels."""
    teacher = copy.deepcopy(model).eval()
    tune_gradually(model, task, single_step(task.eps, noise=2, step=1, project=False, teacher=teacher))


def fgsm_rs(model: nn.Module, task: Task) -> None:
    """FGSM from a random start (Wong et al., ICLR 2020): noise of eps, a step of 1.25 eps, projected."""
    tune_gradually(model, task, single_step(task.eps, noise=1, step=1.25, project=True))


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
    "n-fgsm": Method(n_fgsm, has_lr=True),
    "n-fgsm-unlabelled": Method(n_fgsm_unlabelled, has_lr=True),
    "fgsm-rs": Method(fgsm_rs, has_lr=True),
}
