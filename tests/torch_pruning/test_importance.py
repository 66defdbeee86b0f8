"""`PwoAImportance`, with Torch-Pruning's own pruners."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from pwoa_plugin.torch_pruning import PwoAImportance


def group_of(model: nn.Module, layer: nn.Module, x: Tensor) -> object:
    graph = tp.DependencyGraph().build_dependency(model, x, forward_fn=lambda m, given: m(given), verbose=False)
    functions = graph.get_pruner_of_module(layer)
    return graph.get_pruning_group(layer, functions.prune_out_channels, list(range(layer.out_channels)))


def test_the_norm_over_the_group_and_its_mean(small: nn.Module, x: Tensor) -> None:
    dual = torch.randn(small.conv3.weight.shape, generator=torch.Generator().manual_seed(3))
    scores = PwoAImportance({small.conv3.weight: dual})(group_of(small, small.conv3, x))
    reads = small.fc1.weight.view(16, 20, 16)[:, 8:]
    squares = (small.conv3.weight + dual).square().sum((1, 2, 3)) + small.conv3.bias.square()
    squares = squares + small.bn2.weight[8:].square() + small.bn2.bias[8:].square()
    expected = (squares + reads.square().sum((0, 2))).sqrt()
    assert torch.allclose(scores, expected / expected.mean())
    assert float(scores.mean()) == pytest.approx(1)


def test_summed_layers_count_together(small: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        small.conv2.weight[3] += 100
    assert PwoAImportance()(group_of(small, small.conv1, x)).argmax() == 3


@pytest.mark.parametrize(
    "kind", [tp.pruner.BasePruner, tp.pruner.GroupNormPruner, tp.pruner.GrowingRegPruner, tp.pruner.MagnitudePruner]
)
def test_every_pruner_takes_it(kind: type, small: nn.Module, x: Tensor) -> None:
    fresh = {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}
    pruner = kind(
        small, x, PwoAImportance(), pruning_ratio=0.5, ignored_layers=[small.fc2], forward_fn=lambda m, y: m(y), **fresh
    )
    pruner.step()
    assert (small.conv1.out_channels, small.conv3.out_channels, small.fc1.out_features) == (4, 6, 8)
    assert small(x).shape == (4, 3)


def test_a_group_of_zeros_has_no_nan(small: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert torch.equal(PwoAImportance()(group_of(small, small.conv3, x)), torch.zeros(12))


def test_duals_of_another_shape(small: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"duals: \(3,\) is not the shape of its parameter \(8, 1, 3, 3\)"):
        PwoAImportance({small.conv1.weight: torch.rand(3)})
