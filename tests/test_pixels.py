"""Radii against the range of pixels, and numbers for each channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pwoa_plugin import PwoAConfig, PwoADistiller, PwoALoss, PwoAPruner, compare, evaluate, make_evaluator
from pwoa_plugin._pixels import check_radius, per_channel
from pwoa_plugin.errors import InputError
from pwoa_plugin.models import make_model
from pwoa_plugin.models.config import ModelConfig
from pwoa_plugin.models.normalisation import normalisation_of
from pwoa_plugin.robustness import JudgeSettings, security_curve


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


# -- the range of pixels in every door -----------------------------------------------------------

X, Y = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def by_config(**fields: Any) -> None:
    given = {"sparsity": 0.5, "train_loader": (X, Y), "epochs": 1, "batch_size": 12, "progress": False}
    PwoAPruner(network(), PwoAConfig(**given, **fields)).compress()  # type: ignore[arg-type]


def by_list(**fields: Any) -> None:
    model = network()
    evaluator = make_evaluator(model, [(X, Y)], lr=0.1)
    PwoAPruner(model, [{"op_names": ["0"], "sparse_ratio": 0.5}], evaluator, **fields).compress(2)


def distilled(**fields: Any) -> None:
    model = network()
    PwoADistiller(model, [], make_evaluator(model, [(X, Y)], lr=0.1), network(), **fields).compress(2, None)


def by_loss(**fields: Any) -> None:
    PwoALoss(network(), **fields)(network(), X, Y).backward()


JUDGE: dict[str, Any] = {"alarms": False, "progress": False}
DOORS: list[Callable[..., Any]] = [
    by_config,
    by_list,
    distilled,
    by_loss,
    lambda **fields: evaluate(network(), (X, Y), attacks="FGSM", **JUDGE, **fields),
    lambda **fields: compare({"a": network()}, (X, Y), attacks="FGSM", **JUDGE, **fields),
    lambda **fields: security_curve(network(), (X, Y), attack="FGSM", progress=False, **fields),
]


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_range_of_pixels_is_refused_alike(door: Callable[..., Any]) -> None:
    for value in (255, (0,), "0,1", "01", (0, 1, 2), ("a", "b")):
        with pytest.raises(InputError, match=r"^pixel_range=.*: give \(low, high\), such as \(0, 1\)$"):
            door(eps=0.1, pixel_range=value)
    for given in ([0, 1], np.array([0.0, 1.0]), torch.tensor([0, 1])):
        door(eps=0.1, pixel_range=given)


@pytest.mark.parametrize("door", DOORS)
def test_images_that_are_next_to_black_in_the_range_are_refused_alike(door: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"pixels reach 0\.9\d* at most, a 255th of pixel_range=\(0.0, 255.0\)"):
        door(eps=8, pixel_range=(0, 255))
