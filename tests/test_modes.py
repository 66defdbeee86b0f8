"""Training and eval mode."""

from __future__ import annotations

import pytest
from torch import nn

from pwoa_plugin._modes import modes_kept, train_mode


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())

    def fail() -> None:
        with modes_kept(model):
            model.eval()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, False, True]


def test_frozen_batchnorm_stays_in_eval_mode() -> None:
    frozen, live = nn.BatchNorm1d(2).eval().requires_grad_(False), nn.BatchNorm1d(2).eval()
    train_mode(nn.Sequential(frozen, live))
    assert not frozen.training
    assert live.training
