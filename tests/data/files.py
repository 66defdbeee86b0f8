"""Data sets in torchvision's own file formats, written by the tests: noise that is brighter where its class is.

torchvision reads CIFAR only where the files have the published MD5 sums, since they are pickles and unpickling can run
code. The package keeps that check. The fixture `known_cifar` gives torchvision the sums of what a test wrote. MNIST's
extracted files have no such check.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint8]


def make_pixels(n: int, shape: tuple[int, int, int], classes: int, seed: int) -> tuple[Array, Array]:
    """``n`` images, uint8 ``(n, *shape)``, and labels, ``(n,)``, as even as they can be over the classes."""
    random = np.random.RandomState(seed)
    labels = random.permutation(np.arange(n) % classes).astype(np.uint8)
    images = random.randint(0, 120, (n, *shape))
    height = shape[1]
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, (label * height) // classes : ((label + 2) * height) // classes] += 120
    return images.astype(np.uint8), labels


def write_mnist(root: str | os.PathLike[str], n_train: int = 60, n_test: int = 30, seed: int = 0) -> None:
    """``MNIST/raw/*-ubyte``."""
    folder = Path(root) / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, n, offset in (("train", n_train, 0), ("t10k", n_test, 1)):
        images, labels = make_pixels(n, (1, 28, 28), 10, 2 * seed + offset)
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())


def _write_cifar(folder: Path, files: dict[str, int], classes: int, key: str, meta: tuple[str, str], seed: int) -> None:
    folder.mkdir(parents=True)
    for i, (name, n) in enumerate(files.items()):
        images, labels = make_pixels(n, (3, 32, 32), classes, 10 * seed + i)
        (folder / name).write_bytes(pickle.dumps({"data": images.reshape(n, -1), key: labels.tolist()}))
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [f"class {i}" for i in range(classes)]}))


def write_cifar10(root: str | os.PathLike[str], n_train: int = 60, n_test: int = 30, seed: int = 0) -> None:
    """``cifar-10-batches-py/*``; ``n_train`` is spread over five files."""
    sizes = {f"data_batch_{i + 1}": n_train // 5 + (i < n_train % 5) for i in range(5)}
    folder = Path(root) / "cifar-10-batches-py"
    _write_cifar(folder, sizes | {"test_batch": n_test}, 10, "labels", ("batches.meta", "label_names"), seed)


def write_cifar100(root: str | os.PathLike[str], n_train: int = 200, n_test: int = 100, seed: int = 0) -> None:
    """``cifar-100-python/*``."""
    folder = Path(root) / "cifar-100-python"
    _write_cifar(folder, {"train": n_train, "test": n_test}, 100, "fine_labels", ("meta", "fine_label_names"), seed)


def write_folder(
    root: str | os.PathLike[str],
    n_train: int = 24,
    n_test: int = 12,
    seed: int = 0,
    *,
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
    size: tuple[int, int] = (20, 16),
    channels: int = 3,
    test: str = "test",
) -> None:
    """``train/CLASS/*.png`` and ``test/CLASS/*.png`` of ``size`` (height, width)."""
    from PIL import Image

    for offset, (split, n) in enumerate((("train", n_train), (test, n_test))):
        images, labels = make_pixels(n, (channels, *size), len(classes), 2 * seed + offset)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = Path(root) / split / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = image[0] if channels == 1 else image.transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / f"{i:04}.png")


def cifar_sums(root: str | os.PathLike[str]) -> Iterator[tuple[Any, str, Any]]:
    """``(torchvision's class, attribute, value)`` that make it know the CIFAR files below ``root``."""
    from torchvision.datasets import CIFAR10, CIFAR100

    def summed(file: Path) -> str:
        return hashlib.md5(file.read_bytes()).hexdigest()

    for reader in (CIFAR10, CIFAR100):
        folder = Path(root) / reader.base_folder
        if folder.is_dir():
            for attribute in ("train_list", "test_list"):
                names = [name for name, _ in getattr(reader, attribute)]
                yield reader, attribute, [[name, summed(folder / name)] for name in names]
            yield reader, "meta", reader.meta | {"md5": summed(folder / reader.meta["filename"])}
