"""Architectures, checkpoints, and the robust network that the package ships."""

from .checkpoint import SHIPPED, Checkpoint, CheckpointError, load_checkpoint, read_checkpoint
from .lenet import LeNet, LeNet3, robust_lenet
from .make import ARCHITECTURES, load_architecture, make_model, normalised
from .normalisation import normalise_inputs
from .resnet import ResNetCIFAR, resnet18_cifar
from .sources import SOURCES, Own, Source, Wanted, names_code, source_of
from .vgg import VGGCIFAR, vgg16_cifar
from .wide_resnet import WideResNet, wrn_34_10

__all__ = [
    "ARCHITECTURES",
    "SHIPPED",
    "SOURCES",
    "VGGCIFAR",
    "Checkpoint",
    "CheckpointError",
    "LeNet",
    "LeNet3",
    "Own",
    "ResNetCIFAR",
    "Source",
    "Wanted",
    "WideResNet",
    "load_architecture",
    "load_checkpoint",
    "make_model",
    "names_code",
    "normalise_inputs",
    "normalised",
    "read_checkpoint",
    "resnet18_cifar",
    "robust_lenet",
    "source_of",
    "vgg16_cifar",
    "wrn_34_10",
]
