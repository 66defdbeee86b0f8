from __future__ import annotations

import pytest
from torch import nn

from pwoa_plugin._modes import modes_kept, train_mode


def net() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.BatchNorm2d(3, affine=False))


@pytest.mark.parametrize("fails", [False, True])
def test_modes_come_back_even_when_the_body_raises(fails: bool) -> None:
    model = net()
    model[0].eval()
    try:
        with modes_kept(model):
            model.eval()
            model[0].train()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == [True, False, True, True]


def test_frozen_batch_norm_stays_in_eval_mode() -> None:
    model = net().eval()
    model[0].requires_grad_(False)
    train_mode(model)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    model[0].requires_grad_(True)
    train_mode(model)
    assert model[0].training
