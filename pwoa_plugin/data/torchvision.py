"""MNIST and CIFAR as torchvision downloads and reads them.

CIFAR's files are pickles, and unpickling can run code. torchvision unpickles only files with the published MD5 sums, so
its own classes read them here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from .._files import near_name
from .._text import named
from .config import DataConfig
from .images import DataError, InMemory, check_root


class _Torchvision(InMemory):
    folder: ClassVar[str]  # below root, where torchvision has the files

    @classmethod
    def arrays(cls, config: DataConfig, *, train: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets

        reader = getattr(datasets, cls.__name__)
        root = Path(os.path.expanduser(config.root))
        where, field = root / cls.folder, f"data.root={config.root!r}"
        try:
            found = reader(root, train=train, download=False)
        except Exception as error:  # as many kinds as there are ways to break a file
            if not str(error).startswith("Dataset not found"):  # torchvision's words where a download would help
                raise DataError(
                    f"{field}: the files in {where} cannot be read ({named(error)}); delete them and run again"
                ) from error
            if not config.download:
                check_root(config)
                what = "damaged or missing files in" if os.path.isdir(where) else "there is no"
                raise DataError(
                    f"{field}: {what} {where}; set data.download to true, or put torchvision's files there"
                ) from error
            near = "" if os.path.exists(root) else near_name(root)
            cure = near or "; run again, or put torchvision's files there from a machine with a network"
            try:
                found = reader(root, train=train, download=True)
            except Exception as failure:
                raise DataError(f"{field}: downloading to {where} fails ({named(failure)}){cure}") from failure
        images = torch.as_tensor(found.data)
        channels_first = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return channels_first, torch.as_tensor(found.targets)


class MNIST(_Torchvision):
    """MNIST: 60,000 training and 10,000 test images, 28x28 grey digits."""

    classes = 10
    shape = (1, 28, 28)
    folder = "MNIST/raw"


class CIFAR10(_Torchvision):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 in colour."""

    augmented = True
    classes = 10
    shape = (3, 32, 32)
    folder = "cifar-10-batches-py"


class CIFAR100(CIFAR10):
    """CIFAR-100: as CIFAR-10, in 100 classes."""

    classes = 100
    folder = "cifar-100-python"
