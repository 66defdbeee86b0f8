from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.removal.inputs import (
    call,
    call_saying_where,
    check_model,
    largest_difference,
    map_tensors,
    random_batch,
    tensors_of,
)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2))

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"y": self.inner[0](x) * scale}


def test_call_takes_tensors_tuples_and_dicts() -> None:
    model, x, scale = Two(), torch.rand(2, 3), torch.tensor(2.0)
    expected = model(x, scale)["y"]
    assert torch.equal(call(model, (x, scale))["y"], expected)
    assert torch.equal(call(model, [x, scale])["y"], expected)
    assert torch.equal(call(model, {"scale": scale, "x": x})["y"], expected)
    assert torch.equal(call(nn.Flatten(), torch.ones(2, 3, 4)), torch.ones(2, 12))


def test_tensors_in_nested_values() -> None:
    one, two = torch.ones(1), torch.zeros(2)
    nested = {"a": [one, (two, None, "text")], "b": 3}
    assert [len(tensor) for tensor in tensors_of(nested)] == [1, 2]
    assert map_tensors(len, nested) == {"a": [1, (2, None, "text")], "b": 3}


def test_the_largest_difference_is_relative_to_each_tensor() -> None:
    expected = [torch.tensor([1.0, -100.0]), torch.tensor([0.5]), torch.empty(0)]
    found = [torch.tensor([2.0, -100.0]), torch.tensor([0.25]), torch.empty(0)]
    assert largest_difference(expected, expected) == 0
    assert largest_difference(expected, found) == 0.5
    assert largest_difference(expected[:1], [torch.tensor([1.0, float("nan")])]) == float("inf")


def test_random_batch_has_the_samples_and_leaves_the_rest() -> None:
    random = torch.Generator().manual_seed(0)
    x, tokens, scale = torch.zeros(3, 4), torch.tensor([[5], [6], [7]]), torch.tensor(1.0)
    drawn = random_batch({"x": x, "tokens": tokens, "scale": scale}, random, samples=8)
    assert drawn["x"].shape == (9, 4)
    assert 0 < drawn["x"].min() < drawn["x"].max() < 1
    assert torch.equal(drawn["tokens"], tokens.repeat(3, 1))
    assert drawn["scale"].shape == ()
    assert random_batch(x, random).shape == (3, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, r"example_inputs: the forward of Two itself fails on them: TypeError"),
        ((torch.rand(2, 4), torch.ones(())), r"example_inputs: inner.0 \(Linear\) fails on them: RuntimeError"),
        (torch.rand(2, 3), r"example_inputs: the forward of Two itself fails on them: TypeError"),
        (
            (torch.rand(2, 3, device="meta"), torch.ones(())),
            r"example_inputs: inner.0 \(Linear\) fails on them: RuntimeError: Tensor on device",
        ),
    ],
)
def test_errors_say_where(inputs: Any, message: str) -> None:
    model = Two()
    with pytest.raises(ValueError, match=message) as raised:
        call_saying_where(model, inputs)
    assert "\n" not in str(raised.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)), "ScriptModule"),
    ],
)
def test_models_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_model(model)
