"""Epochs that are entered in the middle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin.method.batches import Batches
from pwoa_plugin.method.resuming import ResumableEpochs

X = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def epochs() -> ResumableEpochs:
    loader = DataLoader(TensorDataset(X, torch.arange(20)), batch_size=4, shuffle=True)
    return ResumableEpochs(Batches(loader, batch_size=4, device=torch.device("cpu")))


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand(())  # a step draws, too


def test_a_resumed_epoch_gives_the_batches_that_are_left() -> None:
    torch.manual_seed(0)
    straight = epochs()
    given, state = [], None
    for _ in range(2):
        for x, _y in straight.epoch(check=True):
            given.append(noisy(x))
            if len(given) == 7:  # the second batch of the second epoch
                state = straight.state()
                tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
        straight.end()
    assert state is not None
    state.tensors = tensors
    torch.manual_seed(99)
    resumed = epochs()
    resumed.load_state(state)
    assert resumed.done == 2
    left = [noisy(x) for x, _ in resumed.epoch(check=True)]
    assert len(left) == 3
    assert all(torch.equal(a, b) for a, b in zip(given[7:], left, strict=True))
