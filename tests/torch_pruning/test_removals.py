"""Removals: as JSON, in a model's history, done again and undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pruned_networks import assert_untouched, state_of, widths
from torch import Tensor, nn

from pwoa_plugin.removal.trace import Tracing
from pwoa_plugin.torch_pruning.removals import (
    Removal,
    group_of,
    make_structure_undo,
    removals_from_json,
    removals_to_json,
    removed_from,
    replay,
)

REMOVALS = [Removal("conv3", True, (0, 3)), Removal("fc1", True, (5,))]


def test_json_and_back() -> None:
    assert removals_to_json(REMOVALS) == [["conv3", True, [0, 3]], ["fc1", True, [5]]]
    assert removals_from_json(removals_to_json(REMOVALS)) == REMOVALS


@pytest.mark.parametrize("entries", [None, 3, "conv", [["conv", True]], [["conv", 1, [0]]], [["conv", True, [True]]]])
def test_what_is_no_list_of_removals(entries: Any) -> None:
    with pytest.raises(ValueError, match="not a list of"):
        removals_from_json(entries)


def test_they_are_removed_and_added_to_the_history(small: nn.Module, x: Tensor) -> None:
    small.fc2.requires_grad_(False)
    for removal in REMOVALS:
        replay(small, Tracing(x).graph(small), [removal])
    assert widths(small) == {"conv1": 8, "conv2": 8, "conv3": 10, "fc1": 15, "fc2": 3}
    assert removed_from(small) == removed_from(copy.deepcopy(small)) == REMOVALS
    assert not small.fc2.weight.requires_grad
    assert small.fc1.weight.requires_grad


@pytest.mark.parametrize("channels", [(), (0, 0), (-1,), (12,), tuple(range(12))])
def test_channels_that_cannot_be_removed(small: nn.Module, x: Tensor, channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"conv3 has 12 channels: cannot remove \["):
        group_of(small, Tracing(x).graph(small), Removal("conv3", True, channels))


def test_layers_that_are_not_there(small: nn.Module, x: Tensor) -> None:
    with pytest.raises(ValueError, match="the model has no layer 'conv9' with channels to remove"):
        group_of(small, Tracing(x).graph(small), Removal("conv9", True, (0,)))


def test_the_undo_gives_back_sizes_parameters_and_history(small: nn.Module, x: Tensor) -> None:
    small.sizes = {"conv3": [12]}
    small.widths = [12]

    def adapt(model: nn.Module) -> None:
        model.sizes["conv3"] = [10]
        model.widths[0] = 10
        model.added = nn.Linear(1, 1)

    before = state_of(small)
    undo = make_structure_undo(small)
    replay(small, Tracing(x).graph(small), REMOVALS, adapt)
    assert small.conv3.out_channels == small.widths[0] == 10
    undo()
    assert_untouched(small, before)
    assert (small.conv3.out_channels, small.widths, small.sizes) == (12, [12], {"conv3": [12]})
    assert not hasattr(small, "added")
    assert removed_from(small) == []
    assert torch.isfinite(small(x)).all()
