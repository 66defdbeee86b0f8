"""LeNets for 28x28 images: the demo's small one, and the paper's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import load_checkpoint


class LeNet(nn.Module):
    """Two 5x5 convolutions (16 and 32 filters) and two linear layers (1568-256-10); 417,482 weights and biases.

    Takes images ``(N, in_channels, 28, 28)`` in [0, 1] and returns logits ``(N, num_classes)``.
    """

    filters = (16, 32)
    hidden = 256

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        first, second = self.filters
        self.conv1 = nn.Conv2d(in_channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.fc1 = nn.Linear(49 * second, self.hidden)
        self.fc2 = nn.Linear(self.hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # ReLU after pooling gives the same numbers on a quarter of the pixels.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits


class LeNet3(LeNet):
    """PwoA's network for MNIST: 32 and 64 filters, linear layers 3136-1024-10; 3,274,634 weights and biases.

    Names and shapes are those of the authors' code, so their checkpoints load. Theirs returns the logits' log-softmax,
    for which every loss and attack here gives the same result.
    """

    filters = (32, 64)
    hidden = 1024


def robust_lenet() -> LeNet:
    """The small LeNet, adversarially trained on MNIST at Linf eps 0.3, in eval mode.

    Its model card, ``robust_lenet_mnist.md`` in this folder, states data, training and robustness.
    """
    model = LeNet()
    load_checkpoint(model, "shipped:robust_lenet_mnist")
    return model.eval()
