"""The networks and images of the study: what is pruned, with which images, and by which it is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pwoa_plugin.data import mnist_sample
from pwoa_plugin.models import robust_lenet

__all__ = ["SUBJECTS", "Judge", "Subject"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Judge:
    """How a pruned network is judged.

    Attributes:
        pgd: the attack that every cell is judged by, on ``images`` images.
        images: of the test set, or of the validation split.
        deep: how many of them, the first, AutoAttack is run on as well (those that PGD left).
    """

    pgd: str
    images: int
    deep: int


@dataclass(frozen=True)
class Subject:
    """A robust network with its data.

    Attributes:
        eps: Linf radius, in pixel units.
        model: makes the dense robust network.
        training: images to prune with, ``(N, C, H, W)``, and labels. Not one of them is in the other two splits.
        validation: images cut from the training set, which no training saw: what defaults are chosen by.
        test: for final tables only.
        judge: see `Judge`.
        epochs: of every method that trains, unless told otherwise.
    """

    eps: float
    model: Callable[[], nn.Module]
    training: Callable[[Path], Pair]
    validation: Callable[[Path], Pair]
    test: Callable[[Path], Pair]
    judge: Judge
    epochs: int = 12


def _mnist(root: Path, *, train: bool) -> Pair:
    from torchvision.datasets import MNIST

    data = MNIST(root, train=train, download=True)
    return data.data.unsqueeze(1).float() / 255, data.targets


def _mnist_validation(_: Path) -> Pair:
    x, y = mnist_sample()[1].tensors  # left out of the shipped LeNet's own training, too
    return x, y


def _mnist_training(root: Path) -> Pair:
    """The last 20,000 of the training images that are not in the validation split."""
    x, y = _mnist(root, train=True)
    held = {image.tobytes() for image in _mnist_validation(root)[0].mul(255).round().byte().numpy()}
    free = torch.tensor([image.tobytes() not in held for image in x.mul(255).round().byte().numpy()])
    return x[free][-20_000:], y[free][-20_000:]


SUBJECTS: dict[str, Subject] = {
    "mnist": Subject(
        eps=0.3,
        model=robust_lenet,
        training=_mnist_training,
        validation=_mnist_validation,
        test=lambda root: _mnist(root, train=False),
        judge=Judge(pgd="PGD-40", images=1000, deep=500),
    ),
}
