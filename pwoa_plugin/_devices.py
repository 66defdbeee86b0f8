"""Where a network computes, and in which numbers."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn

from ._text import one_line
from .errors import InputError


def check_device(value: Any) -> torch.device:
    """A device on which torch can compute here.

    Args:
        value: a `torch.device`, or a name such as ``cpu`` or ``cuda:1``.

    Raises:
        InputError: there is no such device, or it holds no numbers (``meta``).
    """
    try:
        if isinstance(value, bool):
            raise TypeError("it is no device's name")
        device = torch.device(value)
        if device.type == "meta":
            raise TypeError("it holds no numbers")
        torch.empty(0, device=device)  # shows what a name alone does not: an absent GPU, a wrong index
    except Exception as error:  # each kind of device has errors of its own, ModuleNotFoundError among them
        reason = one_line(error).split(". ")[0][:150]
        raise InputError(
            f"device={str(value)!r} cannot be used here ({reason}); use {' or '.join(_usable())}, or leave it out"
        ) from None
    return device


def _usable() -> list[str]:
    return ["'cpu'", *(f"'cuda:{index}'" for index in range(torch.cuda.device_count()))]


def device_of(model: nn.Module, default: torch.device | str = "cpu") -> torch.device:
    """Where a network's first parameter is; the default if it has none."""
    parameter = next(model.parameters(), None)
    return torch.device(default) if parameter is None else parameter.device


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of images that a network takes: that of its first floating parameter or buffer, else float32.

    A network may hold integers too, as indices and quantised weights are.
    """
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
