from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pwoa_plugin.method.oneshot import prune_once


def test_keeps_the_largest_weights_of_each_layer(trained: nn.Module) -> None:
    before = copy.deepcopy(trained)
    masks = prune_once(trained, 0.75)
    for name, mask in masks.items():
        weight, dense = trained.get_submodule(name).weight, before.get_submodule(name).weight
        assert torch.equal(weight != 0, mask)
        assert torch.equal(weight[mask], dense[mask])
        assert dense[mask].abs().min() >= dense[~mask].abs().max()
        assert int(mask.sum()) == pytest.approx(0.25 * mask.numel(), abs=1)


def test_layers_that_a_set_cannot_take_stay_dense(trained: nn.Module) -> None:
    masks = prune_once(trained, 0.5, granularity="2:4", exclude=["fc2"])
    assert list(masks) == ["conv", "fc1"]
    assert masks["conv"].all()
    assert masks["fc1"].float().mean() == 0.5


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_a_sparsity_that_is_none_is_refused(trained: nn.Module, sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"outside \(0, 1\)"):
        prune_once(trained, sparsity)
