"""`PwoAPruner` with real NNI objects."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nni.compression.pruning import LevelPruner
from torch import Tensor, nn

from pwoa_plugin import PwoALoss, PwoAPruner

from .conftest import ENTRIES, MakeEvaluator, Pair, config, zeros

# -- a PwoAConfig --------------------------------------------------------------------------------


def test_refused_before_the_model_is_touched(trained: nn.Module, images: Pair) -> None:
    before = copy.deepcopy(trained.state_dict())
    forwards = {name: module.forward for name, module in trained.named_modules()}
    refusals = {
        "no convolution or linear layer": lambda: PwoAPruner(trained, config(images, exclude=["nowhere"])),
        "the model has no prunable layer": lambda: PwoAPruner(nn.Sequential(nn.BatchNorm2d(1)), config(images)),
        "train_loader is missing": lambda: PwoAPruner(trained, config(None)),
        "train_loader is empty": lambda: PwoAPruner(trained, config([])).compress(),
        "outside pixel_range": lambda: PwoAPruner(trained, config((images[0] * 255, images[1]))).compress(),
        "no labels": lambda: PwoAPruner(trained, config(images[0])).compress(),
        "config_list: give a PwoAConfig, or": lambda: PwoAPruner(trained, {"sparse_ratio": 0.5}),  # type: ignore[arg-type]
        "evaluator is missing": lambda: PwoAPruner(trained, ENTRIES),
        "or not one of NNI's": lambda: PwoAPruner(trained, ENTRIES, torch.optim.SGD(trained.parameters(), lr=0.1)),
        "with a PwoAConfig": lambda: PwoAPruner(trained, config(images), eps=0.3),
        "call compress": lambda: PwoAPruner(trained, config(images)).compress(10, None),
    }
    for said, refused in refusals.items():
        with pytest.raises(ValueError, match=said) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    for name, module in trained.named_modules():
        assert module.forward == forwards[name]
        assert not hasattr(module, "_nni_wrapper")


def test_options_of_a_list_that_cannot_be_used(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    knows = evaluator(trained, images)
    knows.steps_per_epoch = 6
    refusals: dict[str, dict[str, Any]] = {
        "admm is a int; give a ADMMConfig or a dict": {"admm": 3},
        "admm.rhoo: unknown key": {"admm": {"rhoo": 1}},
        "gradual.steps: unknown key": {"gradual": {"steps": 1}},
        "hsic.layers: the model has no module 'fc7'": {"hsic": {"layers": "fc7"}},
        "origin_loss_lambda=-1; give a number of at least 0": {"origin_loss_lambda": -1},
        "origin_loss_lambda=nan": {"origin_loss_lambda": float("nan")},
        "steps_per_epoch=0; give an int of at least 1": {"steps_per_epoch": 0},
        "steps_per_epoch=1.5": {"steps_per_epoch": 1.5},
        "steps_per_epoch=7 contradicts the evaluator's own, which is 6": {"steps_per_epoch": 7},
    }
    for said, options in refusals.items():
        with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
            PwoAPruner(trained, ENTRIES, knows, **options)
        assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules())
    PwoAPruner(trained, ENTRIES, knows, admm={"epochs": 2}, steps_per_epoch=6).unwrap_model()


def test_what_layers_keep_is_as_it_was_after_an_error(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images), allocation="lamp", eps=0.1)
    before, calls = dict(pruner.allocation), []
    forward = PwoALoss.forward

    def interrupted(*args: Any) -> Tensor:
        calls.append(None)
        if len(calls) > 30:  # after the hard prune
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(PwoALoss, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pruner.compress(40)
    assert len(calls) == 31
    assert pruner.allocation == before


def test_input_gradients_are_distilled(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    settings = {"gradient_weight": 1, "gradient_share": 1}
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images), eps=0.1, distillation=settings)
    pruner.compress(20)
    assert pruner._strategy.loss.terms["gradients"] > 0


# -- NNI's config_list ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [
        ("default", lambda w: w.flatten()),
        ([1], lambda w: w.flatten()),
        ("out_channel", lambda w: w.flatten(1).abs().sum(1)),
        ("in_channel", lambda w: w.transpose(0, 1).flatten(1).abs().sum(1)),
    ],
)
def test_config_list_behaves_as_nnis_pruners_do(
    trained: nn.Module, images: Pair, granularity: Any, groups: Callable[[Tensor], Tensor], evaluator: MakeEvaluator
) -> None:
    config_list = [{"op_names": ["fc1"], "sparse_ratio": 0.5, "granularity": granularity}]
    if granularity == "in_channel":
        config_list[0]["target_names"] = ["weight"]
    pruner = PwoAPruner(trained, config_list, evaluator(trained, images), eps=0.1)
    model, masks = pruner.compress(max_steps=80, max_epochs=None)
    assert model is trained
    assert hasattr(model.fc1, "_nni_wrapper")  # wrapped, as NNI leaves it
    assert list(masks) == ["fc1"]
    x = images[0][:8]
    wrapped = model(x)
    pruner.unwrap_model()
    pruner.unwrap_model()
    torch.testing.assert_close(model(x), wrapped)
    kept = groups(model.fc1.weight).ne(0)
    assert int(kept.sum()) == len(kept) // 2
    assert zeros(model, "conv") == 0
    assert (model(images[0]).argmax(1) == images[1]).float().mean() > 0.9


def test_allocation_spreads_an_entrys_total(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images), allocation="lamp", eps=0.1)
    densities = [layer.density for layer in pruner.allocation.values()]
    assert max(densities) - min(densities) > 0.1
    kept = sum(layer.keep for layer in pruner.allocation.values())
    assert kept == pytest.approx(0.25 * sum(layer.weights for layer in pruner.allocation.values()), abs=1)
    pruner.unwrap_model()
    even = PwoAPruner(trained, ENTRIES, evaluator(trained, images)).allocation
    assert all(layer.density == pytest.approx(0.25, abs=1 / layer.weights) for layer in even.values())


def test_users_own_loss_has_weight_0_unless_asked_for(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    def nan_loss(batch: Any, model: nn.Module) -> Tensor:
        return model(batch[0]).sum() * torch.nan

    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images, step=nan_loss), eps=0.1)
    pruner.compress(20, None)
    pruner.unwrap_model()
    assert trained.fc1.weight.isfinite().all()


@pytest.mark.parametrize(("granularity", "ratio"), [("column", 0.5), ("filter", 0.5), ("block:2x2", 0.5), ("2:4", 0.5)])
def test_our_own_names_of_granularity_in_a_config_list(
    trained: nn.Module, images: Pair, granularity: str, ratio: float, evaluator: MakeEvaluator
) -> None:
    entry = {"op_names": ["fc1"], "sparse_ratio": ratio, "granularity": granularity}
    pruner = PwoAPruner(trained, [entry], evaluator(trained, images), eps=0.1)
    _, masks = pruner.compress(12, None)
    pruner.unwrap_model()
    assert masks["fc1"]["weight"].mean().item() == pytest.approx(0.5)
    assert torch.equal(trained.fc1.weight != 0, masks["fc1"]["weight"].bool())
    if granularity == "2:4":
        assert masks["fc1"]["weight"].view(16, -1, 4).sum(-1).eq(2).all()
        with pytest.raises(ValueError, match=r"sparse_ratio=0\.9 contradicts granularity='2:4'"):
            PwoAPruner(trained, [{**entry, "sparse_ratio": 0.9}], evaluator(trained, images))


@pytest.mark.parametrize("steps", [3, 40])  # with and without an ADMM phase
def test_bad_batches_of_an_evaluator_leave_the_weights_as_they_were(
    trained: nn.Module, images: Pair, steps: int, evaluator: MakeEvaluator
) -> None:
    before = copy.deepcopy(trained.state_dict())
    x, y = images
    bad = {
        "pixels reach from": (x * 255, y),
        "labels reach from 0 to 7": (x, y.where(y < 2, 7)),
        "images hold NaN": (x * torch.nan, y),
    }
    for said, data in bad.items():
        model = copy.deepcopy(trained)

        def step(batch: Any, model: nn.Module) -> Tensor:
            return model(batch[0]).sum() * 0

        pruner = PwoAPruner(model, ENTRIES, evaluator(model, data, step=step), eps=0.1)
        with pytest.raises(ValueError, match=said):
            pruner.compress(steps, None)
        pruner.unwrap_model()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_from_compressor_passes_config_list_by_that_name(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    level = LevelPruner(trained, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    level.compress()
    pruner = PwoAPruner.from_compressor(
        level, [{"op_names": ["fc1"], "sparse_ratio": 0.9}], evaluator=evaluator(trained, images), eps=0.1
    )
    assert isinstance(pruner, PwoAPruner)
    assert list(pruner.allocation) == ["fc1"]
    with pytest.raises(ValueError, match="whose run trains by itself"):
        PwoAPruner.from_compressor(level, config(images))
    pruner.unwrap_model()


@pytest.mark.parametrize(
    ("config_list", "said"),
    [
        ([{"op_types": ["Conv3d"], "sparse_ratio": 0.5}], "selects no layer"),
        ([{"op_names": ["fc1"]}], "no weight a sparse_ratio"),
        ([{"op_names": ["fc1"], "sparse_ratio": 0.9999}], "would empty a layer"),
        ([{"op_names": ["conv"], "sparse_ratio": 0.5, "granularity": [1, 1, 2, 1]}], "not consecutive"),
    ],
)
def test_config_lists_that_cannot_be_used(
    trained: nn.Module, images: Pair, config_list: list[dict[str, Any]], said: str, evaluator: MakeEvaluator
) -> None:
    with pytest.raises(ValueError, match=said):
        PwoAPruner(trained, config_list, evaluator(trained, images))
    assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules())


def test_a_wrapped_model_is_another_compressors(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    level = LevelPruner(trained, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    with pytest.raises(ValueError, match=r"use PwoAPruner\.from_compressor"):
        PwoAPruner(trained, ENTRIES, evaluator(trained, images))
    level.unwrap_model()
