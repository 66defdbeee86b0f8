"""What a `SpaceTarget` prunes and holds at 0, under real NNI compressors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nni.compression.quantization import PtqQuantizer, QATQuantizer
from torch import Tensor, nn

from pwoa_plugin import PwoAPruner, speedup

from .conftest import MakeEvaluator, Pair


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


@pytest.mark.parametrize("entry", [{"sparse_ratio": 0.75}, {"granularity": "1:4"}])
def test_a_scheduler_ramps_the_share_of_the_sparsity(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, entry: dict[str, Any]
) -> None:
    pruner = PwoAPruner(trained, [{"op_names": ["fc1"]} | entry], evaluator(trained, images))
    target, weight = pruner._target, trained.fc1._nni_wrapper.weight.detach()
    space, layer = pruner._target_spaces["fc1"]["weight"], pruner.allocation["fc1"]
    target.scheduled = True
    masks = []
    for share in (0.0, 0.25, 0.5, 1.0):
        space.sparse_ratio = 0.75 * share
        masks.append(target.weights_and_projections()[1]["fc1"](weight))
    gone = [int((~mask).sum()) for mask in masks]
    all_of_it = int(0.75 * weight.numel())
    if "granularity" in entry:  # n:m has no ramp
        assert gone == [0, all_of_it, all_of_it, all_of_it]
    else:
        assert all_of_it == layer.groups - layer.keep
        assert gone == [0, round(all_of_it / 4), round(all_of_it / 2), all_of_it]
        assert not (masks[3] & ~masks[2]).any()  # nested, as magnitudes are
    target.end()
    assert space.sparse_ratio == 0.75
    assert not target.scheduled
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
    with torch.no_grad():
        model[2]._nni_wrapper.weight.copy_(weight)
    masks = pruner.generate_masks()
    pruner.unwrap_model()
    assert torch.equal(masks["2"]["weight"], weight)
    assert masks["2"]["bias"].tolist() == [1, 0, 0, 1]
