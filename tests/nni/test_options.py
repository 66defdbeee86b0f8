"""The keywords that the doors hand on are those that take them."""

from __future__ import annotations

import inspect

import pytest
from torch import nn

from pwoa_plugin import PwoALoss, PwoAPruner
from pwoa_plugin.nni.options import LossOptions


def test_each_is_a_keyword_of_the_loss() -> None:
    assert set(LossOptions.__annotations__) < set(inspect.signature(PwoALoss).parameters)


def test_an_unknown_keyword_is_named(trained: nn.Module, images: object, evaluator: object) -> None:
    entries = [{"op_types": ["Linear"], "sparse_ratio": 0.5}]
    with pytest.raises(TypeError, match="epss"):
        PwoAPruner(trained, entries, evaluator(trained, images), epss=0.1)  # type: ignore[operator, call-arg]
