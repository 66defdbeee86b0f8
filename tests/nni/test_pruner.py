"""`PwoAPruner` with real NNI objects."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from nni.compression.base.compressor import Pruner
from nni.compression.pruning import AGPPruner, LevelPruner
from nni.compression.quantization import PtqQuantizer, QATQuantizer
from torch import Tensor, nn

from pwoa_plugin import PwoAConfig, PwoALoss, PwoAPruner, speedup
from pwoa_plugin.config import ADMMConfig
from pwoa_plugin.errors import TrainingError
from pwoa_plugin.nni.by_config import ByConfig

Pair = tuple[Tensor, Tensor]
MakeEvaluator = Callable[..., Any]
EVERY = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.75}]


def config(images: Pair, **fields: Any) -> PwoAConfig:
    return PwoAConfig(**{"sparsity": 0.8, "train_loader": images, "epochs": 4, "eps": 0.1, "progress": False} | fields)


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
        "config_list: give a PwoAConfig, or": lambda: PwoAPruner(trained, {"sparse_ratio": 0.5}),  # type: ignore[arg-type]
        "evaluator is missing": lambda: PwoAPruner(trained, EVERY),
        "or not one of NNI's": lambda: PwoAPruner(trained, EVERY, torch.optim.SGD(trained.parameters(), lr=0.1)),
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
        "origin_loss_lambda=True": {"origin_loss_lambda": True},
        "origin_loss_lambda='1'": {"origin_loss_lambda": "1"},
        "steps_per_epoch=0; give an int of at least 1": {"steps_per_epoch": 0},
        "steps_per_epoch=1.5": {"steps_per_epoch": 1.5},
        "steps_per_epoch=7 contradicts the evaluator's own, which is 6": {"steps_per_epoch": 7},
    }
    for said, options in refusals.items():
        with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
            PwoAPruner(trained, EVERY, knows, **options)
        assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules())
    PwoAPruner(trained, EVERY, knows, admm={"epochs": 2}, steps_per_epoch=6).unwrap_model()


def test_nan_loss_leaves_the_model_as_it_was(trained: nn.Module, images: Pair) -> None:
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(TrainingError, match="not finite"):
        PwoAPruner(trained, config(images, optimizer={"lr": 1e30}, admm={"epochs": 0})).compress()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_what_layers_keep_is_as_it_was_after_an_error(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images), allocation="lamp", eps=0.1)
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
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images), eps=0.1, distillation=settings)
    pruner.compress(20)
    assert pruner._strategy.loss.terms["gradients"] > 0


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


def test_bias_goes_with_a_dead_filter(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
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


FILTERS = [{"op_names": ["conv1", "conv2"], "sparse_ratio": 0.5, "granularity": "out_channel"}]


@pytest.mark.parametrize("targets", [["weight"], ["weight", "bias"]])
def test_dead_filters_emit_nothing_and_speedup_takes_them_all(
    conv_net: nn.Module, images: Pair, targets: list[str], evaluator: MakeEvaluator
) -> None:
    x = images[0][:16]
    emitted: list[float] = []

    def look(model: nn.Module, _: Tensor) -> None:
        if pruner._target.done:  # in every step of the fine-tuning, whatever the optimizer's momentum says
            dead = model.conv1._nni_wrapper.weight.eq(0).flatten(1).all(1)
            emitted.append(model.bn1(model.conv1(x))[:, dead].detach().abs().max().item())

    pruner = PwoAPruner(
        conv_net, [FILTERS[0] | {"target_names": targets}], evaluator(conv_net, images, seen=look), eps=0.1
    )
    _, masks = pruner.compress(24)
    assert emitted == [0.0] * len(emitted)
    assert len(emitted) > 12
    pruner.unwrap_model()
    conv_net.eval()
    assert conv_net.bn1.running_mean.abs().min() > 0
    assert (conv_net.bn1.bias != 0).sum() == (conv_net.conv2.bias != 0).sum() == 4
    small = speedup(conv_net, masks, x)
    shapes = {name: tuple(parameter.shape) for name, parameter in small.named_parameters()}
    assert shapes["conv1.weight"] == (4, 1, 3, 3)
    assert shapes["conv2.weight"] == (4, 4, 3, 3)
    assert shapes["bn1.weight"] == shapes["bn2.weight"] == (4,)
    assert shapes["fc.weight"] == (3, 64)
    torch.testing.assert_close(small(x), conv_net(x))
    assert (small(images[0]).argmax(1) == images[1]).float().mean() > 0.8


def test_constants_stay_zero_when_the_filters_are_quantized(
    conv_net: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    pruner = PwoAPruner(conv_net, FILTERS, evaluator(conv_net, images), eps=0.1)
    _, masks = pruner.compress(12)
    setting = {"target_names": ["weight", "bias"], "quant_dtype": "int8", "quant_scheme": "symmetric"}
    qat = QATQuantizer.from_compressor(pruner, [{"op_types": ["Conv2d", "BatchNorm2d", "Linear"], **setting}])
    qat.compress(12, None)
    qat.unwrap_model()
    small = speedup(conv_net.eval(), masks, images[0][:4])
    assert small.conv2.weight.shape == (4, 4, 3, 3)
    assert small.fc.weight.shape == (3, 64)


def test_masks_that_are_loaded_hold_the_constants_too(
    conv_net: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    entry = [FILTERS[0] | {"target_names": ["weight"]}]
    masks = {
        name: {"weight": (torch.arange(8) % 2).float().view(-1, 1, 1, 1).expand(shape).clone()}
        for name, shape in (("conv1", (8, 1, 3, 3)), ("conv2", (8, 8, 3, 3)))
    }
    pruner = PwoAPruner(conv_net, entry, evaluator(conv_net, images), eps=0.1)
    pruner.update_masks(masks)
    PtqQuantizer.from_compressor(pruner, [{"op_types": ["Linear"], "quant_dtype": "int8"}]).compress(6, None)
    for module in (conv_net.bn1, conv_net.bn2):
        assert torch.equal(module.bias != 0, torch.arange(8) % 2 == 1)


def test_aligned_masks_follow_their_source(conv_net: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    align = {"align": {"module_name": "conv1", "target_name": "weight", "dims": [0]}}
    norm = {"op_names": ["bn1"], "target_settings": {"weight": align, "bias": align}}
    conv = {"op_names": ["conv1"], "sparse_ratio": 0.5, "granularity": "out_channel"}
    with pytest.raises(ValueError, match=r"config_list\[1\] gives no weight a sparse_ratio"):
        PwoAPruner(conv_net, [conv, {"op_names": ["bn1"]}], evaluator(conv_net, images))
    pruner = PwoAPruner(conv_net, [conv, norm], evaluator(conv_net, images), eps=0.1)
    _, masks = pruner.compress(8)
    alive = masks["conv1"]["weight"].flatten(1).any(1)
    assert int(alive.sum()) == 4
    assert torch.equal(masks["bn1"]["weight"].bool(), alive)
    assert torch.equal(masks["bn1"]["bias"].bool(), alive)
    pruner.unwrap_model()


def test_the_bias_of_a_transposed_convolution(images: Pair, evaluator: MakeEvaluator) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, groups=2), nn.Flatten(), nn.Linear(256, 3)
    )
    pruner = PwoAPruner(model, [{"op_names": ["2"], "sparse_ratio": 0.5}], evaluator(model, images))
    weight = torch.zeros(8, 2, 3, 3)
    weight[:4, 0] = 1  # of the first group filter 0 lives, of the second filter 1
    weight[4:, 1] = 1
    masks = pruner._generate_sparsity({"2": {"weight": weight}})
    pruner.unwrap_model()
    assert torch.equal(masks["2"]["weight"], weight)
    assert masks["2"]["bias"].tolist() == [1, 0, 0, 1]


def test_a_teacher_of_ones_own(
    trained: nn.Module, trained_state: dict[str, Tensor], images: Pair, evaluator: MakeEvaluator
) -> None:
    model = copy.deepcopy(trained)  # which has lost its last layer
    model.fc2.reset_parameters()
    pruner = PwoAPruner(model, EVERY, evaluator(model, images), teacher_model=trained, eps=0.1)
    assert torch.equal(pruner.teacher(images[0][:4]), trained(images[0][:4]))
    before = (model(images[0]).argmax(1) == trained(images[0]).argmax(1)).float().mean()
    pruner.compress(60)
    pruner.unwrap_model()
    agreement = (model(images[0]).argmax(1) == trained(images[0]).argmax(1)).float().mean()
    assert agreement > max(0.6, before + 0.2)
    assert all(torch.equal(value, trained_state[name]) for name, value in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    with pytest.raises(ValueError, match="teacher_model is not of the model's architecture"):
        PwoAPruner(model, EVERY, evaluator(model, images), teacher_model=nn.Linear(3, 3))


@pytest.mark.parametrize("admm", [None, {"epochs": 1}])
def test_second_compress_with_a_config_list(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, admm: dict[str, Any] | None
) -> None:
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images), admm=admm, eps=0.1, steps_per_epoch=6)
    for epochs in (4, 5):
        _, masks = pruner.compress(None, epochs)
        kept = sum(int(m["weight"].sum()) for m in masks.values())
        assert kept == pytest.approx(0.25 * sum(m["weight"].numel() for m in masks.values()), abs=1)
        assert (pruner.residual is not None) == bool(admm)


def test_allocation_spreads_an_entrys_total(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images), allocation="lamp", eps=0.1)
    densities = [layer.density for layer in pruner.allocation.values()]
    assert max(densities) - min(densities) > 0.1
    kept = sum(layer.keep for layer in pruner.allocation.values())
    assert kept == pytest.approx(0.25 * sum(layer.weights for layer in pruner.allocation.values()), abs=1)
    pruner.unwrap_model()
    even = PwoAPruner(trained, EVERY, evaluator(trained, images)).allocation
    assert all(layer.density == pytest.approx(0.25, abs=1 / layer.weights) for layer in even.values())


def test_users_own_loss_has_weight_0_unless_asked_for(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    def nan_loss(batch: Any, model: nn.Module) -> Tensor:
        return model(batch[0]).sum() * torch.nan

    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images, step=nan_loss), eps=0.1)
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


@pytest.mark.parametrize("steps", [3, 40])  # with and without an ADMM phase
def test_bad_batches_of_an_evaluator_leave_the_weights_as_they_were(
    trained: nn.Module, images: Pair, steps: int, evaluator: MakeEvaluator
) -> None:
    before = copy.deepcopy(trained.state_dict())
    x, y = images
    bad = {
        "pixels reach from": (x * 255, y),
        "labels reach from 0 to 7": (x, y.where(y < 2, 7)),
        "pixels reach from nan": (x * torch.nan, y),
    }
    for said, data in bad.items():
        model = copy.deepcopy(trained)

        def step(batch: Any, model: nn.Module) -> Tensor:
            return model(batch[0]).sum() * 0

        pruner = PwoAPruner(model, EVERY, evaluator(model, data, step=step), eps=0.1)
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


def test_how_long_to_train_must_be_said(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images))
    with pytest.raises(ValueError, match="give max_steps or max_epochs"):
        pruner.compress()
    with pytest.raises(ValueError, match="max_epochs needs steps_per_epoch"):
        pruner.compress(max_epochs=2)
    pruner.unwrap_model()


def test_the_evaluator_may_know_the_steps_of_an_epoch(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    made = evaluator(trained, images)
    made.steps_per_epoch = 6
    pruner = PwoAPruner(trained, EVERY, made, admm=ADMMConfig(epochs=2, interval=1), eps=0.1)
    pruner.compress(max_epochs=4)
    assert pruner.residual is not None
    phases = pruner._strategy.phases(pruner._target, 24, 6, scheduler=None, check=lambda: None)
    assert [(phase.name, phase.length, phase.interval) for phase in phases if phase.length] == [("admm", 12, 6)]
    pruner.unwrap_model()


def test_a_wrapped_model_is_another_compressors(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    level = LevelPruner(trained, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    with pytest.raises(ValueError, match=r"use PwoAPruner\.from_compressor"):
        PwoAPruner(trained, EVERY, evaluator(trained, images))
    level.unwrap_model()


def test_a_scheduler_leaves_no_room_for_epochs_of_admm(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    pruner = PwoAPruner(trained, EVERY, evaluator(trained, images), admm=ADMMConfig(epochs=1), steps_per_epoch=6)
    agp = AGPPruner(pruner, interval_steps=2, total_times=3)
    with pytest.raises(ValueError, match="admm: inside a scheduler"):
        agp.compress(12, None)
    agp.unwrap_model()
