"""Models and example inputs as users have them: forwards whose errors name the module, and nested tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._logits import described as what_is
from .._logits import is_dense, parts_of
from .._network import check_plain
from .._text import named
from ..errors import InputError

Forward = Callable[[nn.Module, Any], Any]


def check_model(model: Any) -> None:
    """Refuse models that cannot be traced."""
    check_plain(model)
    for name, module in model.named_modules():
        if hasattr(module, "_nni_wrapper"):
            raise InputError(f"{name} is wrapped by NNI; call the compressor's unwrap_model() first")


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output. A dict holds keyword arguments, a tuple or list positional ones; else the only argument."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


class ForwardError(RuntimeError):
    """A forward that raised: the innermost module that did, as messages name it, and the error on one line."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def forward_saying_where(model: nn.Module, inputs: Any, forward: Forward = call) -> Any:
    """The model's output; a `ForwardError` if the forward raises."""
    running: list[str] = []
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():

            def enter(*_: Any, what: str = described(name, module)) -> None:
                running.append(what)

            def leave(*_: Any) -> None:
                running.pop()

            hooks.enter_context(module.register_forward_pre_hook(enter))
            hooks.enter_context(module.register_forward_hook(leave))
        try:
            return forward(model, inputs)
        except Exception as error:
            raise ForwardError(running[-1] if running else "the model", named(error)) from error


def call_saying_where(model: nn.Module, inputs: Any, forward: Forward = call, *, name: str = "example_inputs") -> Any:
    """The model's output on the user's inputs; ``name`` is that of the inputs in the error."""
    try:
        return forward_saying_where(model, inputs, forward)
    except ForwardError as failed:
        raise InputError(
            f"{name}: {failed.where} fails on them: {failed.reason}; give what the model's forward takes"
        ) from failed.__cause__


def largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference from an expected tensor, relative to its largest absolute value; infinite for NaN."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.numel():
            one, other = one.double(), other.double()
            difference = float((one - other).abs().max() / one.abs().max().clamp_min(torch.finfo(one.dtype).tiny))
            worst = max(worst, difference if difference == difference else math.inf)
    return worst


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and objects (dataclasses, say); InputError unless dense."""
    if isinstance(value, Tensor):
        if not is_dense(value):
            raise InputError(f"the model takes or returns {what_is(value)}; use dense tensors")
        return [value]
    return [tensor for _, part in parts_of(value) for tensor in tensors_of(part)]


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
    """Inputs of the same form, floats drawn from [0, 1); the batch is repeated up to ``samples`` or more."""

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
