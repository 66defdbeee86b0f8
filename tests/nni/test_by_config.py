"""`PwoAPruner` by a `PwoAConfig`: our trainer, and NNI's books afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from nni.compression.base.compressor import Pruner
from nni.compression.pruning import LevelPruner
from torch import nn

from pwoa_plugin import PwoAPruner
from pwoa_plugin.errors import TrainingError
from pwoa_plugin.nni.by_config import ByConfig

from .conftest import Pair, config, zeros


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


def test_there_is_one_teacher(trained: nn.Module, images: Pair) -> None:
    pruner = PwoAPruner(trained, config(images, epochs=1))
    assert isinstance(pruner._strategy, ByConfig)
    assert pruner.teacher is pruner._strategy.trainer.teacher
    pruner.compress()
    assert pruner.teacher is pruner._strategy.trainer.teacher is pruner._strategy.loss.teacher


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


def test_the_wrappers_of_a_later_compressor_hold_the_pruned_weights(trained: nn.Module, images: Pair) -> None:
    pruner = PwoAPruner(trained, config(images))
    pruner.compress()
    before = trained.fc1.weight.detach().clone()
    level = LevelPruner.from_compressor(pruner, [])  # NNI's own wrap_model takes the wrappers' weights as they are
    assert torch.equal(trained.fc1._nni_wrapper.weight, before)
    level.unwrap_model()
    assert torch.equal(trained.fc1.weight, before)


def test_masks_load_without_pickle(trained: nn.Module, images: Pair, tmp_path: Any) -> None:
    _, masks = PwoAPruner(trained, config(images)).compress()
    torch.save(masks, tmp_path / "masks.pt")
    loaded = torch.load(tmp_path / "masks.pt", weights_only=True)
    assert torch.equal(loaded["fc1"]["weight"], masks["fc1"]["weight"])


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


class OwnLinear(nn.Linear):
    """NNI selects and sets up layers by the exact name of their class."""


def test_subclasses_of_layers_are_pruned_too(images: Pair) -> None:
    model = nn.Sequential(nn.Flatten(), OwnLinear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    _, masks = PwoAPruner(model, config(images)).compress()
    assert list(masks) == ["1", "3"]


def test_a_vision_transformer(images: Pair) -> None:
    vit = torchvision.models.VisionTransformer(8, 4, 1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)
    colour = images[0].expand(-1, 3, -1, -1), images[1]
    model, masks = PwoAPruner(vit, config(colour, epochs=1)).compress()
    assert "encoder.layers.encoder_layer_0.self_attention.out_proj" in masks
    assert all(torch.equal(model.get_submodule(n).weight != 0, m["weight"].bool()) for n, m in masks.items())
