"""Restore a model when training fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn

from .._modes import modes_kept
from .snapshot import tensors_of


@contextlib.contextmanager
def restored_on_error(model: nn.Module, undo: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Restore modes and gradients always; if the body raises, parameters and buffers too, after ``undo()``."""
    before = {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    with modes_kept(model):  # outermost: `undo` brings modes with it
        try:
            yield
        except BaseException:
            try:
                undo()
            finally:
                for name, tensor in tensors_of(model).items():
                    if name in before:  # a quantizer adds buffers while it trains
                        tensor.data = before[name]
            raise
        finally:
            for parameter in model.parameters():
                gradient = gradients.get(parameter)  # None for a parameter that is new
                parameter.grad = gradient if gradient is None else gradient.to(parameter.device)
