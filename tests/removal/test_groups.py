"""Networks on their way to fewer channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pwoa_plugin.method.constants import find_constant_channels
from pwoa_plugin.removal.groups import Network, connections, remove_dead, without


def network_of(model: nn.Module, x: Tensor) -> Network:
    batch = torch.rand(8, *x.shape[1:])
    return Network(model.eval(), find_constant_channels(model, lambda: model(batch), connections))


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(n, m, 1, bias=False) for n, m in ((3, 4), (4, 5), (5, 2))))


def test_without() -> None:
    assert without(torch.tensor([7, 8, 9]), [0, 2]).tolist() == [8]
    assert without(torch.arange(3), []).tolist() == [0, 1, 2]


def test_connections_of_layers() -> None:
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    nn.init.ones_(grouped.weight).data[0, 1] = 0
    assert connections(grouped).shape == (2, 3, 2)
    assert connections(grouped).logical_not().nonzero().tolist() == [[0, 0, 1]]
    norm = nn.BatchNorm2d(3)
    norm.weight.data[1] = 0
    assert connections(norm).tolist() == [True, False, True]
    assert connections(nn.BatchNorm2d(3, affine=False)).all()


def test_channels_before_follow_those_behind() -> None:
    model, x = chain(), torch.rand(2, 3, 4, 4)
    model[2].weight.data[:, 1] = 0  # filter 1 of the second layer is not read, and it alone reads filter 3 of the first
    model[1].weight.data[[0, 2, 3, 4], 3] = 0
    network = network_of(model, x)
    while remove_dead(network, x):
        pass
    assert network.history == [("1", True, (1,)), ("0", True, (3,))]
    assert network.filters["0"].tolist() == network.inputs["1"].tolist() == [0, 1, 2]
    assert network.filters["1"].tolist() == network.inputs["2"].tolist() == [0, 2, 3, 4]
    assert (model[0].out_channels, model[1].out_channels) == (3, 4)


def test_layers_that_are_left_alone_are_obstacles() -> None:
    model, x = chain(), torch.rand(2, 3, 4, 4)
    model[1].weight.data[:, 0] = 0
    model[2].weight.data[:, 1] = 0
    network = network_of(model, x)
    assert remove_dead(network, x, skip={"0": "by wish"})
    assert network.history == [("1", True, (1,))]
    assert network.obstacles["0", "filters"][0].structure == "by wish"
    assert remove_dead(network, x, only="0")
    assert network.history[-1] == ("0", True, (0,))
