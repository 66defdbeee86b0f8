"""States of parts, put together and taken apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pwoa_plugin.method.snapshot import Snapshot, StateError, copy_into, tensors_of


def test_a_part_comes_back_as_it_was_put() -> None:
    inner = Snapshot({"a.b": torch.ones(2)}, {"done": 3})
    middle = Snapshot(facts={"at": 1})
    middle.put("inner", inner)
    whole = Snapshot()
    whole.put("middle", middle)
    assert list(whole.tensors) == ["middle.inner.a.b"]
    again = whole.part("middle").part("inner")
    assert again.facts == {"done": 3}
    assert torch.equal(again.tensors["a.b"], torch.ones(2))
    assert whole.part("nothing") == Snapshot()


def test_tensors_are_copied_by_name_and_keep_their_layout() -> None:
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    saved = {name: torch.rand(tensor.shape) for name, tensor in tensors_of(layer).items()}
    copy_into(tensors_of(layer), saved, "parameters")
    assert torch.equal(layer.weight, saved["weight"])
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(StateError, match=r"other parameters than this run \(bias\)"):
        copy_into(tensors_of(layer), {"weight": saved["weight"]}, "parameters")
    with pytest.raises(StateError, match=r"parameters bias has shape \(5,\), and this run's \(4,\)"):
        copy_into(tensors_of(layer), saved | {"bias": torch.zeros(5)}, "parameters")
