"""The form of every data set."""

from __future__ import annotations

import torch
from torch import Tensor

from pwoa_plugin.data.config import DataConfig
from pwoa_plugin.data.images import InMemory


class Two(InMemory):
    classes = 2
    shape = (1, 2, 2)

    @classmethod
    def arrays(cls, config: DataConfig, *, train: bool) -> tuple[Tensor, Tensor]:
        images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
        return (images if train else images.flip(0)), torch.tensor([0, 1, 1])


def test_images_in_memory_are_read_by_index() -> None:
    config = DataConfig(name="mnist")
    assert Two.describe(config) == (2, (1, 2, 2))
    train, test = Two(config, train=True), Two(config, train=False)
    assert train.labels.tolist() == [0, 1, 1]
    assert train.read(torch.tensor([2, 0])).flatten().tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    assert torch.equal(test.read(torch.tensor([0])), train.read(torch.tensor([2])))
