"""One model of judging settings, whoever gives them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pwoa_plugin.robustness import PGD, JudgeSettings, compare, evaluate, load_protocol
from pwoa_plugin.robustness.settings import CompareOptions, JudgeOptions

Pair = tuple[Tensor, Tensor]


def test_the_options_are_the_fields_of_the_model() -> None:
    fields = [*JudgeSettings.model_fields, "attacks"]
    assert sorted(CompareOptions.__annotations__) == sorted(fields)
    assert sorted(JudgeOptions.__annotations__) == sorted(set(fields) - {"curve", "curve_attack"})
    described = (JudgeSettings.__doc__ or "").replace("mean, std: ", "mean: std: ")
    assert all(f" {name}: " in described for name in fields)


@pytest.mark.parametrize(("function", "options"), [(evaluate, JudgeOptions), (compare, CompareOptions)])
def test_signature_and_help_show_every_option(function: Any, options: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters)[-len(options.__annotations__) :] == list(options.__annotations__)
    assert parameters["batch_size"].default == 256
    assert parameters["eps"].default is None
    assert "eps: radius of the ball in pixel units" in function.__doc__


def test_numbers_come_as_text_and_as_numpy() -> None:
    settings = JudgeSettings.of(
        {"eps": "8/255", "step_size": np.float32(0.5), "batch_size": np.int64(3), "mean": np.ones(1), "std": [2]}
    )
    assert (settings.eps, settings.step_size, settings.batch_size) == (8 / 255, 0.5, 3)
    assert (settings.mean, settings.std) == ((1.0,), (2.0,))


def test_what_is_given_goes_before_the_protocol_and_that_before_what_is_there_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nversion: 2\nattacks: [FGSM]\nnorm: L2\neps: 0.5\n")
    settings = JudgeSettings.of({"protocol": path}, eps=0.25, device="cpu")
    assert (settings.norm, settings.eps, settings.device) == ("L2", 0.5, torch.device("cpu"))
    settings = JudgeSettings.of({"protocol": path, "norm": "linf", "eps": 0.125}, eps=0.25)
    assert (settings.norm, settings.eps) == ("Linf", 0.125)
    settings = JudgeSettings.of({"attacks": "PGD-7", "eps": None, "seed": None}, eps=0.25)
    assert (settings.norm, settings.eps, settings.seed) == ("Linf", 0.25, 0)
    assert (settings.protocol.name, settings.attacks[0].name) == ("custom", "PGD-7")
    assert JudgeSettings.of({"eps": 0.1}, protocol="quick").protocol == load_protocol("quick")


def test_a_point_of_a_curve_changes_attack_and_radius_only() -> None:
    settings = JudgeSettings.of({"protocol": "quick", "eps": 0.1, "seed": 4, "norm": "L2"})
    point = settings.at(0.2, PGD(steps=3))
    assert (point.eps, point.seed, point.norm, point.alarms) == (0.2, 4, "L2", False)
    assert [attack.name for attack in point.attacks] == ["PGD-3"]


def test_binding_draws_the_sample_by_class(held_out: Pair) -> None:
    task = JudgeSettings.of({"protocol": "quick", "eps": 0.1}).bind(held_out)
    assert len(task.images.pixels) == load_protocol("quick").sample == 128
    few = (held_out[0][:50], held_out[1][:50])
    assert len(JudgeSettings.of({"protocol": "quick", "eps": 0.1}).bind(few).images.labels) == 50
    assert torch.equal(JudgeSettings.of({"eps": 0.1, "sample": 50}).bind(few).images.pixels, few[0])


def test_the_widest_ball_depends_on_the_size_of_the_images_in_l2(held_out: Pair) -> None:
    JudgeSettings.of({"eps": 7.9, "norm": "L2"}).bind(held_out)  # 8 is the diagonal of 1x8x8 values
    with pytest.raises(ValueError, match=r"eps=8\.1 is wider"):
        JudgeSettings.of({"eps": 8.1, "norm": "L2"}).bind(held_out)
    with pytest.raises(ValueError, match=r"^curve: eps=8\.1 is wider"):
        JudgeSettings.of({"eps": 1, "norm": "L2", "curve": ["1/2", 8.1]}).bind(held_out)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        JudgeSettings.of({"eps": 0.1}).eps = 0.2  # type: ignore[misc]
