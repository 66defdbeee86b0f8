"""Models and example inputs as users have them: checks, copies, and forwards whose errors name the module."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
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
    "largest_difference",
    "map_tensors",
    "random_batch",
    "tensors_of",
]


def check_model(model: Any) -> None:
    """Refuse anything but a plain module with parameters of its own.

    Raises:
        InputError: one line that says what to give instead.
    """
    wrappers = (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        raise InputError(
            f"model is a ScriptModule, a DataParallel or a compiled module ({type(model).__name__}), which cannot be "
            "traced; give the plain module inside (model.module, model._orig_mod)"
        )
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
        memo: of `copy.deepcopy`, which maps parts of the model to those of the copy; filled here.

    Raises:
        InputError: the model cannot be copied.
    """
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(f"model: copy.deepcopy fails on it ({named(error)}); make it copyable") from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied.eval()


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a dict holds keyword arguments, a tuple or list arguments, a tensor is the only one."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def call_saying_where(
    model: nn.Module,
    inputs: Any,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    *,
    name: str = "example_inputs",
) -> Any:
    """The model's output, by `call` or by ``forward``.

    Args:
        model: the network.
        inputs: of the form that `call` takes.
        forward: calls the model.
        name: of the inputs, in messages.

    Raises:
        InputError: there is no tensor in ``inputs``, one is on another device, or the forward raises.
    """
    tensors = tensors_of(inputs)
    if not tensors:
        raise InputError(f"{name} is a {type(inputs).__name__} without a tensor; give what the model's forward takes")
    devices = {parameter.device for parameter in model.parameters()}
    for tensor in tensors:
        if len(devices) == 1 and tensor.device not in devices:
            raise InputError(f"{name} is on {tensor.device}, and the model on {devices.pop()}; move one of them")
    try:
        return forward_saying_where(model, inputs, forward)
    except ForwardError as failed:
        raise InputError(
            f"{name}: {failed.where} fails on them: {failed.reason}; give what the model's forward takes"
        ) from failed.__cause__


class ForwardError(RuntimeError):
    """A forward that raised.

    Attributes:
        where: the innermost module that raised, as messages name it.
        reason: the error, on one line.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def forward_saying_where(model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] | None = None) -> Any:
    """The model's output, by `call` or by ``forward``.

    Raises:
        ForwardError: the forward raises.
    """
    running: list[str] = []
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():

            def enter(*_: Any, what: str = described(name, module)) -> None:
                running.append(what)

            def leave(*_: Any) -> None:
                running.pop()

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        try:
            return (forward or call)(model, inputs)
        except Exception as error:
            raise ForwardError(running[-1] if running else "the model", named(error)) from error


def largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest absolute difference of a tensor from the one expected, relative to that one's largest value.

    Infinite where a difference is NaN; 0 for empty tensors.
    """
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.numel():
            one, other = one.double(), other.double()
            difference = float((one - other).abs().max() / one.abs().max().clamp_min(torch.finfo(one.dtype).tiny))
            worst = max(worst, difference if difference == difference else math.inf)
    return worst


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
    """Inputs of the same form: floats drawn from [0, 1), and at least ``samples`` of them along the first dimension."""

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
