from __future__ import annotations

import torch

from pwoa_plugin.models import ResNetCIFAR, resnet18_cifar


def test_resnet18_has_the_published_count_and_names() -> None:
    with torch.device("meta"):
        model = resnet18_cifar()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962  # kuangliu/pytorch-cifar
    names = model.state_dict()
    assert tuple(names["conv1.weight"].shape) == (64, 3, 3, 3)
    assert tuple(names["layer2.0.shortcut.0.weight"].shape) == (128, 64, 1, 1)
    assert tuple(names["layer4.1.bn2.running_var"].shape) == (512,)
    assert tuple(names["linear.weight"].shape) == (10, 512)
    assert not [name for name in names if name.startswith("layer1.0.shortcut")]


def test_it_is_torchvision_s_network_but_for_the_stem() -> None:
    """An oracle: the same weights in torchvision's ResNet-18 with the stem exchanged give the same logits."""
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock

    torch.manual_seed(0)
    ours = ResNetCIFAR((1, 2, 1, 1), num_classes=4).eval()
    theirs = ResNet(BasicBlock, [1, 2, 1, 1], num_classes=4).eval()
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    for name, value in ours.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    state = {
        name.replace("shortcut", "downsample").replace("linear", "fc"): value
        for name, value in ours.state_dict().items()
    }
    theirs.load_state_dict(state)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))
