"""Networks by name."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .._text import did_you_mean, named
from ..errors import InputError
from .lenet import LeNet, LeNet3
from .normalisation import normalise_inputs
from .resnet import resnet18_cifar
from .vgg import vgg16_cifar
from .wide_resnet import wrn_34_10

__all__ = ["ARCHITECTURES", "load_architecture", "make_model"]

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
    """A network by its name, with random weights, on the CPU.

    Args:
        arch: a name in `ARCHITECTURES`, or a torchvision classifier, as ``resnet50``.
        num_classes: number of logits.
        in_channels: channels of an image; torchvision's networks take 3.
        mean, std: by channel, if the network was trained on normalised images; see `normalise_inputs`.

    Raises:
        InputError: the name is unknown, or the network cannot take images of ``in_channels`` channels.
    """
    if arch in ARCHITECTURES:
        model = ARCHITECTURES[arch](num_classes, in_channels)
    else:
        model = _from_torchvision(arch, num_classes, in_channels)
    return _with_normalisation(model, in_channels, mean, std)


def _with_normalisation(
    model: nn.Module, in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> nn.Module:
    if mean is None and std is None:
        return model
    if mean is None or std is None:
        raise InputError("model.mean and model.std go together; give both or neither")
    if not len(mean) == len(std) == in_channels:
        raise InputError(
            f"model.mean={tuple(mean)}, model.std={tuple(std)}: images have {in_channels} channels; "
            "give one number for each channel"
        )
    return normalise_inputs(model, mean, std)


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


def load_architecture(
    spec: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """A network made by your own code, which ``spec`` names. This runs that code.

    Args:
        spec: ``package.module:function``, or a class instead of the function. Imports also look in the current
            directory. The function receives ``num_classes`` and ``in_channels`` if it has parameters of these names;
            its other parameters must have defaults.
        num_classes: number of logits; None: the function's own default.
        in_channels: channels of an image.
        mean, std: see `make_model`.

    Raises:
        InputError: there is no such module or function, it fails, or it does not return a network.
    """
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise InputError(f"arch={spec!r}: give package.module:function, as mynets.small:SmallNet")
    with _current_directory():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            raise InputError(f"arch={spec!r}: importing {module_name} fails ({named(error)})") from error
        for name in path.split("."):
            if not hasattr(found, name):
                raise InputError(f"arch={spec!r}: {module_name} has no {path}{did_you_mean(name, dir(found))}")
            found = getattr(found, name)
        try:
            model = found(**_accepted(found, num_classes=num_classes, in_channels=in_channels))
        except Exception as error:
            raise InputError(f"arch={spec!r}: calling {path} fails ({named(error)})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"arch={spec!r}: {path} returns a {type(model).__name__}; it must return a torch.nn.Module")
    return _with_normalisation(model, in_channels, mean, std)


def _accepted(function: Callable[..., Any], **offered: int | None) -> dict[str, int]:
    """The offered arguments that the function can take by keyword."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a function of an extension, without a signature
        return {}
    by_keyword = {name for name, each in parameters.items() if each.kind is not each.POSITIONAL_ONLY}
    return {name: value for name, value in offered.items() if name in by_keyword and value is not None}


@contextmanager
def _current_directory() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
