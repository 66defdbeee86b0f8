"""`speedup` against the masked model in float64, on real architectures and on random masks of small ones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.compression.pruning import L1NormPruner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchvision.models import DenseNet, MobileNetV2, ResNet, SqueezeNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import VGG, make_layers

from pwoa_plugin import speedup
from pwoa_plugin.method.constants import dead_constants
from pwoa_plugin.removal import SpeedupReport, speedup_with_report

Masks = dict[str, dict[str, Tensor]]
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


# -- architectures -----------------------------------------------------------------------------------


class Concat(nn.Module):
    """Two branches of different width, concatenated with their input, pooled, and read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.right = nn.Conv2d(8, 10, 1)
        self.join = nn.Conv2d(24, 12, 3, padding=1)
        self.side = nn.Conv2d(24, 12, 1)
        self.fc = nn.Linear(12 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.max_pool2d(torch.cat([self.left(x), F.leaky_relu(self.right(x)), x], 1), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.join(x) + self.side(x)), 4)
        return self.fc(x.flatten(1))


class Grouped(nn.Module):
    """A convolution in four groups, and a depthwise one with PReLU, in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.prelu = nn.PReLU(24)
        self.back = nn.Conv2d(24, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.prelu(self.depthwise(F.hardswish(self.norm(self.grouped(x)))))
        x = x + self.back(y)
        return self.fc(x.mean((2, 3)))


class Plain(nn.Module):
    """Two convolutions and two linear layers behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3)
        self.conv2 = nn.Conv2d(5, 6, 3, stride=2)
        self.fc1 = nn.Linear(6 * 9, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc2(torch.tanh(self.fc1(F.adaptive_max_pool2d(x, 3).flatten(1))))


class Residual(nn.Module):
    """A block with a shortcut; `first` and `second` write to the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(4, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.relu(x + self.second(F.relu(self.norm(self.inner(x)))))
        return self.fc(x.mean((2, 3)))


def small_vgg() -> nn.Module:
    model = VGG(make_layers([8, 8, "M", 16, "M", 16, "M"], batch_norm=True), num_classes=10, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(16 * 49, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 10))
    return model


def small_mobilenet_v3() -> nn.Module:
    make = torchvision.models.mobilenetv3._mobilenet_v3_conf
    settings, last = make("mobilenet_v3_small", width_mult=0.25)
    return torchvision.models.MobileNetV3(settings, last // 8, num_classes=10)


SMALL: dict[str, Callable[[], nn.Module]] = {
    "concat": Concat,
    "grouped": Grouped,
    "plain": Plain,
    "residual": Residual,
    "resnet": lambda: ResNet(BasicBlock, [2, 1, 1, 1], num_classes=10),
    "bottleneck": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=2, width_per_group=16),
    "vgg": small_vgg,
    "mobilenet_v2": lambda: MobileNetV2(10, width_mult=0.25),
    "mobilenet_v3": small_mobilenet_v3,
    "densenet": lambda: DenseNet(4, (2, 2, 2), 8, bn_size=2, num_classes=10),
    "squeezenet": lambda: SqueezeNet("1_1", num_classes=10),
}
WHOLE = (
    *("resnet18", "resnet34", "resnet50", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("densenet121", "squeezenet1_0", "squeezenet1_1", "efficientnet_b0", "regnet_y_400mf", "resnext50_32x4d"),
    *("mnasnet1_0", "googlenet", "inception_v3", "convnext_tiny"),
)
OUTPUT = {"concat": "fc", "grouped": "fc", "plain": "fc2", "residual": "fc"}


def check(
    model: nn.Module,
    masks: Masks,
    x: Tensor,
    masked: Callable[..., nn.Module],
    difference: Callable[..., float],
    **options: Any,
) -> tuple[nn.Module, SpeedupReport]:
    """Speed up, and hold the result against the masked model."""
    small, report = speedup_with_report(model, masks, x, **options)
    baked = masked(model, masks)
    fresh = torch.rand(3, *x.shape[1:], generator=torch.Generator().manual_seed(9))
    if report.zeroed:
        assert difference(baked, small, x) == pytest.approx(report.output_change, rel=1e-6)
    else:
        assert difference(baked, small, x) < 1e-10
        assert difference(baked, small, fresh) < 1e-10
    assert report.error < 1e-10
    assert report.parameters == tuple(sum(p.numel() for p in each.parameters()) for each in (model, small))
    for name, layer in report.layers.items():
        shrunk = small.get_submodule(name)
        linear = isinstance(shrunk, nn.Linear)
        sizes = (shrunk.out_features, shrunk.in_features) if linear else (shrunk.out_channels, shrunk.in_channels)
        assert sizes == (layer.filters[1], layer.inputs[1])
        assert len(layer.removed_filters) == layer.filters[0] - layer.filters[1]
        assert len(layer.removed_inputs) == layer.inputs[0] - layer.inputs[1]
    told = {(kept.layer, kept.side, channel) for kept in report.kept for channel in kept.channels}
    for name, targets in masks.items():  # a dead channel is gone, or it is told why not
        module = model.get_submodule(name)
        alive = targets["weight"].flatten(2).any(2) if targets["weight"].dim() > 2 else targets["weight"].bool()
        gone = report.layers[name].removed_filters if name in report.layers else ()
        for channel in (~alive.any(1)).nonzero().flatten().tolist():
            assert (channel in gone) != ((name, "filters", channel) in told)
        if getattr(module, "groups", 1) == 1:
            gone = report.layers[name].removed_inputs if name in report.layers else ()
            for channel in (~alive.any(0)).nonzero().flatten().tolist():
                assert (channel in gone) != ((name, "inputs", channel) in told)
    assert all(kept.reason for kept in report.kept)
    return small, report


def last_layer(model: nn.Module) -> str:
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("zero_constants", [False, True])
def test_small_architectures(
    arch: str,
    zero_constants: bool,
    nontrivial: Callable[..., nn.Module],
    filter_masks: Callable[..., Masks],
    masked: Callable[..., nn.Module],
    difference: Callable[..., float],
) -> None:
    model = nontrivial(SMALL[arch]())
    masks = filter_masks(model, exclude=[OUTPUT.get(arch, last_layer(model))])
    small, report = check(model, masks, X, masked, difference, zero_constants=zero_constants)
    assert small(X).shape == model(X).shape
    if arch in ("grouped", "bottleneck"):  # most masks leave groups of unequal size
        assert report.parameters[1] <= report.parameters[0]
        return
    assert report.parameters[1] < (0.75 if zero_constants else 0.95) * report.parameters[0]
    if zero_constants:
        assert not any("constant" in kept.reason for kept in report.kept)


@pytest.mark.parametrize("arch", ["vgg", "resnet", "mobilenet_v2", "mobilenet_v3", "densenet"])
def test_constants_held_at_zero_let_masks_shrink_fully(
    arch: str,
    nontrivial: Callable[..., nn.Module],
    filter_masks: Callable[..., Masks],
    masked: Callable[..., nn.Module],
    difference: Callable[..., float],
) -> None:
    model = nontrivial(SMALL[arch]())
    masks = filter_masks(model, exclude=[last_layer(model)])
    for name, keep in dead_constants(model, {name: each["weight"] for name, each in masks.items()}, X).items():
        model.get_parameter(name).data.mul_(keep)
    _, report = check(model, masks, X, masked, difference)
    # What is left is alive across a residual sum, or gates another channel; never a constant's fault.
    assert not any("constant reaches" in k.reason for k in report.kept if ".fc" not in k.layer and k.side == "filters")
    if arch in ("vgg", "densenet"):
        assert report.kept == ()


@pytest.mark.slow
@pytest.mark.parametrize("arch", WHOLE)
def test_whole_architectures(
    arch: str,
    nontrivial: Callable[..., nn.Module],
    filter_masks: Callable[..., Masks],
    masked: Callable[..., nn.Module],
    difference: Callable[..., float],
) -> None:
    more = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    model = nontrivial(getattr(torchvision.models, arch)(num_classes=10, **more))
    masks = filter_masks(model, exclude=[last_layer(model)])
    x = torch.rand(2, 3, *[96 if arch == "inception_v3" else 64] * 2)
    # SiLU and GELU let every constant through.
    zero_constants = arch in ("efficientnet_b0", "convnext_tiny")
    small, report = check(model, masks, x, masked, difference, zero_constants=zero_constants)
    assert report.parameters[1] < report.parameters[0]
    small.train()
    if arch not in ("googlenet", "inception_v3"):  # their auxiliary heads run in training only, and keep their width
        F.cross_entropy(small(x), torch.tensor([1, 2])).backward()
        torch.optim.SGD(small.parameters(), lr=0.01).step()
        assert all(parameter.isfinite().all() for parameter in small.parameters())


# -- what goes and what stays ------------------------------------------------------------------------


def mask(model: nn.Module, name: str, *, filters: tuple[int, ...] = (), inputs: tuple[int, ...] = ()) -> Masks:
    found = torch.ones_like(model.get_parameter(f"{name}.weight"))
    found[list(filters)] = 0
    found[:, list(inputs)] = 0
    return {name: {"weight": found}}


def removed(report: SpeedupReport, side: str = "filters") -> dict[str, tuple[int, ...]]:
    found = {name: getattr(layer, f"removed_{side}") for name, layer in report.layers.items()}
    return {name: channels for name, channels in found.items() if channels}


def test_a_bias_that_reaches_the_next_layer_is_kept_and_told(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Plain())
    model.conv1.bias.data = torch.tensor([0.5, -0.5, 0.0, 0.5, 0.5])
    masks = mask(model, "conv1", filters=(0, 1, 2))
    _, report = speedup_with_report(model, masks, X)
    assert removed(report) == {"conv1": (1, 2)}  # ReLU makes 0 of -0.5
    assert removed(report, "inputs") == {"conv2": (1, 2)}
    (kept,) = report.kept
    assert (kept.layer, kept.side, kept.channels) == ("conv1", "filters", (0,))
    assert kept.reason == "their constant reaches conv2"


def test_zero_constants_touches_what_it_must_alone(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Residual())
    model.norm.bias.data[:] = torch.tensor([2.0, 2.0, -2.0, 2.0, 2.0])
    model.norm.running_mean.zero_()
    masks = mask(model, "inner", filters=(0, 2)) | mask(model, "second", filters=(1,))
    small, report = speedup_with_report(model, masks, X, zero_constants=True)
    assert report.zeroed == {"norm.weight": 1, "norm.bias": 1}
    assert 0 < report.output_change < 10
    assert removed(report) == {"inner": (0, 2)}
    assert torch.equal(small.norm.bias, model.norm.bias[[1, 3, 4]])
    assert [kept.reason for kept in report.kept] == ["alive in first"]


def test_a_residual_channel_goes_if_all_say_so(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Residual())
    masks = mask(model, "first", filters=(0, 1)) | mask(model, "second", filters=(1, 2))
    small, report = speedup_with_report(model, masks, X)
    assert removed(report) == {"first": (1,), "second": (1,)}
    assert small.fc.in_features == 3
    told = {(kept.layer, kept.channels, kept.reason) for kept in report.kept if kept.side == "filters"}
    assert told == {("first", (0,), "alive in second"), ("second", (2,), "alive in first")}


def test_filters_that_every_layer_behind_ignores_go(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Concat())
    # Channel 7 of the concatenation is channel 1 of `right`, channel 17 channel 1 of `stem`.
    masks = mask(model, "join", inputs=(2, 7, 17)) | mask(model, "side", inputs=(7, 9, 17))
    _, report = speedup_with_report(model, masks, X)
    assert removed(report) == {"right": (1,)}
    assert removed(report, "inputs") == {"join": (7,), "side": (7,)}
    told = {(kept.layer, kept.channels, kept.reason) for kept in report.kept}
    assert told == {
        ("join", (2,), "still read by side"),
        ("side", (9,), "still read by join"),
        *((name, (17,), "still read by left.0, right") for name in ("join", "side")),
    }


def test_filters_before_follow_those_behind(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)))
    masks = mask(model, "3", inputs=(1,))
    for name in ("1", "2"):  # filter 1 alone reads input 1
        masks |= mask(model, name)
        masks[name]["weight"][[0, 2, 3], 1] = 0
    _, report = speedup_with_report(model, masks, X)
    assert removed(report) == {"0": (1,), "1": (1,), "2": (1,)}


def test_batchnorm_masks_count(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Residual())
    zero = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
    _, report = speedup_with_report(model, {"norm": {"weight": zero, "bias": zero}}, X)
    assert removed(report) == {"inner": (1,)}


def test_a_relu_that_no_example_passes_is_not_dead(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Plain())
    model.conv1.bias.data[2] = -1e3
    assert F.relu(model.conv1(X))[:, 2].max() == 0
    _, report = speedup_with_report(model, mask(model, "conv1", filters=(0,)), X)
    assert 2 not in removed(report).get("conv1", ())


def test_one_channel_stays(nontrivial: Callable[..., nn.Module], masked: Callable[..., nn.Module]) -> None:
    model = nontrivial(Residual())
    masks = mask(model, "inner", filters=(0, 1, 2, 3, 4)) | {"norm": {"weight": torch.zeros(5), "bias": torch.zeros(5)}}
    small, report = speedup_with_report(model, masks, X)
    assert small.inner.out_channels == 1
    assert [kept.reason for kept in report.kept if (kept.layer, kept.side) == ("inner", "filters")] == [
        "inner would be empty"
    ]
    assert torch.allclose(small(X), masked(model, masks)(X), atol=1e-6)


def test_the_output_keeps_its_shape(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Plain())
    small, report = speedup_with_report(model, mask(model, "fc2", filters=(1,)), X, zero_constants=True)
    assert small(X).shape == (2, 3)
    assert torch.equal(small.fc2.bias, model.fc2.bias)
    assert [kept.reason for kept in report.kept] == ["they are part of the model's output"]


class Features(Plain):
    def forward(self, x: Tensor) -> dict[str, Any]:  # type: ignore[override]
        features = self.conv1(x)
        return {"logits": super().forward(x), "features": [features]}


def test_every_output_keeps_its_shape(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Features())
    model.conv1.bias.data.zero_()
    model.conv2.bias.data.zero_()
    masks = mask(model, "conv1", filters=(1,)) | mask(model, "conv2", filters=(2,))
    small, report = speedup_with_report(model, masks, X)
    assert small(X)["features"][0].shape[1] == 5
    assert removed(report) == {"conv2": (2,)}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.inner, self.decode = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.inner(F.relu(self.encode(x))))


def test_tied_weights_stay_tied() -> None:
    model, x = Tied().eval(), torch.rand(3, 6)
    masks = mask(model, "encode", filters=(0,)) | mask(model, "inner", filters=(1,))
    small, report = speedup_with_report(model, masks, x)
    assert small.decode.weight is small.encode.weight
    assert report.layers == {}
    assert {kept.reason for kept in report.kept} >= {"encode shares its parameters with another layer"}


def test_a_computed_weight_is_left_alone(
    nontrivial: Callable[..., nn.Module], masked: Callable[..., nn.Module], difference: Callable[..., float]
) -> None:
    model = nontrivial(Plain())
    model.conv1.bias.data.zero_()
    model.fc1.bias.data.zero_()
    masks = mask(model, "conv1", filters=(1,)) | mask(model, "fc1", filters=(1,))
    parametrizations.weight_norm(model.conv2)
    _, report = check(model, masks, X, masked, difference)
    assert removed(report) == {"fc1": (1,)}
    assert [kept.reason for kept in report.kept] == ["the weight of conv2 is computed from other parameters"]


def test_attention_is_left_alone(masked: Callable[..., nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision's is 0
    block = "encoder.layers.encoder_layer_0"
    masks = mask(model, f"{block}.mlp.0", filters=(0, 3)) | mask(model, f"{block}.mlp.3", filters=(1,))
    model.get_parameter(f"{block}.mlp.0.bias").data.zero_()
    small, report = speedup_with_report(model, masks, X)
    assert removed(report) == {f"{block}.mlp.0": (0, 3)}
    assert "computes with all channels together" in report.kept[0].reason
    assert "did not run" not in caplog.text
    assert (small(X) - masked(model, masks)(X)).abs().max() < 1e-5


class Looped(nn.Module):
    """One layer that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.loop, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(self.loop(x))
        return self.fc(x.mean((2, 3)))


def test_groups_stay_of_one_size(
    nontrivial: Callable[..., nn.Module], masked: Callable[..., nn.Module], difference: Callable[..., float]
) -> None:
    model = nontrivial(Grouped())
    model.stem.bias.data.zero_()
    model.norm.bias.data.fill_(-9.0)  # nothing passes hard swish
    model.norm.weight.data.fill_(1.0)
    model.depthwise.bias.data.zero_()
    model.back.bias.data.zero_()
    into = (1, 5, 9, 13, 2)  # the second of each four, and one more
    masks = mask(model, "stem", filters=into) | mask(model, "back", filters=into)
    masks |= mask(model, "grouped", filters=(0, 1, 6, 7, 8, 12, 18))  # of 6: two, one, two, one
    model.grouped.bias.data.zero_()
    small, report = check(model, masks, X, masked, difference)
    assert removed(report)["stem"] == removed(report)["back"] == (1, 5, 9, 13)
    assert removed(report)["grouped"] == (0, 6, 12, 18)
    assert (small.grouped.in_channels, small.grouped.out_channels, small.grouped.groups) == (12, 20, 4)
    assert small.depthwise.groups == 20
    reasons = {kept.layer: kept.reason for kept in report.kept if kept.side == "filters"}
    assert reasons == dict.fromkeys(("stem", "back", "grouped"), "the groups of grouped must stay equal in size")


def test_a_layer_that_runs_again(
    nontrivial: Callable[..., nn.Module], masked: Callable[..., nn.Module], difference: Callable[..., float]
) -> None:
    model = nontrivial(Looped())
    masks = mask(model, "loop", filters=(1, 4))
    check(model, masks, X, masked, difference)
    both = masks | mask(model, "stem", filters=(1, 4))
    model.stem.bias.data.zero_()
    _, report = check(model, both, X, masked, difference)
    assert removed(report) == {"loop": (1, 4), "stem": (1, 4)}


def test_transposed_convolutions(
    nontrivial: Callable[..., nn.Module], masked: Callable[..., nn.Module], difference: Callable[..., float]
) -> None:
    model = nontrivial(
        nn.Sequential(
            nn.ConvTranspose2d(3, 6, 2, bias=False), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(4, 2, 1)
        )
    )
    masks = mask(model, "0", inputs=(1, 2))  # transposed: filters are the second dimension
    small, report = speedup_with_report(model, masks, X)
    assert removed(report) == {"0": (1, 2)}
    assert small[2].in_channels == 4
    assert difference(masked(model, masks), small, X) < 1e-10


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3, bias=False), norm, nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x)))


@pytest.mark.parametrize(
    ("norm", "gone"),
    [
        (nn.PReLU(8), True),
        (nn.InstanceNorm2d(8), True),
        (nn.BatchNorm2d(8, affine=False), False),
        (nn.BatchNorm2d(8, track_running_stats=False), True),
        (nn.GroupNorm(2, 8), False),
        (nn.LayerNorm(30), False),
        (nn.Softmax(1), False),
        (nn.Softmax(3), False),
    ],
)
def test_what_lies_between(norm: nn.Module, gone: bool, masked: Callable[..., nn.Module]) -> None:
    model = Normed(norm).eval()
    if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
        norm.running_mean.fill_(0.5)
    masks = mask(model, "conv", filters=(0, 4))
    small, report = speedup_with_report(model, masks, X)
    assert removed(report) == ({"conv": (0, 4)} if gone else {})
    assert (small(X) - masked(model, masks)(X)).abs().max() < 1e-5


class Mean(nn.Module):
    """Torch-Pruning does not see that the mean is over the channels of `first`, dead ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 6, 1, bias=False)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.fc(F.relu(self.second(x * x.mean(1, keepdim=True))).mean((2, 3)))


class Reshape(Mean):
    """Neither does it see through this reshape."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        gate = x.view(len(x), 2, 4, -1).mean(2).sum((1, 2))
        return self.fc(F.relu(self.second(x)).mean((2, 3))) + gate[:, None]


@pytest.mark.parametrize("zero_constants", [False, True])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Mean(), "without them the model fails (its output differs by"),
        (Reshape(), "they are part of the model's output"),
    ],
)
def test_a_removal_that_would_fail_is_left_out_and_told(
    model: nn.Module,
    reason: str,
    zero_constants: bool,
    nontrivial: Callable[..., nn.Module],
    masked: Callable[..., nn.Module],
    difference: Callable[..., float],
) -> None:
    model = nontrivial(model)
    masks = mask(model, "first", filters=(1, 5)) | mask(model, "second", filters=(2,))
    _, report = check(model, masks, X, masked, difference, zero_constants=zero_constants)
    assert removed(report) == {"second": (2,)}
    (kept,) = (kept for kept in report.kept if kept.layer == "first")
    assert kept.channels == (1, 5)
    assert kept.reason.startswith(reason)


class Auxiliary(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.adaptive_max_pool2d(x, 3).flatten(1)
        return self.fc2(self.fc1(x)) + (self.head(x) if self.training else 0)


def test_layers_that_did_not_run_are_told(
    nontrivial: Callable[..., nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model = nontrivial(Auxiliary())
    model.fc1.bias.data.zero_()
    masks = mask(model, "fc1", filters=(3,)) | mask(model, "head", filters=(0,))
    _, report = speedup_with_report(model, masks, X)
    assert removed(report) == {"fc1": (3,)}
    assert [kept.reason for kept in report.kept] == ["the layer does not run in eval mode"]
    assert "head did not run in eval mode" in caplog.text


def test_nnis_own_masks(
    nontrivial: Callable[..., nn.Module], masked: Callable[..., nn.Module], difference: Callable[..., float]
) -> None:
    model = nontrivial(SMALL["resnet"]())
    pruner = L1NormPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    with pytest.raises(ValueError, match=r"conv1 is wrapped by NNI; call the compressor's unwrap_model\(\) first"):
        speedup(model, masks, X)
    pruner.unwrap_model()
    present = {name: {t: m for t, m in targets.items() if m is not None} for name, targets in masks.items()}
    small, report = speedup_with_report(model, masks, X)
    assert difference(masked(model, present), small, X) < 1e-10
    assert report.parameters[1] < 0.9 * report.parameters[0]
    assert {"layer1.0.conv1", "layer4.0.conv1"} < set(removed(report))


# -- random masks ------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    arch=st.sampled_from(["concat", "grouped", "plain", "residual"]),
    seed=st.integers(0, 10**6),
    filters=st.floats(0, 1),
    inputs=st.floats(0, 1),
    single=st.sampled_from([0.0, 0.3]),
    bias=st.booleans(),
    zero_constants=st.booleans(),
)
def test_random_masks(
    nontrivial: Callable[..., nn.Module],
    masked: Callable[..., nn.Module],
    difference: Callable[..., float],
    arch: str,
    seed: int,
    filters: float,
    inputs: float,
    single: float,
    bias: bool,
    zero_constants: bool,
) -> None:
    """Dead filters, dead inputs and single zeros, with and without the bias."""
    model = nontrivial(SMALL[arch](), seed)
    random = torch.Generator().manual_seed(seed)
    masks: Masks = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            found = torch.rand(module.weight.shape, generator=random) >= single
            found &= (torch.rand(len(found), generator=random) >= filters).view(-1, *[1] * (found.dim() - 1))
            found &= (torch.rand(found.shape[1], generator=random) >= inputs).view(1, -1, *[1] * (found.dim() - 2))
            masks[name] = {"weight": found.float()}
            if bias and module.bias is not None:
                masks[name]["bias"] = found.flatten(1).any(1).float()
    x = torch.rand(2, 3, 12, 12, generator=random)
    small, _ = check(model, masks, x, masked, difference, zero_constants=zero_constants)
    _, nothing = speedup_with_report(small, {}, x)  # all is gone that can go
    assert nothing.parameters[0] == nothing.parameters[1]


# -- the model that comes back, and the one that stays -----------------------------------------------


def test_the_users_model_is_not_touched(filter_masks: Callable[..., Masks]) -> None:
    model = SMALL["resnet"]().train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    F.cross_entropy(model(X), torch.tensor([0, 1])).backward()
    state, grads = copy.deepcopy(model.state_dict()), {n: p.grad for n, p in model.named_parameters()}
    parameters, modes = list(model.parameters()), {n: m.training for n, m in model.named_modules()}
    numbers = torch.get_rng_state()
    masks = filter_masks(model, exclude=["fc"])
    before = copy.deepcopy(masks)
    inputs = X.clone()
    with torch.no_grad():
        small = speedup(model, masks, inputs)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(parameter.grad is grads[name] for name, parameter in model.named_parameters())
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert not model.conv1.weight.requires_grad
    assert torch.equal(numbers, torch.get_rng_state())
    assert torch.equal(inputs, X)
    assert all(torch.equal(before[name]["weight"], masks[name]["weight"]) for name in masks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    # and the small one has its ways
    assert modes == {name: module.training for name, module in small.named_modules()}
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert all(parameter.grad is None and parameter.is_leaf for parameter in small.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())
    assert small.conv1.out_channels < 64


@pytest.mark.parametrize("arch", ["resnet", "mobilenet_v3", "densenet"])
def test_the_small_model_is_a_model(
    arch: str, nontrivial: Callable[..., nn.Module], filter_masks: Callable[..., Masks]
) -> None:
    model = nontrivial(SMALL[arch]())
    small = speedup(model, filter_masks(model, exclude=[last_layer(model)]), X)
    twin = copy.deepcopy(small)
    for parameter in twin.parameters():
        parameter.data.zero_()
    twin.load_state_dict(small.state_dict())
    assert torch.equal(twin(X), small(X))
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    loss = F.cross_entropy(small(X), torch.tensor([1, 2]))
    loss.backward()
    optimizer.step()
    assert not torch.equal(twin(X), small.eval()(X))
    assert small(torch.rand(5, 3, 48, 48)).shape == (5, 10)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_wherever_it_is_called(context: Any, nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Residual()).requires_grad_(False)
    masks = mask(model, "first", filters=(1,)) | mask(model, "second", filters=(1,))
    with context():
        small, report = speedup_with_report(model, masks, torch.rand(1, 3, 8, 8))
    assert removed(report) == {"first": (1,), "second": (1,)}
    assert not any(p.requires_grad or p.is_inference() for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_come_back(dtype: torch.dtype, nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Residual()).to(dtype)
    masks = mask(model, "first", filters=(1,)) | mask(model, "second", filters=(1,))
    small = speedup(model, masks, X)  # inputs of another dtype are cast
    assert {name: tensor.dtype for name, tensor in small.state_dict().items()} == {
        name: tensor.dtype for name, tensor in model.state_dict().items()
    }
    assert torch.equal(small.inner.weight, model.inner.weight[:, [0, 2, 3]])


class Float32(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def test_a_model_that_does_not_run_in_float64(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Float32())
    masks = mask(model, "first", filters=(1,)) | mask(model, "second", filters=(1,))
    _, report = speedup_with_report(model, masks, X)
    assert removed(report) == {"first": (1,), "second": (1,)}
    assert report.error < 1e-6


class Scaled(Residual):
    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
        return super().forward(x) * scale, 3


def test_inputs_as_tuples_and_dicts(nontrivial: Callable[..., nn.Module]) -> None:
    model = nontrivial(Scaled())
    masks = mask(model, "first", filters=(1,)) | mask(model, "second", filters=(1,))
    scale = torch.tensor(2.0)
    for inputs in ((X, scale), [X, scale], {"scale": scale, "x": X}):
        assert speedup(model, masks, inputs).first.out_channels == 3


def test_the_history_replays_on_the_model_as_it_was(
    nontrivial: Callable[..., nn.Module], filter_masks: Callable[..., Masks]
) -> None:
    model = nontrivial(Concat())
    small, report = speedup_with_report(model, filter_masks(model, exclude=["fc"]), X, zero_constants=True)
    graph = tp.DependencyGraph().build_dependency(model, X, forward_fn=lambda m, x: m(x), verbose=False)
    graph.load_pruning_history([list(step) for step in report.history])
    model.load_state_dict(small.state_dict())
    assert torch.equal(model(X), small(X))


# -- bad input ---------------------------------------------------------------------------------------


def test_unstructured_masks_shrink_nothing(
    nontrivial: Callable[..., nn.Module], masked: Callable[..., nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model = nontrivial(Plain())
    masks = mask(model, "conv2")
    masks["conv2"]["weight"][:, ::2, 0] = 0
    small, report = speedup_with_report(model, masks, X)
    assert report.layers == {}
    assert "nothing shrinks: the masks leave no filter and no input channel wholly 0" in caplog.text
    assert torch.equal(small(X), masked(model, masks)(X))


def test_nothing_shrinks_though_channels_are_dead(
    nontrivial: Callable[..., nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model = nontrivial(Residual())
    caplog.set_level(logging.INFO)
    speedup(model, mask(model, "first", filters=(1,)), X)
    assert "nothing shrinks: every dead channel has to stay (first: alive in second)" in caplog.text


class Random(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=True)


class Lost(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class Detaching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Plain(), torch.rand(2, 1, 12, 12), r"example_inputs: conv1 \(Conv2d\) fails on them: RuntimeError"),
        (Plain(), torch.randint(0, 255, (2, 3, 12, 12)), r"example_inputs: conv1 \(Conv2d\) fails on them"),
        (Plain(), None, r"example_inputs: conv1 \(Conv2d\) fails on them: TypeError"),
        (Plain(), torch.full((2, 3, 12, 12), float("nan")), "output on example_inputs is not finite"),
        (Random(), X, r"model: called again on the same inputs, its output differs by .* must not be random"),
        (Lost(), X, r"model: autograd loses the trace in the forward of Lost itself"),
        (nn.Sequential(Plain(), Detaching()), X, r"model: autograd loses the trace in 1 \(Detaching\)"),
        (nn.Flatten(), X, r"model: autograd loses the trace"),
        (
            torchvision.models.shufflenet_v2_x0_5(num_classes=10),
            X,
            r"model: Torch-Pruning cannot trace stage2 \(Sequential\)",
        ),
    ],
)
def test_one_line_says_what_and_where(model: Any, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        speedup(model, {}, inputs)
    assert "\n" not in str(raised.value)


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masks: the model has no module 'layer1.0.conv1'"):
        speedup(Plain(), {"layer1.0.conv1": {"weight": torch.ones(1)}}, X)


class FixedBatch(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(1, 3, 12, 12))


def test_a_batch_of_one_that_cannot_grow_is_refused(nontrivial: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="example_inputs: the model does not run on batches of 8 or 2 random samples"):
        speedup(nontrivial(FixedBatch()), {}, torch.rand(1, 3, 12, 12))
