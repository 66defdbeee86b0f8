"""Networks to take channels from, and the oracle: channels that are zeroed by hand in the dense network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F
from torch_pruning.ops import OPTYPE

from pwoa_plugin.torch_pruning import PwoAGroupPruner


class SmallNet(nn.Module):
    """Convolutions with BatchNorm, a residual sum, a concatenation and two linear layers, for 8x8 images."""

    def __init__(self, channels: int = 1, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 12, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(20)  # Torch-Pruning loses track of a concatenation that is flattened at once
        self.fc1 = nn.Linear(20 * 16, 16)
        self.fc2 = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.conv2(x))
        x = self.bn2(torch.cat([x, F.relu(self.conv3(x))], 1))
        return self.fc2(F.relu(self.fc1(F.max_pool2d(x, 2).flatten(1))))


@pytest.fixture
def small() -> SmallNet:
    torch.manual_seed(0)
    model = SmallNet()
    model.bn1.bias.data = torch.randn(8)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def zeroed() -> Callable[..., nn.Module]:
    @torch.no_grad()
    def zero(dense: nn.Module, pruner: PwoAGroupPruner, inputs: Any) -> nn.Module:
        """The dense network with all that Torch-Pruning would take out with these channels at 0."""
        twin = copy.deepcopy(dense).eval()
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(
                twin,
                inputs,
                forward_fn=lambda model, given: model(given),
                output_transform=lambda y: y * 1,
                verbose=False,
            )
        for removal in pruner.removals:
            module = twin.get_submodule(removal.layer)
            functions = graph.get_pruner_of_module(module)
            function = functions.prune_out_channels if removal.out else functions.prune_in_channels
            for dep, indices in graph.get_pruning_group(module, function, list(removal.channels)):
                layer, kind = dep.target.module, dep.target.type
                if kind in (OPTYPE.CONV, OPTYPE.LINEAR) and dep.handler.__name__ == "prune_in_channels":
                    each = layer.weight.shape[1]
                    layer.weight[:, [index % each for index in indices]] = 0
                elif kind in (OPTYPE.CONV, OPTYPE.LINEAR, OPTYPE.DEPTHWISE_CONV, OPTYPE.BN):
                    layer.weight[indices] = 0
                    if layer.bias is not None:
                        layer.bias[indices] = 0
        return twin

    return zero
