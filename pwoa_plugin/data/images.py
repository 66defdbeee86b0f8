"""The form of every data set: labels, and images that are read by index."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from .._files import near_name
from ..errors import InputError
from .config import DataConfig


class DataError(InputError):
    """Images that cannot be read: one line that names the field, its value and the cure."""


def check_root(config: DataConfig) -> None:
    """DataError if the root is not there, and something of a near name is."""
    root = os.path.expanduser(config.root)
    if not os.path.exists(root) and (near := near_name(root)):
        raise DataError(f"data.root={config.root!r} is not there{near}")


class ImageSet(ABC):
    """The training or the test images of a data set.

    Attributes:
        labels: ``(N,)`` int64, from 0 to classes - 1.
        workers: the number of processes that `read`; 0: this process reads.
        augmented: whether training images are cropped and flipped by default.
    """

    augmented: ClassVar[bool] = False
    labels: Tensor
    workers: int = 0

    @classmethod
    @abstractmethod
    def describe(cls, config: DataConfig) -> tuple[int, tuple[int, int, int]]:
        """Number of classes and shape ``(C, H, W)`` of an image, without reading any image."""

    @abstractmethod
    def __init__(self, config: DataConfig, *, train: bool) -> None: ...

    @abstractmethod
    def read(self, index: Tensor) -> Tensor:
        """The images at these positions, ``(len(index), C, H, W)`` uint8."""


class InMemory(ImageSet):
    """Images of one size, all in memory, one byte per value."""

    classes: ClassVar[int]
    shape: ClassVar[tuple[int, int, int]]

    @classmethod
    def describe(cls, config: DataConfig) -> tuple[int, tuple[int, int, int]]:
        return cls.classes, cls.shape

    @classmethod
    @abstractmethod
    def arrays(cls, config: DataConfig, *, train: bool) -> tuple[Tensor, Tensor]:
        """All images, ``(N, C, H, W)`` uint8, and labels, ``(N,)``; a `DataError` where they cannot be read."""

    def __init__(self, config: DataConfig, *, train: bool) -> None:
        self.images, labels = self.arrays(config, train=train)
        self.labels = labels.long()
        if self.images.shape != (len(self.labels), *self.shape):
            raise DataError(
                f"data.root={config.root!r}: the {config.name} files hold {tuple(self.images.shape)} images and "
                f"{len(self.labels)} labels, which is not {config.name}; delete them and download again"
            )

    def read(self, index: Tensor) -> Tensor:
        return self.images[index]
