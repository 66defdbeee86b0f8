"""Images in folders named after their classes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import torch
from torch import Tensor

from .._text import one_line
from .config import NO_SIZE, DataConfig
from .images import DataError, ImageSet, check_root

_MOST_PIXELS = 178_956_970  # of a file: PIL's own limit
_MOST_RESIZED = 2**25  # pixels of a resized image, before the middle is cut out


class Folder(ImageSet):
    """``root/train/CLASS/*`` and ``root/test/CLASS/*``, or ``root/val/CLASS/*`` where there is no ``test``.

    Classes are numbered in the order of their names in ``train``. The shorter side of an image is resized to
    ``image_size``, the middle square is cut out, and the colours are converted to ``channels``.
    """

    @classmethod
    def describe(cls, config: DataConfig) -> tuple[int, tuple[int, int, int]]:
        check_root(config)
        if config.image_size is None:  # and the network does not say it either
            raise DataError(NO_SIZE)
        return len(_class_names(config)), (config.channels, config.image_size, config.image_size)

    def __init__(self, config: DataConfig, *, train: bool) -> None:
        from torchvision.datasets import ImageFolder

        place = _find_folder(config, *(("train",) if train else ("test", "val")))
        classes = _class_names(config)
        self._channels, self._size, _ = self.describe(config)[1]
        self._root, self.workers = config.root, config.workers
        try:
            found = ImageFolder(str(place))
        except OSError as error:  # a class without an image, say
            raise DataError(f"data.root={config.root!r}: {place} cannot be used ({one_line(error)})") from error
        unknown = [name for name in found.classes if name not in classes]
        if unknown:
            raise DataError(
                f"data.root={config.root!r}: {place} has a class {unknown[0]!r} that train has not; "
                "name the folders of both alike"
            )
        number = torch.tensor([classes.index(name) for name in found.classes])
        self.labels = number[torch.tensor(found.targets)]
        self._paths = [path for path, _ in found.samples]

    def read(self, index: Tensor) -> Tensor:
        return torch.stack([self._decode(self._paths[i]) for i in index.tolist()])

    def _decode(self, path: str) -> Tensor:
        try:
            return self._pixels_of(path)
        except DataError:
            raise
        except MemoryError as error:
            raise self._refusal(path, "needs more memory than there is; resize it, or lower batch_size") from error
        except Exception as error:  # a damaged file makes PIL raise errors of many types
            raise self._refusal(path, f"cannot be decoded ({one_line(error)}); mend or delete it") from error

    def _pixels_of(self, path: str) -> Tensor:
        from PIL import Image
        from torchvision.transforms import functional as transforms

        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would block
            raise self._refusal(path, "is not a regular file; delete it")
        with Image.open(path) as found:
            self._check_size(path, found.width, found.height)
            found.load()
        if found.mode.startswith(("I", "F")):
            raise self._refusal(path, f"has pixels of more than 8 bits (mode {found.mode}); convert it to 8 bits")
        image = transforms.resize(found.convert("L" if self._channels == 1 else "RGB"), self._size)
        pixels: Tensor = transforms.pil_to_tensor(transforms.center_crop(image, [self._size] * 2))
        return pixels

    def _check_size(self, path: str, width: int, height: int) -> None:
        """Refuse, by the header alone, what would fill the memory when decoded, or when its shorter side is resized."""
        longer, shorter = max(width, height), min(width, height)
        if width * height > _MOST_PIXELS:
            raise self._refusal(path, f"has {width} x {height} pixels, more than {_MOST_PIXELS:,}; resize or delete it")
        if longer / shorter * self._size**2 > max(_MOST_RESIZED, 4 * self._size**2):
            said = f"has {width} x {height} pixels, too long for a shorter side of {self._size}; crop or delete it"
            raise self._refusal(path, said)

    def _refusal(self, path: str, what: str) -> DataError:
        return DataError(f"data.root={self._root!r}: {path} {what}")


def _find_folder(config: DataConfig, *names: str) -> Path:
    """The first of the folders ``names`` that is there."""
    root = Path(os.path.expanduser(config.root))
    for name in names:
        if os.path.isdir(root / name):
            return root / name
    check_root(config)
    raise DataError(
        f"data.root={config.root!r}: there is no folder {' or '.join(names)} in it; "
        "the images are train/CLASS/*.png and test/CLASS/*.png"
    )


def _class_names(config: DataConfig) -> list[str]:
    place = _find_folder(config, "train", "test", "val")
    names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir())
    if len(names) < 2:
        raise DataError(
            f"data.root={config.root!r}: {place} has {len(names)} class folders; put the images of each class in one"
        )
    return names
