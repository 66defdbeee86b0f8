"""Normalisation by mean and std inside a network, whose parameter names stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._pixels import per_channel
from .._wrapped import unwrapped
from ..errors import InputError


class Normalisation:
    """A forward pre-hook: ``(x - mean) / std`` by channel.

    A hook adds no parameter, buffer or module, so the names in checkpoints stay the same. `copy.deepcopy` of the
    network copies the hook, too.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = per_channel("model.mean", mean) or ()
        self.std = per_channel("model.std", std) or ()
        self._tensors: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        where = (x.device, x.dtype)
        if where not in self._tensors:
            with torch.inference_mode(False):  # later calls may need gradients
                self._tensors[where] = (
                    torch.tensor(self.mean, device=x.device, dtype=x.dtype).view(-1, 1, 1),
                    torch.tensor(self.std, device=x.device, dtype=x.dtype).view(-1, 1, 1),
                )
        mean, std = self._tensors[where]
        return ((x - mean) / std, *rest)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tensors": {}}


def normalise_inputs(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Put ``(x - mean) / std`` before a network that was trained on normalised images; returns that network.

    The network then takes images in [0, 1], and ``eps`` stays in pixel units. Only ``model(x)`` normalises;
    ``model.forward(x)`` does not.
    """
    added = Normalisation(mean, std)
    if not all(value > 0 for value in added.std):
        raise InputError(f"model.std={added.std} is not positive; give the standard deviation of each channel")
    # Prepended, so that other hooks see the same input as the layers.
    unwrapped(model).register_forward_pre_hook(added, prepend=True)
    return model


def normalisation_of(model: nn.Module) -> Normalisation | None:
    """The normalisation that `normalise_inputs` added, or None."""
    hooks = unwrapped(model)._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, Normalisation)), None)
