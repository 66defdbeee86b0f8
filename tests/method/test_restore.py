"""A model as it was, after an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pwoa_plugin.method.restore import restored_on_error


def damage(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), model.get_buffer("1.running_mean")):
            tensor.add_(1)
    model.get_parameter("0.weight").grad = torch.ones(2, 3)
    model.train()


def test_values_come_back_after_an_error_and_modes_always() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    gradient = torch.full((2,), 5.0)
    model.get_parameter("0.bias").grad = gradient
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    undone: list[bool] = []

    def interrupted() -> None:
        with restored_on_error(model, lambda: undone.append(True)):
            assert model.get_parameter("0.bias").grad is None
            damage(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert undone == [True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with restored_on_error(model, lambda: undone.append(True)):
        damage(model)
    assert undone == [True]
    assert not torch.equal(model.get_parameter("0.weight"), before["0.weight"])
    assert not any(module.training for module in model.modules())
    assert model.get_parameter("0.bias").grad is gradient
    assert model.get_parameter("0.weight").grad is None
