"""The robust network that the package ships."""

from __future__ import annotations

from .checkpoint import load_checkpoint
from .lenet import LeNet

__all__ = ["robust_lenet"]


def robust_lenet() -> LeNet:
    """The small LeNet, adversarially trained on MNIST at Linf eps 0.3, in eval mode.

    Its model card, ``robust_lenet_mnist.md`` in this folder, states data, training and robustness.
    """
    model = LeNet()
    load_checkpoint(model, "shipped:robust_lenet_mnist")
    return model.eval()
