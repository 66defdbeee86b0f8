"""Which positions of which parameters belong to a channel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.removal.trace import Tracing
from pwoa_plugin.torch_pruning import PwoAGroupPruner
from pwoa_plugin.torch_pruning.coupling import Part, channel_scores, inputs_of, parts_of


class Chain(nn.Module):
    """One layer between two linear ones, which act on the last dimension or on channels."""

    def __init__(self, between: nn.Module, *, images: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 1) if images else nn.Linear(4, 8)
        self.between = between
        self.last = nn.Conv2d(8, 3, 1) if images else nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def parts_by_name(model: nn.Module, x: Tensor, channels: list[int]) -> dict[str, list[Part]]:
    graph = Tracing(x).graph(model)
    first = model.first
    group = graph.get_pruning_group(first, graph.get_pruner_of_module(first).prune_out_channels, channels)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, list[Part]] = {}
    for part in parts_of(group):
        found.setdefault(names[part.parameter], []).append(part)
    return found


@pytest.mark.parametrize(
    ("between", "images"),
    [
        (nn.LayerNorm(8), False),
        (nn.BatchNorm2d(8), True),
        (nn.GroupNorm(2, 8), True),
        (nn.InstanceNorm2d(8, affine=True), True),
        (nn.PReLU(8), True),
        (nn.PReLU(), True),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), True),
    ],
)
def test_what_a_removal_shortens_is_what_the_parts_name(between: nn.Module, images: bool) -> None:
    """Torch-Pruning's own removal is the oracle."""
    torch.manual_seed(0)
    model = Chain(between, images=images)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.rand(2, 1, 4, 4) if images else torch.rand(2, 5, 4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parts = parts_by_name(model, x, [1, 6])
    graph = Tracing(x).graph(model)
    graph.get_pruning_group(model.first, graph.get_pruner_of_module(model.first).prune_out_channels, [1, 6]).prune()
    for name, parameter in model.named_parameters():
        expected = before[name]
        for part in parts.get(name, []):
            stays = torch.ones(expected.shape[part.dim], dtype=torch.bool)
            stays[part.positions] = False
            expected = expected.index_select(part.dim, stays.nonzero().flatten())
        assert torch.equal(parameter, expected), name


def test_scores_are_the_squared_norm_of_all_parts() -> None:
    model = Chain(nn.ReLU())
    parts = [part for found in parts_by_name(model, torch.rand(2, 4), [0, 5]).values() for part in found]
    expected = model.first.weight.square().sum(1) + model.first.bias.square() + model.last.weight.square().sum(0)
    assert torch.allclose(channel_scores(parts, 2), expected[[0, 5]])
    doubled = {model.last.weight: 2 * model.last.weight.detach()}
    expected = expected + 3 * model.last.weight.square().sum(0)
    assert torch.allclose(channel_scores(parts, 2, doubled), expected[[0, 5]])


def test_readers_and_the_dimension_of_their_input() -> None:
    model = Chain(nn.Conv2d(8, 8, 3, padding=1, groups=8), images=True)
    graph = Tracing(torch.rand(2, 1, 4, 4)).graph(model)
    group = graph.get_pruning_group(model.first, graph.get_pruner_of_module(model.first).prune_out_channels, [2])
    assert list(inputs_of(group)) == [(model.between, 1, [2]), (model.last, 1, [2])]


def test_the_plan_keeps_what_its_masks_keep(small: nn.Module, x: Tensor, zeroed: Callable[..., nn.Module]) -> None:
    plan = PwoAGroupPruner(small, x, pruning_ratio=0.5).planner.next_plan()
    masks = plan.masks()
    planned = plan.tensors(small)
    for name, parameter in small.named_parameters():
        mask = masks.get(parameter, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[mask], planned[name].flatten())
    assert {removal.layer for removal in plan.removals()} == {"conv2", "conv3", "fc1"}
