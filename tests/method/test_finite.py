"""Losses and weights that are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pwoa_plugin.errors import TrainingError
from pwoa_plugin.method.finite import FiniteLosses, check_finite


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var"])
def test_the_tensor_is_named(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    check_finite(model, 4)
    with torch.no_grad():
        (dict(model.named_parameters()) | dict(model.named_buffers()))[name].fill_(torch.nan)
    with pytest.raises(TrainingError, match=rf"^{name} is not finite after step 5; .*lower the learning rate"):
        check_finite(model, 5)


def test_frozen_parameters_do_not_count() -> None:
    model = nn.Linear(3, 2).requires_grad_(False)
    with torch.no_grad():
        model.weight.fill_(torch.inf)
    check_finite(model, 1)


def test_losses_are_read_at_every_tenth_call() -> None:
    losses = FiniteLosses()
    losses.add(torch.tensor(1.0))
    losses.add(torch.tensor(torch.nan))
    for _ in range(8):
        losses.add(torch.tensor(1.0))
    with pytest.raises(TrainingError, match="the loss is not finite at step 11, or shortly before"):
        losses.add(torch.tensor(1.0))
    with pytest.raises(TrainingError):
        losses.check()
