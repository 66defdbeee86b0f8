"""Devices that are not here, and networks without numbers, in every door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TinyNet, make_images
from torch import nn

from pwoa_plugin import PwoAConfig, PwoAGroupPruner, PwoALoss, PwoAPruner, compare, evaluate, speedup
from pwoa_plugin._devices import check_device, dtype_of
from pwoa_plugin.errors import InputError

absent = f"cuda:{torch.cuda.device_count() + 99}"
bad = pytest.mark.parametrize("device", ["meta", absent, "nonsense", "", "hpu", "privateuseone", "lazy", "cpu:-1"])
how: dict[str, Any] = {"eps": 0.1, "attacks": "FGSM", "progress": False}


@bad
@pytest.mark.parametrize(
    "door",
    [
        lambda device: PwoAConfig(sparsity=0.5, device=device),
        lambda device: evaluate(TinyNet(), make_images(4), device=device, **how),
        lambda device: compare({"a": TinyNet()}, make_images(4), device=device, **how),
    ],
)
def test_a_device_that_cannot_be_used(device: str, door: Callable[[str], Any]) -> None:
    with pytest.raises(
        InputError, match=f"device='{device}' cannot be used here .*; use 'cpu'.*, or leave it out$"
    ) as told:
        door(device)
    assert "\n" not in str(told.value)


def test_devices_in_other_forms() -> None:
    assert check_device(torch.device("cpu")) == check_device("cpu") == torch.device("cpu")
    assert PwoAConfig(sparsity=0.5, device=torch.device("cpu")).device == "cpu"  # type: ignore[arg-type]
    for odd in (torch.device("meta"), True, None, 3.5, ["cpu"]):
        with pytest.raises(InputError, match="cannot be used here"):
            check_device(odd)


@pytest.mark.parametrize(
    "door",
    [
        lambda model: PwoAPruner(model, PwoAConfig(sparsity=0.5, train_loader=make_images(32))),
        lambda model: PwoAGroupPruner(model, torch.rand(2, 1, 8, 8)),
        lambda model: PwoALoss(model)(TinyNet(), *make_images(4)),
        lambda model: speedup(model, {}, torch.rand(2, 1, 8, 8)),
        lambda model: evaluate(model, make_images(4), **how),
    ],
)
def test_a_network_without_numbers(door: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(InputError, match=r"conv\.weight is on the meta device, without numbers; make the model on"):
        door(TinyNet().to("meta"))


class IntegersFirst(TinyNet):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.index = nn.Parameter(torch.arange(3), requires_grad=False)
        super_like = TinyNet()
        self.conv, self.fc1, self.fc2 = super_like.conv, super_like.fc1, super_like.fc2


def test_the_type_of_images_is_that_of_the_first_floating_tensor() -> None:
    assert dtype_of(IntegersFirst()) == torch.float32
    assert dtype_of(IntegersFirst().double()) == torch.float64
    assert dtype_of(nn.ReLU()) == torch.float32


@pytest.mark.parametrize("granularity", ["unstructured", "structured"])
def test_an_integer_parameter_may_come_first(granularity: str) -> None:
    prune: Any = PwoAPruner if granularity == "unstructured" else lambda model, c: PwoAGroupPruner(model, config=c)
    config = PwoAConfig(
        sparsity=0.5, train_loader=make_images(32), epochs=2, granularity=granularity, eps=0.1, progress=False
    )
    model = IntegersFirst()
    prune(model, config).compress()
    evaluate(model, make_images(4), **how)
    assert model.index.tolist() == [0, 1, 2]
