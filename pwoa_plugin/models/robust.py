"""The robust network that the package ships."""

from __future__ import annotations

from importlib.resources import as_file, files

from safetensors.torch import load_file

from .lenet import LeNet

__all__ = ["robust_lenet"]


def robust_lenet() -> LeNet:
    """The small LeNet, adversarially trained on MNIST at Linf eps 0.3, in eval mode.

    ``robust_lenet_mnist.md`` beside its weights is the model card: data, recipe, how robust it is.
    """
    model = LeNet()
    with as_file(files(__package__) / "robust_lenet_mnist.safetensors") as path:
        model.load_state_dict(load_file(path))
    return model.eval()
