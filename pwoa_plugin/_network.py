"""What a network must be to be pruned, trained or judged: one rule in all doors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

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
