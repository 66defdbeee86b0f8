"""What a network must be to be pruned, trained or judged: one rule in all doors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from ._text import one_line
from ._wrapped import unwrapped
from .errors import InputError


def check_network(model: Any, what: str = "model") -> None:
    """InputError unless this is a module whose parameters and buffers hold numbers that can be differentiated by.

    Args:
        model: what the user gave.
        what: the argument's name, for messages.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{what} is {_kind_and_cure(model)}")
    network = unwrapped(model)
    if isinstance(network, torch.fx.GraphModule) and "train" in vars(network):  # it raises
        raise InputError(
            f"{what} is a program of torch.export, which has no modes; give the module that it was made from"
        )
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"{what}: {name} has no values yet; run the model once first")
        if tensor.is_meta:
            raise InputError(
                f"{what}: {name} is on the meta device, without numbers; make the model on the CPU and load it"
            )
        if tensor.is_inference():
            raise InputError(
                f"{what}: {name} was made under torch.inference_mode, where nothing can be differentiated; make or "
                "load the model outside, or give copy.deepcopy(model)"
            )


@contextmanager
def naming_images(images: Tensor) -> Iterator[None]:
    """A network's error at images ``(N, C, H, W)`` becomes an InputError that names their shape."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, IndexError, ValueError, AssertionError) as error:  # timm asserts sizes
        raise InputError(
            f"the model does not take images {tuple(images.shape[1:])} ({one_line(error)}); give images of the shape "
            "it was made for, or mend its forward"
        ) from error


def check_plain(model: Any, what: str = "model") -> None:
    """`check_network`, and InputError for what can only be judged: TorchScript, whose modules take no hooks."""
    check_network(model, what)
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{what}{name and f': {name}'} is a ScriptModule, which can be judged, but not trained or traced; give "
                "the module that it was made from"
            )


def check_trainable(model: Any, what: str = "model") -> None:
    """`check_plain`, and InputError unless the network can be trained."""
    check_plain(model, what)
    for name, module in unwrapped(model).named_modules():
        if type(module).__module__.startswith("torch.") and ".quantized" in type(module).__module__:
            raise InputError(
                f"{what}: {name or 'it'} is quantised, and no gradient passes it; train the network, then quantise it"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        if next(model.parameters(), None) is None:
            raise InputError(f"{what} has no parameters, so nothing can be trained; give a network that has")
        raise InputError(
            f"{what}: all parameters are frozen (requires_grad=False); call requires_grad_(True) on the layers to train"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float16:
            raise InputError(
                f"{what}: {name} is float16: Adam yields NaN; give the model in float32 (model.float()) and train "
                "under autocast (in a PwoAConfig autocast='float16')"
            )
        if parameter.requires_grad and any(
            size > 1 and step == 0 for size, step in zip(parameter.shape, parameter.stride(), strict=True)
        ):
            raise InputError(f"{what}: {name} holds one number in several places (expand); give it .contiguous()")
    if (name := not_finite(model)) is not None:
        raise InputError(f"{what}: {name} is not finite before training; load a sound checkpoint")


def not_finite(model: nn.Module) -> str | None:
    """The first trained parameter or running statistic, which finite logits do not show, that is not finite."""
    tensors = {name: value for name, value in model.named_parameters() if value.requires_grad}
    tensors |= {
        f"{name}.{target}": value
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for target in ("running_mean", "running_var")
        if (value := getattr(module, target)) is not None
    }
    finite = {name: value.detach().isfinite().all() for name, value in tensors.items()}
    # One flag for all, to wait for an accelerator only once.
    if not finite or torch.stack([flag.to(next(iter(finite.values())).device) for flag in finite.values()]).all():
        return None
    return next(name for name, flag in finite.items() if not flag).replace("_nni_wrapper.", "")


def _kind_and_cure(value: Any) -> str:
    if value is None:
        return "missing; give a torch.nn.Module"
    if isinstance(value, type):
        return f"the class {value.__name__}; give an object of it, as {value.__name__}()"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"of type {kind}, not a network; make the network, load the weights into it, and give that"
    if isinstance(value, (str, os.PathLike)):
        return (
            f"of type {kind}, not a network; make the network, and load the file by pwoa_plugin.models.load_checkpoint"
        )
    if callable(value):
        return f"of type {kind}; give a torch.nn.Module that calls it in its forward"
    return f"of type {kind}; give a torch.nn.Module"
