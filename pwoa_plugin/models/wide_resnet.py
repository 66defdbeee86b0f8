"""WideResNet for 32x32 images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        total: Tensor = shortcut + out
        return total


class WideResNet(nn.Module):
    """WideResNet (Zagoruyko and Komodakis 2016, arXiv 1605.07146) with the parameter names of TRADES's code.

    TRADES and PwoA also build a ``sub_block1`` that their forward pass never uses. It is not built here, and
    `load_checkpoint` leaves it out.

    ``depth`` is the number of convolutions and linear layers, 6n + 4; ``width`` multiplies the stages' 16, 32 and 64
    channels. Takes images ``(N, in_channels, 32, 32)`` in [0, 1] and returns logits ``(N, num_classes)``.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise InputError(f"depth={depth} is not 6n + 4; give 28 or 34, say")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _stage(blocks, 16, 16 * width, 1)
        self.block2 = _stage(blocks, 16 * width, 32 * width, 2)
        self.block3 = _stage(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    rest = [WideBlock(channels, channels, 1) for _ in range(blocks - 1)]
    layer = nn.Sequential(WideBlock(in_channels, channels, stride), *rest)
    return nn.Sequential(OrderedDict(layer=layer))  # TRADES's names: block1.layer.0.conv1


def wrn_34_10(num_classes: int = 10, in_channels: int = 3) -> WideResNet:
    """WideResNet-34-10; 46,160,474 weights and biases with 10 classes."""
    return WideResNet(34, 10, num_classes, in_channels)
