from __future__ import annotations

import itertools

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin import PwoAConfig, PwoALoss, PwoAPruner
from pwoa_plugin._wrapped import NetworkWrapper, unwrapped
from pwoa_plugin.method.hidden import check_readable, find_hidden_layers, read_hidden
from pwoa_plugin.models import LeNet


def test_auto_on_lenet() -> None:
    assert find_hidden_layers(LeNet(), torch.rand(2, 1, 28, 28)) == ["conv2", "fc1", "fc2"]


RESNET18 = [
    "layer1.0.conv1",
    "layer1.1.conv1",
    "layer2.0.conv2",
    "layer2.1.conv2",
    "layer3.0.conv2",
    "layer3.1.conv2",
    "layer4.1.conv1",
    "fc",
]
VGG11 = [
    *("features.3", "features.6", "features.11", "features.13", "features.16", "features.18"),
    *("classifier.3", "classifier.6"),
]


def test_auto_takes_shared_inputs_once_and_eight_spread_over_the_depth() -> None:
    resnet = torchvision.models.resnet18()
    found = find_hidden_layers(resnet, torch.rand(2, 3, 32, 32))
    assert found == RESNET18
    assert not any("downsample" in name for name in found)  # it shares its input with the block's conv1


@pytest.mark.parametrize("arch", ["vgg11", "mobilenet_v2"])
def test_auto_on_torchvision(arch: str) -> None:
    model = getattr(torchvision.models, arch)(num_classes=10)
    weighted = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    found = find_hidden_layers(model, torch.rand(2, 3, 32, 32))
    assert len(found) == 8
    positions = [weighted.index(name) for name in found]
    assert positions == sorted(positions)
    assert positions[0] == 1  # the input of the second layer that runs; the first one's is the image
    assert found[-1] == weighted[-1]
    gaps = [b - a for a, b in itertools.pairwise(positions)]
    assert max(gaps) - min(gaps) <= 1
    if arch == "vgg11":
        assert found == VGG11


def test_auto_on_a_vision_transformer() -> None:
    vit = torchvision.models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32)
    # The inputs of attention's projections are not modules' inputs; those of the MLPs and the head are.
    assert find_hidden_layers(vit, torch.rand(2, 3, 32, 32)) == [
        *(f"encoder.layers.encoder_layer_{i}.mlp.{j}" for i in range(3) for j in (0, 3)),
        "heads.head",
    ]


def test_mode_and_hooks_come_back() -> None:
    model = torchvision.models.resnet18()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.named_buffers()}
    find_hidden_layers(model, torch.rand(2, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_reads_what_comes_after_functional_relu() -> None:
    model, x = LeNet(), torch.rand(3, 1, 28, 28)
    with read_hidden(model, ["conv2", "fc2"]) as seen:
        model(x)
    torch.testing.assert_close(seen["conv2"], F.max_pool2d(F.relu(model.conv1(x)), 2))
    assert seen["fc2"].min() >= 0
    assert seen["fc2"].shape == (3, 256)
    assert seen["fc2"].requires_grad


def test_hooks_come_off_when_the_body_raises() -> None:
    model = LeNet()
    with pytest.raises(RuntimeError), read_hidden(model, ["conv2"]):
        raise RuntimeError("training went wrong")
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(AttributeError), read_hidden(model, ["conv2", "nowhere"]):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.flatten(1))


def test_names_of_the_users_own() -> None:
    x = torch.rand(2, 1, 28, 28)
    assert find_hidden_layers(LeNet(), x, ["fc2", "conv2"]) == ["conv2", "fc2"]
    with pytest.raises(ValueError, match=r"no module 'fc3'; did you mean fc"):
        find_hidden_layers(LeNet(), x, ["fc3"])
    with pytest.raises(ValueError, match="unused took no tensor"):
        find_hidden_layers(Unused(), torch.rand(2, 1, 2, 2), ["unused"])
    with pytest.raises(ValueError, match="found no hidden layer"):
        find_hidden_layers(Unused(), torch.rand(2, 1, 2, 2))


def test_names_inside_what_is_around_a_network(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    class Outer(NetworkWrapper):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    around = nn.DataParallel(Outer(trained))
    assert unwrapped(around) is trained
    assert find_hidden_layers(around, images[0][:2]) == find_hidden_layers(trained, images[0][:2])
    with read_hidden(around, ["fc2"]) as seen:
        around(images[0][:4])
    assert seen["fc2"].shape == (4, 16)


def test_what_hooks_do_not_see_is_refused(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    check_readable(nn.DataParallel(trained))
    compiled = torch.compile(trained, backend="eager")
    with pytest.raises(ValueError, match="a part of the model is compiled"):
        check_readable(nn.Sequential(compiled))
    said = r"a part of the model is compiled, .*; give the module that went into torch.compile \(its _orig_mod\)"
    loss = PwoALoss(trained, eps=0.1)
    for call in (
        lambda: check_readable(compiled),
        lambda: loss(compiled, *images),
        lambda: PwoAPruner(nn.Sequential(compiled), PwoAConfig(sparsity=0.5, train_loader=images)),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    spread = nn.DataParallel(trained)
    spread.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"in DataParallel over 2 devices, .*; use DistributedDataParallel"):
        loss(spread, *images)
