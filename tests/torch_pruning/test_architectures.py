"""Every architecture that must work, pruned, trained, saved and loaded; and those that are refused."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.models import make_model
from pwoa_plugin.torch_pruning import PwoAGroupPruner, load_pruned, save_pruned

CLASSES = 10


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    classifier: str
    size: tuple[int, int, int] = (3, 32, 32)
    ratio: float = 0.5
    whole: tuple[str, ...] = ()  # with these left alone, no channel runs through a LayerNorm
    slow: bool = False


def resnet(block: type, layers: list[int], **fields: int) -> nn.Module:
    return tv.ResNet(block, layers, num_classes=CLASSES, **fields)


def vgg16_bn(divide: int) -> nn.Module:
    plan = [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"]
    features = tv.vgg.make_layers([x if x == "M" else x // divide for x in plan], batch_norm=True)
    model = tv.VGG(features, num_classes=CLASSES, init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(512 // divide * 49, 4096 // divide), nn.ReLU(), nn.Dropout(), nn.Linear(4096 // divide, CLASSES)
    )
    return model


def vit(**fields: int) -> nn.Module:
    return tv.VisionTransformer(num_classes=CLASSES, **fields)


def convnext(widths: list[int], depths: list[int]) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    outs = [*widths[1:], None]
    blocks = [CNBlockConfig(width, out, depth) for width, out, depth in zip(widths, outs, depths, strict=True)]
    return tv.ConvNeXt(blocks, num_classes=CLASSES)


GOOGLENET = {"num_classes": CLASSES, "aux_logits": False, "init_weights": False}
EMBEDDING = ("*.block.0",)  # each stage's channels

CASES = {
    "resnet18": Case(lambda: resnet(tv.resnet.BasicBlock, [2, 2, 2, 2]), "fc"),
    "resnet50": Case(lambda: resnet(tv.resnet.Bottleneck, [3, 4, 6, 3]), "fc"),
    "vgg16_bn": Case(lambda: vgg16_bn(8), "classifier.3"),
    "mobilenet_v2": Case(lambda: tv.mobilenet_v2(num_classes=CLASSES, width_mult=0.5), "classifier.1"),
    "mobilenet_v3_small": Case(lambda: tv.mobilenet_v3_small(num_classes=CLASSES), "classifier.3"),
    "mobilenet_v3_large": Case(lambda: tv.mobilenet_v3_large(num_classes=CLASSES), "classifier.3"),
    "densenet": Case(
        lambda: tv.DenseNet(growth_rate=8, block_config=(2, 3, 3, 2), num_init_features=16, num_classes=CLASSES),
        "classifier",
    ),
    "densenet121": Case(lambda: tv.densenet121(num_classes=CLASSES), "classifier", slow=True),
    "efficientnet_b0": Case(lambda: tv.efficientnet_b0(num_classes=CLASSES), "classifier.1"),
    "regnet_y_400mf": Case(lambda: tv.regnet_y_400mf(num_classes=CLASSES), "fc"),
    "resnext50": Case(
        lambda: resnet(tv.resnet.Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=4), "fc", slow=True
    ),
    "resnext": Case(lambda: resnet(tv.resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=8), "fc"),
    "mnasnet": Case(lambda: tv.mnasnet0_5(num_classes=CLASSES), "classifier.1"),
    "googlenet": Case(lambda: tv.googlenet(**GOOGLENET), "fc"),
    "convnext": Case(lambda: convnext([16, 32, 64, 128], [1, 1, 2, 1]), "classifier.2", whole=EMBEDDING),
    "convnext_tiny": Case(lambda: tv.convnext_tiny(num_classes=CLASSES), "classifier.2", whole=EMBEDDING, slow=True),
    "vit": Case(
        lambda: vit(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64),
        "heads.head",
        whole=("conv_proj",),
    ),
    "vit_b_16": Case(
        lambda: vit(image_size=32, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072),
        "heads.head",
        whole=("conv_proj",),
        slow=True,
    ),
    "lenet3": Case(lambda: make_model("lenet3", num_classes=CLASSES, in_channels=1), "fc2", size=(1, 28, 28)),
    "resnet18-cifar": Case(lambda: make_model("resnet18-cifar", num_classes=CLASSES, in_channels=3), "linear"),
    "wrn-34-10": Case(lambda: make_model("wrn-34-10", num_classes=CLASSES, in_channels=3), "fc", slow=True),
}


def nontrivial(model: nn.Module) -> nn.Module:
    """BatchNorm and LayerNorm as training leaves them; a ViT's head begins at 0."""
    random = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.weight.data = torch.rand(module.weight.shape, generator=random) + 0.5
            module.bias.data = torch.randn(module.bias.shape, generator=random) * 0.1
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.data = torch.randn(module.weight.shape, generator=random)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.running_mean.shape, generator=random) * 0.1
            module.running_var = torch.rand(module.running_var.shape, generator=random) + 0.5
    return model


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if case.slow else []) for name, case in CASES.items()]
)
def test_an_architecture(name: str, tmp_path: Path, zeroed: Callable[..., nn.Module]) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    dense = nontrivial(case.make())
    model = copy.deepcopy(dense).train()
    inputs = torch.rand(2, *case.size)

    pruner = PwoAGroupPruner(model, inputs, pruning_ratio=case.ratio)
    pruner.step()

    assert pruner.untouched == [case.classifier]
    assert model.training
    with torch.no_grad():
        output = model.eval()(inputs)
    assert output.shape == (2, CLASSES)
    assert output.isfinite().all()
    left = {module_name: _channels(module) for module_name, module in model.named_modules()}
    for module_name, module in dense.named_modules():
        before = _channels(module)
        if before is None or module_name in pruner.untouched:
            assert left[module_name] == before
        else:
            assert left[module_name] == pytest.approx(before * (1 - case.ratio), abs=_unit(before)), module_name

    if not case.whole:
        assert _difference(zeroed(dense, pruner, inputs), model, inputs) < 1e-5

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = F.cross_entropy(model(inputs.repeat(2, 1, 1, 1)), torch.tensor([1, 2, 3, 4]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())

    save_pruned(pruner, tmp_path / "pruned.safetensors")
    loaded = load_pruned(case.make().eval(), tmp_path / "pruned.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model.eval()(inputs))

    if case.whole:
        inside = copy.deepcopy(dense).eval()
        pruner = PwoAGroupPruner(inside, inputs, pruning_ratio=case.ratio, ignored_layers=case.whole)
        pruner.step()
        assert pruner.removals
        assert _difference(zeroed(dense, pruner, inputs), inside, inputs) < 1e-5


def _channels(module: nn.Module) -> int | None:
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else None


def _unit(channels: int) -> float:
    """By how many channels a layer may miss the ratio."""
    return 1 + channels * 0.02


@torch.no_grad()
def _difference(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    one, two = (copy.deepcopy(each).eval().double()(x.double()) for each in (model, other))
    return ((one - two).abs().max() / one.abs().max()).item()


REFUSED = {
    "shufflenet_v2": (lambda: tv.shufflenet_v2_x0_5(num_classes=CLASSES), "stage2.*rewrite that forward"),
    "swin_t": (
        lambda: tv.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [4, 4], num_classes=CLASSES),
        "qkv.*list it in ignored_layers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        PwoAGroupPruner(model, torch.rand(2, 3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_the_classifier_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        PwoAGroupPruner(make_model("lenet", num_classes=CLASSES, in_channels=1), torch.rand(2, 1, 28, 28))
    assert "fc2" in caplog.text
