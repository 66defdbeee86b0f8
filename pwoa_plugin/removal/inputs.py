"""Models and example inputs as users hold them: checked, copied, and run with errors that say where."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from .._text import named
from ..errors import InputError

__all__ = [
    "ForwardError",
    "call",
    "call_saying_where",
    "check_model",
    "copy_of",
    "described",
    "forward_saying_where",
    "map_tensors",
    "random_batch",
    "tensors_of",
]


def check_model(model: Any) -> None:
    """Refuse what is no plain module with its own parameters.

    Raises:
        ValueError: one line that says what to give instead.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("model is a ScriptModule, which cannot be traced; give the nn.Module that it was made from")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise InputError(f"model is wrapped by {type(model).__name__}; give model.module")
    if hasattr(model, "_orig_mod"):
        raise InputError("model is compiled; give the module that went into torch.compile (model._orig_mod)")
    for name, module in model.named_modules():
        if hasattr(module, "_nni_wrapper"):
            raise InputError(f"{name} is wrapped by NNI; call the compressor's unwrap_model() first")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter) or parameter.is_meta:
            raise InputError(f"{name} has no values yet; run the model once, or load its weights, first")


def copy_of(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy without gradients, in eval mode.

    Args:
        model: the network.
        memo: `copy.deepcopy`'s, by which parts of the copy are found; filled.

    Raises:
        ValueError: the model cannot be copied.
    """
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(f"model: copy.deepcopy fails on it ({named(error)}); make it copyable") from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied.eval()


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's answer: a dict is its keywords, a tuple or list its arguments, a tensor its only argument."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def call_saying_where(model: nn.Module, inputs: Any) -> Any:
    """`call`, where an error names the module that raised it.

    Raises:
        ValueError: there is no tensor in ``inputs``, one is on another device, or the forward raises.
    """
    tensors = tensors_of(inputs)
    if not tensors:
        raise InputError(
            f"example_inputs is a {type(inputs).__name__} without a tensor; give what the model's forward takes"
        )
    devices = {parameter.device for parameter in model.parameters()}
    for tensor in tensors:
        if len(devices) == 1 and tensor.device not in devices:
            raise InputError(
                f"example_inputs is on {tensor.device}, and the model on {devices.pop()}; put them together"
            )
    try:
        return forward_saying_where(model, inputs)
    except ForwardError as failed:
        raise InputError(
            f"example_inputs: {failed.where} fails on them: {failed.reason}; give what the model's forward takes"
        ) from failed.__cause__


class ForwardError(RuntimeError):
    """A forward that raised.

    Attributes:
        where: the innermost module that raised it, as messages name it.
        reason: what it raised, on one line.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def forward_saying_where(model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] | None = None) -> Any:
    """The model's answer, by `call` or by ``forward``.

    Raises:
        ForwardError: the forward raises.
    """
    running: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def enter(*_: Any, what: str = described(name, module)) -> None:
            running.append(what)

        def leave(*_: Any) -> None:
            running.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        return (forward or call)(model, inputs)
    except Exception as error:
        raise ForwardError(running[-1] if running else "the model", named(error)) from error
    finally:
        for handle in handles:
            handle.remove()


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with each tensor in its tuples, lists and dicts replaced by ``change(tensor)``."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(change, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_tensors(change, item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def random_batch(inputs: Any, random: torch.Generator, samples: int = 0) -> Any:
    """Inputs of the same form, floats drawn from [0, 1), and at least ``samples`` of them in the first dimension."""

    def draw(tensor: Tensor) -> Tensor:
        if tensor.dim() and len(tensor) < samples and len(tensor) == batch:
            tensor = tensor.repeat(math.ceil(samples / batch), *[1] * (tensor.dim() - 1))
        if not tensor.is_floating_point():
            return tensor
        drawn = torch.rand(tensor.shape, generator=random, dtype=torch.float64)
        return drawn.to(tensor.device, tensor.dtype)

    batch = next((len(tensor) for tensor in tensors_of(inputs) if tensor.dim()), 0)
    return map_tensors(draw, inputs) if batch else inputs


def described(name: str, module: nn.Module) -> str:
    """A module as messages name it."""
    return f"{name} ({type(module).__name__})" if name else f"the forward of {type(module).__name__} itself"
