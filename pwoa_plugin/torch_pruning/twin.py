"""Copies to try things on."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ..removal.inputs import one_line

__all__ = ["twin_of"]


def twin_of(model: nn.Module) -> tuple[nn.Module, dict[int, Any]]:
    """A copy in eval mode without gradients, and `copy.deepcopy`'s memo, by which its parts are found.

    Raises:
        ValueError: the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(f"model: copy.deepcopy fails on it ({one_line(error)}); make it copyable") from error
    for parameter in twin.parameters():
        parameter.grad = None
    return twin.eval(), memo
