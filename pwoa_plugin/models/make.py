"""Networks by name."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .._own_code import importing_here, near_own
from .._pixels import per_channel
from .._text import did_you_mean, named
from ..errors import InputError, memory_for
from .lenet import LeNet, LeNet3
from .normalisation import normalise_inputs
from .resnet import resnet18_cifar
from .vgg import vgg16_cifar
from .wide_resnet import wrn_34_10

# by name: a function from (num_classes, in_channels) to a network
ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "lenet": LeNet,
    "lenet3": LeNet3,
    "resnet18-cifar": resnet18_cifar,
    "vgg16-cifar": vgg16_cifar,
    "wrn-34-10": wrn_34_10,
}


def make_model(
    arch: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """A network with random weights, on the CPU.

    Args:
        arch: a name in `ARCHITECTURES`, or a torchvision classifier, as ``resnet50``.
        num_classes: number of logits.
        in_channels: channels of an image; torchvision's networks take 3.
        mean, std: by channel, if the network was trained on normalised images; see `normalise_inputs`.
    """
    with memory_for(f"model.num_classes={num_classes}"):
        if arch in ARCHITECTURES:
            model = ARCHITECTURES[arch](num_classes, in_channels)
        else:
            model = _from_torchvision(arch, num_classes, in_channels)
    return normalised(model, in_channels, mean, std)


def normalised(
    model: nn.Module, in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> nn.Module:
    """The network, with `normalise_inputs` where mean and std are given; InputError if they are not by channel."""
    if mean is None and std is None:
        return model
    mean, std = per_channel("model.mean", mean), per_channel("model.std", std)
    if not len(mean or ()) == len(std or ()) == in_channels:
        raise InputError(f"model.mean={mean}, model.std={std}: give one number for each channel ({in_channels})")
    return normalise_inputs(model, mean or (), std or ())


def _from_torchvision(arch: str, num_classes: int, in_channels: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if arch not in known:
        cure = did_you_mean(arch, [*ARCHITECTURES, *known], "see torchvision.models.list_models()", most=3)
        raise InputError(f"model.arch={arch!r} is unknown; use {', '.join(ARCHITECTURES)} or a torchvision name{cure}")
    if in_channels != 3:
        raise InputError(f"model.arch={arch!r} takes images of 3 channels, and these have {in_channels}")
    options: dict[str, Any] = {}
    if arch in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}  # the slow init is for training from scratch
    model: nn.Module = models.get_model(arch, weights=None, num_classes=num_classes, **options)
    return model


def load_architecture(spec: str, *, num_classes: int | None = None, in_channels: int = 3) -> nn.Module:
    """A network made by your own code. This runs that code.

    Args:
        spec: ``package.module:function``, or a class instead of the function. Imports also look in the current
            directory. The function receives ``num_classes`` and ``in_channels`` if it has parameters of these names;
            its other parameters must have defaults.
        num_classes: number of logits; None: the function's own default.
        in_channels: channels of an image.
    """
    offered = {"num_classes": num_classes, "in_channels": in_channels}
    step = "importing it"
    try:
        with importing_here():
            function = pkgutil.resolve_name(spec)
            step = "calling it"
            takes = inspect.signature(function).parameters
            model = function(**{name: value for name, value in offered.items() if name in takes and value is not None})
    except (Exception, SystemExit) as error:
        cure = "" if step == "calling it" else near_own(spec, error)
        cure = cure or "; give package.module:function, as mynets.small:SmallNet"
        raise InputError(f"arch={spec!r}: {step} fails ({named(error)}){cure}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"arch={spec!r} returns a {type(model).__name__}; it must return a torch.nn.Module")
    return model
