"""The networks and images of the study: what is pruned, with which images, and by which it is judged."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pwoa_plugin.data import mnist_sample
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.models.resnet import ResNetCIFAR

__all__ = ["CIFAR_CHECKPOINT", "SUBJECTS", "Judge", "Subject", "cifar_resnet", "mnist_images"]

Pair = tuple[Tensor, Tensor]

CIFAR_CHECKPOINT = Path(__file__).parent / "checkpoints" / "cifar10_resnet.safetensors"
CIFAR_JPEG = "cifar10_jpeg.npz"
CIFAR_HELD_OUT = 1000


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
        augment: whether training images are cropped and flipped.
        epochs: of every method that trains, unless told otherwise.
    """

    eps: float
    model: Callable[[], nn.Module]
    training: Callable[[Path], Pair]
    validation: Callable[[Path], Pair]
    test: Callable[[Path], Pair]
    judge: Judge
    augment: bool = False
    epochs: int = 12


def mnist_images(root: Path, *, train: bool) -> Pair:
    from torchvision.datasets import MNIST

    data = MNIST(root, train=train, download=True)
    return data.data.unsqueeze(1).float() / 255, data.targets


def _mnist_validation(_: Path) -> Pair:
    x, y = mnist_sample()[1].tensors  # left out of the shipped LeNet's own training, too
    return x, y


def _mnist_training(root: Path) -> Pair:
    """The last 20,000 of the training images that are not in the validation split."""
    x, y = mnist_images(root, train=True)
    held = {image.tobytes() for image in _mnist_validation(root)[0].mul(255).round().byte().numpy()}
    free = torch.tensor([image.tobytes() not in held for image in x.mul(255).round().byte().numpy()])
    return x[free][-20_000:], y[free][-20_000:]


def cifar_resnet() -> ResNetCIFAR:
    """A ResNet-10 of 16 to 128 channels: 0.31 M weights, not trained."""
    return ResNetCIFAR((1, 1, 1, 1), channels=16)


def _robust_cifar_resnet() -> nn.Module:
    """As `benchmarks.train_cifar` left it."""
    from safetensors.torch import load_file

    model = cifar_resnet()
    model.load_state_dict(load_file(CIFAR_CHECKPOINT))
    return model.eval()


@functools.cache  # training and validation images are parts of one reading
def _cifar(root: Path, *, train: bool) -> Pair:
    """The JPEG copy (20,000 of the training images) where ``root`` has it, else torchvision's CIFAR-10."""
    if (root / CIFAR_JPEG).exists():
        return _cifar_jpeg(root / CIFAR_JPEG, "train" if train else "test")
    from torchvision.datasets import CIFAR10

    data = CIFAR10(root, train=train, download=True)
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).float() / 255, torch.tensor(data.targets)


def _cifar_jpeg(path: Path, split: str) -> Pair:
    """One array of JPEG files end to end, their offsets, and labels."""
    with np.load(path) as data:
        files, offsets, labels = data[f"{split}_jpeg"].tobytes(), data[f"{split}_offsets"], data[f"{split}_labels"]
    images = [
        np.asarray(Image.open(io.BytesIO(files[start:end])).convert("RGB"))
        for start, end in itertools.pairwise(offsets.tolist())
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long()


def _cifar_training(root: Path) -> Pair:
    x, y = _cifar(root, train=True)
    return x[:-CIFAR_HELD_OUT], y[:-CIFAR_HELD_OUT]


def _cifar_validation(root: Path) -> Pair:
    """The last 1,000 of the training images, which the dense network's training did not see either."""
    x, y = _cifar(root, train=True)
    return x[-CIFAR_HELD_OUT:], y[-CIFAR_HELD_OUT:]


SUBJECTS: dict[str, Subject] = {
    "mnist": Subject(
        eps=0.3,
        model=robust_lenet,
        training=_mnist_training,
        validation=_mnist_validation,
        test=lambda root: mnist_images(root, train=False),
        judge=Judge(pgd="PGD-40", images=1000, deep=500),
    ),
    "cifar10": Subject(
        eps=8 / 255,
        model=_robust_cifar_resnet,
        training=_cifar_training,
        validation=_cifar_validation,
        test=lambda root: _cifar(root, train=False),
        judge=Judge(pgd="PGD-20", images=1000, deep=128),
        augment=True,
    ),
}
