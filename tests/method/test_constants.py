from __future__ import annotations

import copy

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.method.constants import dead_constants, find_constant_channels, links


def filter_mask(module: nn.Module, dead: list[int]) -> Tensor:
    mask = torch.ones_like(module.get_parameter("weight"), dtype=torch.bool)
    mask[dead] = False
    return mask


def held_zero(held: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: (~keep).nonzero().flatten().tolist() for name, keep in held.items()}


def nontrivial(model: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorm statistics and parameters as training leaves them."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight, 0.5)):
                tensor.data = low + torch.rand(tensor.shape, generator=random)
            module.bias.data = torch.rand(module.bias.shape, generator=random) - 0.4
    return model.eval()


def test_links_against_a_loop() -> None:
    for module in (
        nn.Linear(3, 4),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Conv1d(2, 2, 1),
    ):
        present = torch.rand(module.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.15
        found = links(module, present)
        groups = getattr(module, "groups", 1)
        size = groups * found.shape[2], groups * found.shape[1]
        weight = present.to(torch.float64)
        for into in range(size[0]):
            x = torch.zeros(1, size[0], *[5] * (weight.dim() - 2), dtype=torch.float64)
            x[:, into] = 1
            double = copy.deepcopy(module).double()
            double.weight.data, double.bias.data = weight, torch.zeros_like(double.bias.data)
            reached = double(x).flatten(2).sum(2)[0] if x.dim() > 2 else double(x)[0]
            group, place = divmod(into, found.shape[2])
            expected = torch.zeros(groups, found.shape[1], dtype=torch.bool)
            expected[group] = found[group, :, place]
            assert torch.equal(reached > 0, expected.flatten())


def test_a_batchnorm_behind_a_dead_filter_and_the_bias() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    held = dead_constants(model, {"0": filter_mask(model[0], [1, 3])}, torch.rand(2, 1, 8, 8))
    assert held_zero(held) == {"0.bias": [1, 3], "1.weight": [1, 3], "1.bias": [1, 3]}
    assert dead_constants(model, {"0": filter_mask(model[0], [])}, torch.rand(2, 1, 8, 8)) == {}


def test_the_model_is_not_changed_and_keeps_its_modes() -> None:
    model = nontrivial(torchvision.models.resnet18(num_classes=4)).train()
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    dead_constants(model, {"layer1.0.conv1": filter_mask(model.layer1[0].conv1, [5])}, torch.rand(1, 3, 32, 32))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks for module in model.modules())


def test_resnet_within_a_block_and_at_a_residual_sum() -> None:
    model = nontrivial(torchvision.models.resnet18(num_classes=4))
    masks = {
        "layer1.0.conv1": filter_mask(model.layer1[0].conv1, [5]),
        "layer1.0.conv2": filter_mask(model.layer1[0].conv2, [7]),  # the shortcut is alive
    }
    assert held_zero(dead_constants(model, masks, torch.rand(2, 3, 32, 32))) == {
        f"layer1.0.bn{i}.{target}": [c] for i, c in ((1, 5), (2, 7)) for target in ("weight", "bias")
    }


def test_mobilenet_goes_on_through_the_depthwise_layer() -> None:
    model = nontrivial(torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.25))
    masks = {"features.2.conv.0.0": filter_mask(model.features[2].conv[0][0], [2, 9])}
    held = held_zero(dead_constants(model, masks, torch.rand(2, 3, 32, 32)))
    # conv.0.1 is the BatchNorm of the expansion, conv.1.1 that of the depthwise convolution.
    assert held == {f"features.2.conv.{i}.1.{target}": [2, 9] for i in (0, 1) for target in ("weight", "bias")}


def test_squeeze_and_excitation() -> None:
    model = nontrivial(torchvision.models.mobilenet_v3_small(num_classes=4))
    masks = {"features.4.block.0.0": filter_mask(model.features[4].block[0][0], [3])}
    held = held_zero(dead_constants(model, masks, torch.rand(2, 3, 32, 32)))
    assert held == {f"features.4.block.{i}.1.{target}": [3] for i in (0, 1) for target in ("weight", "bias")}


def test_densenet_finds_the_channel_in_every_batchnorm_that_reads_it() -> None:
    model = nontrivial(torchvision.models.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=3))
    masks = {"features.denseblock1.denselayer1.conv2": filter_mask(model.features.denseblock1.denselayer1.conv2, [1])}
    held = held_zero(dead_constants(model, masks, torch.rand(2, 3, 32, 32)))
    # Behind 8 channels of the stem: in the next layer's BatchNorm and in the transition's.
    where = ("features.denseblock1.denselayer2.norm1", "features.transition1.norm")
    assert held == {f"{name}.{target}": [9] for name in where for target in ("weight", "bias")}


def test_what_is_held_silences_dead_filters() -> None:
    model = nontrivial(torchvision.models.vgg11_bn(num_classes=4)).features[:12]
    masks = {name: filter_mask(model.get_submodule(name), [0, 2]) for name in ("0", "4", "8")}
    held = dead_constants(model, masks, torch.rand(2, 3, 16, 16))
    for name, mask in masks.items():
        model.get_parameter(f"{name}.weight").data.mul_(mask)
    for name, keep in held.items():
        model.get_parameter(name).data.mul_(keep)
    x = torch.rand(3, 3, 16, 16)
    for i, module in enumerate(model):
        x = module(x)
        if i in (1, 2, 3, 5, 9):
            assert (x[:, [0, 2]] == 0).all()
            assert (x[:, [1, 3]] != 0).any()


def test_held_at_zero_through_training() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    mask = filter_mask(model[0], [1, 3])
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    held = dead_constants(model, {"0": mask}, x) | {"0.weight": mask}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(5):
        for name, keep in held.items():
            model.get_parameter(name).data.mul_(keep)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, keep in held.items():
        model.get_parameter(name).data.mul_(keep)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    model.eval()
    assert (model[:2](x)[:, [1, 3]] == 0).all()


def test_the_last_layer_keeps_its_bias() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    masks = {"1": filter_mask(model[1], [0]), "3": filter_mask(model[3], [2])}
    assert held_zero(dead_constants(model, masks, torch.rand(2, 1, 8, 8))) == {"1.bias": [0]}


def test_a_filter_that_rarely_fires_is_not_dead() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    model[0].bias.data.fill_(-1e3)  # no image brings it above 0
    found = find_constant_channels(
        model, lambda: model(torch.rand(8, 1, 4, 4)), lambda module: links(module, module.weight != 0)
    )
    assert not found.zero[model[2]].any()
    assert not found.constant[model[2]].any()


def test_constants_that_padding_bends_are_constants() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.BatchNorm2d(2)).eval()
    model[0].weight.data[0] = 0  # its bias, then a depthwise convolution, whose border differs
    found = find_constant_channels(
        model,
        lambda: model(torch.rand(8, 1, 4, 4)),
        lambda module: links(module, module.weight != 0) if hasattr(module, "kernel_size") else module.weight != 0,
    )
    assert found.constant[model[2]].tolist() == [True, False]
    assert found.zero[model[1]].tolist() == [False, False]
    assert found.still[model[1]].tolist() == [True, False]
    assert found.dead[model[1]].tolist() == [False, False]
