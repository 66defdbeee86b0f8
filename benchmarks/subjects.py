"""The networks and images of the study: networks to prune, images to prune with, images to judge by."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pwoa_plugin.data import mnist_sample
from pwoa_plugin.models.checkpoint import CheckpointError, load_checkpoint
from pwoa_plugin.models.lenet import LeNet, LeNet3
from pwoa_plugin.models.resnet import ResNetCIFAR, resnet18_cifar

Pair = tuple[Tensor, Tensor]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
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
        network: makes the network, not trained.
        checkpoint: the weights of the dense robust network, as `load_checkpoint` takes them.
        trained_by: the command that makes the checkpoint.
        training: images to prune with, ``(N, C, H, W)``, and labels. Not one of them is in the other two splits.
        validation: images cut from the training set, which no training saw: what defaults are chosen by.
        test: for final tables only.
        judge: see `Judge`.
        beyond: other threats than the one that was trained for, as ``(norm, eps)``.
        augment: whether training images are cropped and flipped.
        epochs: of every method that trains, unless told otherwise.
        paper: name of the published settings.
    """

    eps: float
    network: Callable[[], nn.Module]
    checkpoint: str
    trained_by: str
    training: Callable[[Path], Pair]
    validation: Callable[[Path], Pair]
    test: Callable[[Path], Pair]
    judge: Judge
    beyond: tuple[tuple[Literal["Linf", "L2"], float], ...] = ()
    augment: bool = False
    epochs: int = 12
    paper: Literal["mnist", "cifar10"] = "mnist"

    def model(self) -> nn.Module:
        """The dense robust network.

        Raises:
            SystemExit: it cannot be read; most likely it has not been trained here.
        """
        network = self.network()
        try:
            load_checkpoint(network, self.checkpoint)
        except CheckpointError as error:
            raise SystemExit(f"{error}\nIt is made by: {self.trained_by}") from None
        return network.eval()


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


def _cifar_resnet() -> ResNetCIFAR:
    """A ResNet-10 of 16 to 128 channels: 0.31 M weights, not trained."""
    return ResNetCIFAR((1, 1, 1, 1), channels=16)


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


_MNIST = Subject(
    eps=0.3,
    network=LeNet,
    checkpoint="shipped:robust_lenet_mnist",
    trained_by="python examples/train_robust_lenet.py",
    training=_mnist_training,
    validation=_mnist_validation,
    test=lambda root: mnist_images(root, train=False),
    judge=Judge(pgd="PGD-40", images=1000, deep=500),
    beyond=(("Linf", 0.4), ("L2", 2.0)),
)
_CIFAR10 = Subject(
    eps=8 / 255,
    network=_cifar_resnet,
    checkpoint=str(CHECKPOINTS / "cifar10_resnet.safetensors"),
    trained_by="python -m benchmarks.train_cifar",
    training=_cifar_training,
    validation=_cifar_validation,
    test=lambda root: _cifar(root, train=False),
    judge=Judge(pgd="PGD-20", images=1000, deep=128),
    beyond=(("Linf", 16 / 255), ("L2", 0.5), ("L2", 1.0)),
    augment=True,
    paper="cifar10",
)

SUBJECTS: dict[str, Subject] = {
    "mnist": _MNIST,
    "mnist-lenet3": replace(
        _MNIST,
        network=LeNet3,
        checkpoint=str(CHECKPOINTS / "mnist_lenet3.safetensors"),
        trained_by="python examples/train_robust_lenet.py --arch lenet3 --images 20000 --epochs 8 --steps 5 "
        "--out benchmarks/checkpoints/mnist_lenet3.safetensors",
        judge=Judge(pgd="PGD-40", images=1000, deep=150),
    ),
    "cifar10": _CIFAR10,
    "cifar10-resnet18": replace(
        _CIFAR10,
        network=resnet18_cifar,
        checkpoint=str(CHECKPOINTS / "cifar10_resnet18.safetensors"),
        trained_by="python -m benchmarks.train_cifar cifar10-resnet18 --epochs 30 --device cuda",
        judge=Judge(pgd="PGD-20", images=1000, deep=1000),
    ),
}
