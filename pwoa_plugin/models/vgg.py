"""VGG for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class VGGCIFAR(nn.Module):
    """VGG with batch norm and one linear layer (Simonyan and Zisserman 2015, arXiv 1409.1556), as in ``pytorch-cifar``.

    ``stages`` are the channels of the 3x3 convolutions of each stage, which ends in pooling by 2.

    Takes images ``(N, in_channels, 32, 32)`` in [0, 1] and returns logits ``(N, num_classes)``.
    """

    def __init__(self, stages: tuple[tuple[int, ...], ...], num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for stage in stages:
            for channels in stage:
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


def vgg16_cifar(num_classes: int = 10, in_channels: int = 3) -> VGGCIFAR:
    """VGG-16 with batch norm for 32x32 images; 14,728,266 weights and biases with 10 classes."""
    stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    return VGGCIFAR(stages, num_classes, in_channels)
