from __future__ import annotations

import torch

from pwoa_plugin.models import VGGCIFAR, vgg16_cifar


def test_vgg16_has_the_published_count_and_names() -> None:
    with torch.device("meta"):
        model = vgg16_cifar()
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_728_266  # kuangliu/pytorch-cifar
    names = model.state_dict()
    assert tuple(names["features.0.weight"].shape) == (64, 3, 3, 3)
    assert tuple(names["features.7.weight"].shape) == (128, 64, 3, 3)  # after pooling, number 6
    assert tuple(names["features.41.running_mean"].shape) == (512,)
    assert tuple(names["classifier.weight"].shape) == (10, 512)


def test_features_are_torchvision_s() -> None:
    from torchvision.models import vgg16_bn

    with torch.device("meta"):
        ours, theirs = vgg16_cifar().features, vgg16_bn(weights=None).features
    assert [type(layer) for layer in ours] == [type(layer) for layer in theirs]
    assert {n: v.shape for n, v in ours.state_dict().items()} == {n: v.shape for n, v in theirs.state_dict().items()}


def test_small_vgg_gives_logits() -> None:
    model = VGGCIFAR(((4,), (8, 8)), num_classes=3, in_channels=1).eval()
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
