"""ResNet for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNetCIFAR(nn.Module):
    """ResNet of basic blocks with a 3x3 stem and no pooling before the blocks (He et al. 2016, arXiv 1512.03385).

    Layout and names are those of published robust checkpoints for CIFAR (``pytorch-cifar``, TRADES): ``conv1``,
    ``bn1``, ``layer1.0.shortcut.0``, ``linear``.

    Takes images ``(N, in_channels, 32, 32)`` in [0, 1] and returns logits ``(N, num_classes)``.
    """

    def __init__(
        self, blocks: tuple[int, int, int, int], num_classes: int = 10, in_channels: int = 3, *, channels: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = _stage(blocks[0], channels, channels, 1)
        self.layer2 = _stage(blocks[1], channels, 2 * channels, 2)
        self.layer3 = _stage(blocks[2], 2 * channels, 4 * channels, 2)
        self.layer4 = _stage(blocks[3], 4 * channels, 8 * channels, 2)
        self.linear = nn.Linear(8 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)


def resnet18_cifar(num_classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """ResNet-18 for 32x32 images; 11,173,962 weights and biases with 10 classes."""
    return ResNetCIFAR((2, 2, 2, 2), num_classes, in_channels)
