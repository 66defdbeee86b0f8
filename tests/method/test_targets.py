"""Weights under masks."""

from __future__ import annotations

import pytest
import torch
from conftest import TinyNet
from torch import nn

from pwoa_plugin.method.targets import mask_target


def test_what_is_pruned_stays_zero(trained: TinyNet) -> None:
    target = mask_target(trained, 0.75, exclude=["fc2"])
    target.begin()
    assert not target.done
    target.prune(allocate=False)
    target.hold()
    assert target.done
    assert list(target.masks) == ["conv", "fc1"]
    with torch.no_grad():
        trained.fc1.weight.add_(1.0)
    target.hold()
    assert torch.equal(trained.fc1.weight != 0, target.masks["fc1"])
    assert trained.fc2.weight.ne(0).all()
    target.begin()
    assert not target.done
    assert target.masks == {}


def test_the_allocation_follows_the_weights_where_it_is_told_to(trained: TinyNet) -> None:
    kept = {}
    for allocate in (False, True):
        target = mask_target(trained, 0.75, allocation="global")
        target.begin()
        before = {name: layer.keep for name, layer in target.allocation.items()}
        with torch.no_grad():
            trained.fc2.weight.mul_(10)
        target.prune(allocate=allocate)
        kept[allocate] = {name: layer.keep for name, layer in target.allocation.items()}
        assert (kept[allocate] == before) is (not allocate)
        with torch.no_grad():
            trained.fc2.weight.div_(10)
    assert kept[True]["fc2"] > kept[False]["fc2"]


def test_constants_of_dead_filters_are_held_at_zero(trained: TinyNet) -> None:
    target = mask_target(trained, 0.5, granularity="filter", exclude=["fc2"])
    target.begin(torch.rand(2, 1, 8, 8))
    target.prune(allocate=False)
    with torch.no_grad():
        trained.fc1.bias.fill_(1.0)
    target.hold()
    assert "fc1.bias" in target.held
    dead = ~target.masks["fc1"].any(1)
    assert dead.any()
    assert torch.equal(trained.fc1.bias == 0, dead)


def test_a_state_brings_masks_and_allocation_back(trained: TinyNet) -> None:
    target, again = (mask_target(trained, 0.75, allocation="lamp") for _ in range(2))
    target.begin()
    target.cut(0.5)
    again.begin()
    again.load_state(target.state())
    assert not again.done
    assert all(torch.equal(mask, again.masks[name]) for name, mask in target.masks.items())
    target.prune(allocate=True)
    again.load_state(target.state())
    assert again.done
    assert again.allocation == target.allocation


def test_frozen_weights_are_refused(trained: nn.Module) -> None:
    trained.get_parameter("fc1.weight").requires_grad_(False)
    with pytest.raises(ValueError, match=r"^fc1: the weight has requires_grad=False"):
        mask_target(trained, 0.5).begin()
