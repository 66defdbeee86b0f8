"""Architectures, checkpoints, and the robust network that the package ships."""

from .checkpoint import SHIPPED, Checkpoint, CheckpointError, load_checkpoint, read_checkpoint
from .lenet import LeNet, LeNet3, robust_lenet
from .make import ARCHITECTURES, load_architecture, make_model
from .normalisation import normalise_inputs
from .resnet import ResNetCIFAR, resnet18_cifar
from .vgg import VGGCIFAR, vgg16_cifar
from .wide_resnet import WideResNet, wrn_34_10

__all__ = [
    "ARCHITECTURES",
    "SHIPPED",
    "VGGCIFAR",
    "Checkpoint",
    "CheckpointError",
    "LeNet",
    "LeNet3",
    "ResNetCIFAR",
    "WideResNet",
    "load_architecture",
    "load_checkpoint",
    "make_model",
    "normalise_inputs",
    "read_checkpoint",
    "resnet18_cifar",
    "robust_lenet",
    "vgg16_cifar",
    "wrn_34_10",
]
