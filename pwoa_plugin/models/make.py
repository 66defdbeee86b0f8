"""Networks by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .._text import named
from ..errors import InputError
from .lenet import LeNet, LeNet3
from .normalisation import normalise_inputs
from .resnet import resnet18_cifar
from .vgg import vgg16_cifar
from .wide_resnet import wrn_34_10

__all__ = ["ARCHITECTURES", "load_architecture", "make_model"]

# name: (num_classes, in_channels) -> network
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
        arch: a name in `ARCHITECTURES`, or one of torchvision's classifiers, as ``resnet50``.
        num_classes: logits.
        in_channels: channels of an image; torchvision's networks take 3.
        mean, std: by channel, where the network was trained on normalised images; see `normalise_inputs`.

    Raises:
        ValueError: the name is unknown, or the network cannot be made for so many channels or classes.
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
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != in_channels:
            raise InputError(
                f"model.{name}={tuple(values)}: {len(values)} numbers for images of {in_channels} channels; "
                "give one for each channel"
            )
    return normalise_inputs(model, mean, std)


def _from_torchvision(arch: str, num_classes: int, in_channels: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if arch not in known:
        close = difflib.get_close_matches(arch.lower(), [*ARCHITECTURES, *known], n=3)
        cure = f"did you mean {' or '.join(close)}?" if close else "see torchvision.models.list_models()"
        raise InputError(
            f"model.arch={arch!r} is unknown; use {', '.join(ARCHITECTURES)} or a torchvision name; {cure}"
        )
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
    """A network of the user's own, made by the code that ``spec`` names. This runs that code.

    Args:
        spec: ``package.module:function``, or a class in place of the function. The current directory can be imported
            from while it loads. What the function has a parameter for among ``num_classes`` and ``in_channels`` it is
            called with; other parameters must have defaults.
        num_classes: logits; None: the function's own default.
        in_channels: channels of an image.
        mean, std: see `make_model`.

    Raises:
        ValueError: there is no such module or function, it fails, or what it returns is no network.
    """
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise InputError(f"arch={spec!r} is no package.module:function, as mynets.small:SmallNet")
    with _current_directory():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            raise InputError(f"arch={spec!r}: importing {module_name} fails ({named(error)})") from error
        for name in path.split("."):
            if not hasattr(found, name):
                close = difflib.get_close_matches(name, dir(found), n=1)
                cure = f"did you mean {close[0]}?" if close else "check its name"
                raise InputError(f"arch={spec!r}: {module_name} has no {path}; {cure}")
            found = getattr(found, name)
        if not callable(found):
            raise InputError(f"arch={spec!r}: {path} is a {type(found).__name__}; name a function or a class")
        try:
            model = found(**_taken(found, num_classes, in_channels))
        except Exception as error:
            raise InputError(f"arch={spec!r}: calling {path} fails ({named(error)})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"arch={spec!r}: {path} returns a {type(model).__name__}; it must return a torch.nn.Module")
    return _with_normalisation(model, in_channels, mean, std)


def _taken(function: Callable[..., Any], num_classes: int | None, in_channels: int) -> dict[str, int]:
    """What the function has parameters for."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # no Python signature
        return {}
    offered = {"in_channels": in_channels} | ({} if num_classes is None else {"num_classes": num_classes})
    return {
        name: value
        for name, value in offered.items()
        if name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    }


@contextmanager
def _current_directory() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
