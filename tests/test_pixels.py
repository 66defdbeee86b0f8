"""Radii against the range of pixels, and numbers for each channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pwoa_plugin._pixels import check_radius, per_channel
from pwoa_plugin.errors import InputError
from pwoa_plugin.models import make_model
from pwoa_plugin.models.config import ModelConfig
from pwoa_plugin.models.normalisation import normalisation_of
from pwoa_plugin.robustness import JudgeSettings


@pytest.mark.parametrize(
    ("eps", "pixel_range", "message"),
    [
        (0.1, (1.0, 0.0), "pixel_range=.* is empty"),
        (1.0, (0.0, 1.0), r"eps=1 is outside \(0, 1\)"),
        (0.0, (0.0, 1.0), "eps=0 is outside"),
        (8 / 255, (0.0, 255.0), r"eps=0.03\d+ is next to nothing .*did you mean 8\?"),
    ],
)
def test_what_cannot_be_meant(eps: float, pixel_range: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_radius(eps, pixel_range)


def test_what_can() -> None:
    check_radius(None, (0.0, 1.0))
    check_radius(8 / 255, (0.0, 1.0))
    check_radius(8, (0.0, 255.0))


CHANNELS = torch.tensor([0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    "value",
    [
        CHANNELS.tolist(),
        tuple(CHANNELS.double()),
        CHANNELS,
        CHANNELS.numpy(),
        CHANNELS.view(1, 3, 1, 1),
        nn.Parameter(CHANNELS.view(3, 1, 1)),
        CHANNELS.view(3, 1, 1).tolist(),
    ],
)
def test_one_number_for_each_channel_in_every_door(value: Any) -> None:
    wanted = pytest.approx((0.485, 0.456, 0.406), abs=1e-7)
    assert per_channel("mean", value) == wanted
    fields = {"mean": value, "std": value}
    assert ModelConfig(arch="lenet", checkpoint="a.pt", **fields).mean == wanted
    assert JudgeSettings.of({"eps": 0.1, "attacks": "FGSM", **fields}).std == wanted
    made = make_model("lenet", num_classes=3, in_channels=3, **fields)
    assert normalisation_of(made).mean == wanted  # type: ignore[union-attr]


def test_a_number_is_one_channel_and_float32_is_as_it_was_written() -> None:
    assert per_channel("mean", 0.5) == per_channel("mean", torch.tensor(0.5)) == (0.5,)
    assert per_channel("mean", CHANNELS[:1]) == (0.485,)


@pytest.mark.parametrize("value", [[], "a", True, [None], [1, [2]], [[1, 2], [3, 4]], [0.5, float("nan")], {}])
def test_what_is_no_number_for_each_channel_is_refused_in_every_door(value: Any) -> None:
    for door in (
        lambda: per_channel("mean", value),
        lambda: ModelConfig(arch="lenet", checkpoint="a.pt", mean=value, std=0.5),
        lambda: JudgeSettings.of({"eps": 0.1, "attacks": "FGSM", "mean": value, "std": 0.5}),
    ):
        with pytest.raises(
            InputError, match=r"^mean.*(one number for each channel|a number, not true or false)"
        ) as caught:
            door()
        assert "\n" not in str(caught.value)
