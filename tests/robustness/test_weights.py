from __future__ import annotations

import torch
from torch import nn

from pwoa_plugin.robustness.weights import count_weights


def test_weights_are_counted_and_their_structure_named() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))
    assert (count_weights(model).total, count_weights(model).struct) == (72 + 160, "")
    with torch.no_grad():
        model[0].weight[:3] = 0
        assert (count_weights(model).struct, count_weights(model).nonzero) == ("filters", 232 - 54)
        model[0].weight.fill_(1)
        model[3].weight[:, :12] = 0
        assert count_weights(model).struct == "channels"
        model[3].weight[torch.rand(10, 16) < 0.5] = 0
        assert count_weights(model).struct == "weights"


def test_removed_channels_are_counted_against_the_dense_model() -> None:
    def net(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, channels, 3, bias=False), nn.Flatten(), nn.Linear(4 * channels, 10))

    small = count_weights(net(2), net(4))
    assert (small.total, small.nonzero, small.struct, small.sparsity) == (232, 116, "channels", 0.5)
    assert count_weights(net(4), net(2)) == count_weights(net(4), net(4)) == count_weights(net(4))
    assert count_weights(nn.Linear(16, 10), net(4)) == count_weights(nn.Linear(16, 10))
    sparse = net(2)
    with torch.no_grad():
        sparse[0].weight[0] = 0
    assert count_weights(sparse, net(4)).struct == "weights"
