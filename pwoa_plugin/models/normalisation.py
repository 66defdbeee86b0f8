"""Normalisation by mean and std inside a network, under the names it had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["Normalisation", "normalisation_of", "normalise_inputs"]


class Normalisation:
    """A forward pre-hook: ``(x - mean) / std`` by channel.

    As a hook it adds no parameter, buffer or module, so that a checkpoint's names stay as they are. `copy.deepcopy`
    of the network copies it with the network.

    Args:
        mean: by channel, in pixel units.
        std: by channel, positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._tensors: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        where = (x.device, x.dtype)
        if where not in self._tensors:
            with torch.inference_mode(False):  # what is kept must serve later calls that need gradients
                self._tensors[where] = (
                    torch.tensor(self.mean, device=x.device, dtype=x.dtype).view(-1, 1, 1),
                    torch.tensor(self.std, device=x.device, dtype=x.dtype).view(-1, 1, 1),
                )
        mean, std = self._tensors[where]
        return ((x - mean) / std, *rest)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tensors": {}}


def normalise_inputs(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Put ``(x - mean) / std`` before a network that was trained on normalised images.

    Then the network takes images in [0, 1], and ``eps`` stays in pixel units. It happens where the network is called
    (``model(x)``), not in ``model.forward(x)``.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: ``mean`` and ``std`` differ in length, or a ``std`` is not positive.
    """
    if len(mean) != len(std) or not mean:
        raise InputError(f"model.mean has {len(mean)} numbers and model.std {len(std)}; give one for each channel")
    if not all(value > 0 for value in std):
        raise InputError(f"model.std={tuple(std)} is not positive; give the standard deviation of each channel")
    # First of all, so that other hooks see what the network's layers see.
    model.register_forward_pre_hook(Normalisation(mean, std), prepend=True)
    return model


def normalisation_of(model: nn.Module) -> Normalisation | None:
    """The normalisation that `normalise_inputs` put there, if it did."""
    hooks = model._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, Normalisation)), None)
