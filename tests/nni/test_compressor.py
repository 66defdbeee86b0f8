"""Wrapping and unwrapping by our compressors: masks stay in the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from nni.compression.distillation import DynamicLayerwiseDistiller
from nni.compression.pruning import LevelPruner
from torch import nn

from pwoa_plugin import PwoAPruner
from pwoa_plugin.masks import Masks

from .conftest import MakeEvaluator, Pair, assert_masked


def test_unwrap_and_wrap_again(trained: nn.Module, images: Pair, pruned: tuple[PwoAPruner, Masks]) -> None:
    pruner, masks = pruned
    x = images[0][:8]
    wrapped = trained(x)
    for _ in range(2):
        pruner.unwrap_model()
        assert_masked(trained, masks)
        torch.testing.assert_close(trained(x), wrapped)
        pruner.wrap_model()
        torch.testing.assert_close(trained(x), wrapped)
    pruner.unwrap_model()
    with torch.no_grad():
        trained.fc2.weight.mul_(2)  # an edit of the plain model...
        trained.fc2.weight[masks["fc2"]["weight"] == 0] = 5  # ...though not of what is pruned
    edited = trained.fc2.weight.detach() * masks["fc2"]["weight"]
    pruner.wrap_model()
    pruner.unwrap_model()
    assert torch.equal(trained.fc2.weight, edited)


def test_from_compressor_either_way(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, pruned: tuple[PwoAPruner, Masks]
) -> None:
    pruner, masks = pruned
    teacher = copy.deepcopy(pruner.teacher)
    x = images[0][:8]
    wrapped = trained(x)
    distiller = DynamicLayerwiseDistiller.from_compressor(
        pruner, [{"op_names": ["fc2"]}], teacher, lambda batch, model: model(batch[0])
    )
    torch.testing.assert_close(trained(x), wrapped)
    pruner.unwrap_model()  # the distiller's now: nothing happens
    assert hasattr(trained.fc1, "_nni_wrapper")
    with pytest.raises(ValueError, match="a later compressor wraps the model"):
        pruner.compress(4)
    distiller.unwrap_model()
    assert_masked(trained, masks)
    pruner.wrap_model()
    torch.testing.assert_close(trained(x), wrapped)
    pruner.unwrap_model()


def test_on_the_wrappers_of_another_pruner(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    level = LevelPruner(trained, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    level.compress()
    x = images[0][:8]
    masked = trained(x)
    pruner = PwoAPruner.from_compressor(
        level, [{"op_types": ["Linear"], "sparse_ratio": 0.9}], evaluator=evaluator(trained, images), eps=0.1
    )
    torch.testing.assert_close(pruner.teacher(x), masked)  # as the network answered, not as NNI unwraps it
    _, masks = pruner.compress(24)
    assert masks["conv"]["weight"].mean() == pytest.approx(0.5, abs=0.01)
    assert masks["fc1"]["weight"].mean() == pytest.approx(0.1, abs=0.01)
    pruner.unwrap_model()
    assert_masked(trained, masks)
