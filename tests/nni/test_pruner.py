"""`PwoAPruner` with real NNI objects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import nni
import pytest
import torch
from nni.compression import TorchEvaluator
from nni.compression.base.compressor import Pruner
from nni.compression.pruning import LevelPruner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoAConfig, PwoAPruner
from pwoa_plugin.method.compression import TrainingError

Pair = tuple[Tensor, Tensor]
EVERY = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.75}]


def config(images: Pair, **fields: Any) -> PwoAConfig:
    return PwoAConfig(**{"sparsity": 0.8, "train_loader": images, "epochs": 4, "eps": 0.1, "progress": False} | fields)


def evaluator(model: nn.Module, images: Pair, **training: Any) -> TorchEvaluator:
    loader = DataLoader(TensorDataset(*images), batch_size=32, shuffle=True)

    def training_step(batch: Any, model: nn.Module) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def train(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: Callable[..., Tensor],
        scheduler: Any,
        max_steps: int | None,
        max_epochs: int | None,
    ) -> None:
        done = 0
        limit = max_steps if max_steps is not None else (max_epochs or 0) * len(loader)
        while done < limit:
            for batch in loader:
                optimizer.zero_grad()
                step(batch, model).backward()
                optimizer.step()
                done += 1
                if done == limit:
                    return

    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=5e-3)
    return TorchEvaluator(train, optimizer, training.get("step", training_step))


def zeros(model: nn.Module, name: str) -> float:
    return model.get_submodule(name).weight.eq(0).float().mean().item()


# -- a PwoAConfig --------------------------------------------------------------------------------


def test_config_run_returns_the_users_model_with_real_zeros(trained: nn.Module, images: Pair) -> None:
    parameters = list(trained.parameters())
    pruner = PwoAPruner(trained, config(images))
    assert isinstance(pruner, Pruner)
    model, masks = pruner.compress()
    assert model is trained
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not any(hasattr(module, "_nni_wrapper") for module in model.modules())
    assert type(masks) is dict
    assert list(masks) == ["conv", "fc1", "fc2"]
    kept = total = 0
    for name, targets in masks.items():
        assert type(targets) is dict
        assert list(targets) == ["weight"]
        assert set(targets["weight"].unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(model.get_submodule(name).weight != 0, targets["weight"].bool())
        kept, total = kept + int(targets["weight"].sum()), total + targets["weight"].numel()
    assert kept == round(0.2 * total)
    assert (model(images[0]).argmax(1) == images[1]).float().mean() > 0.9
    assert pruner.radius == pytest.approx(0.15)
    assert len(pruner.history) == 4


def test_config_run_is_bit_equal_under_a_seed_and_gives_the_random_state_back(trained: nn.Module, images: Pair) -> None:
    other = copy.deepcopy(trained)
    state = torch.get_rng_state()
    _, first = PwoAPruner(trained, config(images, seed=5)).compress()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    _, second = PwoAPruner(other, config(images, seed=5)).compress()
    for a, b in zip(trained.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(first[name]["weight"], second[name]["weight"]) for name in first)


def test_second_compress_and_unwrap_again_do_no_harm(trained: nn.Module, images: Pair) -> None:
    pruner = PwoAPruner(trained, config(images))
    pruner.compress()
    pruner.unwrap_model()
    pruner.unwrap_model()
    model, masks = pruner.compress()
    assert sum(int(m["weight"].sum()) for m in masks.values()) == sum(
        int(model.get_submodule(name).weight.count_nonzero()) for name in masks
    )
    assert len(pruner.history) == 4


def test_wrapping_afterwards_changes_nothing(trained: nn.Module, images: Pair) -> None:
    pruner = PwoAPruner(trained, config(images))
    pruner.compress()
    x = images[0][:8]
    before = trained(x)
    pruner.wrap_model()
    assert hasattr(trained.fc1, "_nni_wrapper")
    assert torch.equal(trained(x), before)
    pruner.unwrap_model()
    assert torch.equal(trained(x), before)
    assert zeros(trained, "fc1") > 0.5


def test_masks_load_without_pickle(trained: nn.Module, images: Pair, tmp_path: Any) -> None:
    _, masks = PwoAPruner(trained, config(images)).compress()
    torch.save(masks, tmp_path / "masks.pt")
    loaded = torch.load(tmp_path / "masks.pt", weights_only=True)
    assert torch.equal(loaded["fc1"]["weight"], masks["fc1"]["weight"])


def test_refused_before_the_model_is_touched(trained: nn.Module, images: Pair) -> None:
    before = copy.deepcopy(trained.state_dict())
    forwards = {name: module.forward for name, module in trained.named_modules()}
    refusals = {
        "no convolution or linear layer": lambda: PwoAPruner(trained, config(images, exclude=["nowhere"])),
        "the model has no prunable layer": lambda: PwoAPruner(nn.Sequential(nn.Flatten()), config(images)),
        "train_loader is missing": lambda: PwoAPruner(trained, config(None)),
        "train_loader is empty": lambda: PwoAPruner(trained, config([])).compress(),
        "outside pixel_range": lambda: PwoAPruner(trained, config((images[0] * 255, images[1]))).compress(),
        "no labels": lambda: PwoAPruner(trained, config(images[0])).compress(),
        "config_list is a dict": lambda: PwoAPruner(trained, {"sparse_ratio": 0.5}),  # type: ignore[arg-type]
        "evaluator is missing": lambda: PwoAPruner(trained, EVERY),
        "model is a function": lambda: PwoAPruner(lambda x: x, config(images)),  # type: ignore[arg-type]
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


def test_nan_loss_leaves_the_model_as_it_was(trained: nn.Module, images: Pair) -> None:
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(TrainingError, match="not finite"):
        PwoAPruner(trained, config(images, optimizer={"lr": 1e30}, admm={"epochs": 0})).compress()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_progress_bar_goes_to_stderr_and_quiet_is_quiet(
    trained: nn.Module, images: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    PwoAPruner(trained, config(images, progress=True)).compress()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "fine-tune 4/4" in shown.err
    PwoAPruner(trained, config(images)).compress()
    assert capsys.readouterr() == ("", "")


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
    trained: nn.Module, images: Pair, granularity: Any, groups: Callable[[Tensor], Tensor]
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


def test_bias_goes_with_a_dead_filter(trained: nn.Module, images: Pair) -> None:
    pruner = PwoAPruner(
        trained,
        [{"op_names": ["fc1"], "sparse_ratio": 0.5, "granularity": "out_channel"}],
        evaluator(trained, images),
        eps=0.1,
    )
    _, masks = pruner.compress(20, None)
    pruner.unwrap_model()
    dead = trained.fc1.weight.eq(0).all(1)
    assert int(dead.sum()) == 8
    assert torch.equal(trained.fc1.bias.eq(0), dead)
    assert torch.equal(masks["fc1"]["bias"].bool(), ~dead)


def test_second_compress_with_a_config_list(trained: nn.Module, images: Pair) -> None:
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images), eps=0.1, steps_per_epoch=6)
    for epochs in (4, 5):
        _, masks = pruner.compress(None, epochs)
        kept = sum(int(m["weight"].sum()) for m in masks.values())
        assert kept == pytest.approx(0.25 * sum(m["weight"].numel() for m in masks.values()), abs=1)
        assert pruner.residual is not None


def test_allocation_spreads_an_entrys_total(trained: nn.Module, images: Pair) -> None:
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images), allocation="lamp", eps=0.1)
    densities = [layer.density for layer in pruner.allocation.values()]
    assert max(densities) - min(densities) > 0.1
    kept = sum(layer.keep for layer in pruner.allocation.values())
    assert kept == pytest.approx(0.25 * sum(layer.weights for layer in pruner.allocation.values()), abs=1)
    pruner.unwrap_model()
    even = PwoAPruner(trained, EVERY, evaluator(trained, images)).allocation
    assert all(layer.density == pytest.approx(0.25, abs=1 / layer.weights) for layer in even.values())


def test_users_own_loss_has_weight_0_unless_asked_for(trained: nn.Module, images: Pair) -> None:
    def nan_loss(batch: Any, model: nn.Module) -> Tensor:
        return model(batch[0]).sum() * torch.nan

    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images, step=nan_loss), eps=0.1)
    pruner.compress(20, None)
    pruner.unwrap_model()
    assert trained.fc1.weight.isfinite().all()


def test_from_compressor_passes_config_list_by_that_name(trained: nn.Module, images: Pair) -> None:
    level = LevelPruner(trained, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    level.compress()
    pruner = PwoAPruner.from_compressor(
        level, [{"op_names": ["fc1"], "sparse_ratio": 0.9}], evaluator=evaluator(trained, images), eps=0.1
    )
    assert isinstance(pruner, PwoAPruner)
    assert list(pruner.allocation) == ["fc1"]
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
    trained: nn.Module, images: Pair, config_list: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        PwoAPruner(trained, config_list, evaluator(trained, images))
    assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules())


def test_how_long_to_train_must_be_said(trained: nn.Module, images: Pair) -> None:
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images))
    with pytest.raises(ValueError, match="give max_steps or max_epochs"):
        pruner.compress()
    with pytest.raises(ValueError, match="max_epochs needs steps_per_epoch"):
        pruner.compress(max_epochs=2)
    pruner.unwrap_model()
