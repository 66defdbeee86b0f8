from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pwoa_plugin.removal.masks import bake, check_masks


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "give NNI's format"),
        ({"0": torch.ones(4, 1, 3, 3)}, "give NNI's format"),
        ({"conv": {"weight": torch.ones(4, 1, 3, 3)}}, "no module 'conv'; are they another model's"),
        ({"0": {"weight": torch.ones(4)}}, r"0.weight is \(4,\), and the parameter is \(4, 1, 3, 3\)"),
        ({"0": {"weight": [1, 0]}}, "0.weight is a list"),
        ({"0": {"weight": torch.full((4, 1, 3, 3), 0.5)}}, "values other than 0 and 1"),
        ({"0": {"_output_0": torch.ones(4)}}, "0._output_0 is no parameter"),
        ({"2": {"weight": torch.ones(4)}}, "2.weight is no parameter"),
    ],
)
def test_refused(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"masks: .*{message}") as raised:
        check_masks(net(), masks)
    assert "\n" not in str(raised.value)


def test_a_close_name_is_suggested() -> None:
    model = nn.Module()
    model.conv1 = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="did you mean conv1"):
        check_masks(model, {"conv_1": {"weight": torch.ones(1, 1, 1, 1)}})


def test_a_computed_weight_is_refused() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=r"0.weight is computed from other parameters"):
        check_masks(model, {"0": {"weight": torch.ones(3, 3)}})


def test_masks_that_are_none_are_left_out() -> None:
    mask = torch.ones(4, 1, 3, 3)
    assert check_masks(net(), {"0": {"weight": mask, "bias": None}, "3": {"weight": None}})["0"].keys() == {"weight"}
    assert "3" not in check_masks(net(), {"3": {"weight": None}})


def test_bake_zeroes_also_what_is_not_finite() -> None:
    model = net()
    model[0].weight.data[1] = float("nan")
    mask = torch.ones(4, 1, 3, 3, dtype=torch.bool)
    mask[1] = False
    before = model[0].weight.detach().clone()
    bake(model, {"0": {"weight": mask}})
    assert (model[0].weight[1] == 0).all()
    assert torch.equal(model[0].weight[[0, 2, 3]], before[[0, 2, 3]])
