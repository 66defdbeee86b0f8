"""The constants of dead filters: a filter without weights still emits its bias, and the BatchNorm behind it beta.

To find the channels that carry such constants, the model runs with the live channels of every layer replaced by noise:
what is then the same in all samples is the same for every image. So concatenations, residual sums, depthwise layers
and activations need neither a graph nor a table of operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .._modes import modes_kept
from .._weights import is_weighted

#: Samples that `find_constant_channels` needs in a batch, so that no activation hides all noise of a channel.
SAMPLES = 8
_ROUNDS = 2
_SPREAD = 3.0  # of the noise: reaches beyond the saturation of ReLU6 and hard swish


@dataclass
class ConstantChannels:
    """Channels that do not depend on the model's input.

    Attributes:
        zero: ``{layer: (in,) boolean}``: input channels that are 0; convolutions and linear layers.
        constant: ``{layer: (in,) boolean}``: input channels that no image changes, 0 or not; BatchNorm too.
        dead: ``{layer: (out,) boolean}``: filters that see only 0 and emit their bias; convolutions and linear layers.
        still: ``{layer: (out,) boolean}``: filters whose output no image changes; includes the dead ones.
        last: the convolution or linear layer that ran last.
    """

    zero: dict[nn.Module, Tensor] = field(default_factory=dict)
    constant: dict[nn.Module, Tensor] = field(default_factory=dict)
    dead: dict[nn.Module, Tensor] = field(default_factory=dict)
    still: dict[nn.Module, Tensor] = field(default_factory=dict)
    last: nn.Module | None = None

    def constants_of(self, module: nn.Module) -> dict[str, Tensor]:
        """``{"bias" or "weight": (channels,) boolean}``: which of a layer's own parameters make constants."""
        if module in self.dead:
            return {"bias": self.dead[module]}
        if isinstance(module, _BatchNorm) and module in self.constant:
            return dict.fromkeys(("weight", "bias"), self.constant[module])
        return {}


def links(module: nn.Module, present: Tensor) -> Tensor:
    """Which filters of a convolution or linear layer read which input channels, by the weights that are ``present``.

    Returns:
        ``(groups, out / groups, in / groups)``, boolean.
    """
    groups = module.groups if isinstance(module, _ConvNd) else 1
    each = present.reshape(groups, present.shape[0] // groups, present.shape[1], -1).any(3)
    return each.transpose(1, 2) if isinstance(module, _ConvTransposeNd) else each


def dead_constants(model: nn.Module, masks: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """The constants that must stay 0 so that filters dead by ``masks`` emit nothing.

    These are the biases of dead filters, and weight and bias of every BatchNorm channel that sees only dead filters
    (directly, or through a concatenation, a sum or a pooling); likewise for layers that read only such channels: behind
    a dead filter a depthwise filter is dead, too. The layer that runs last keeps its bias, which is part of the model's
    output. The model is not changed::

        held = dead_constants(model, masks, images)
        for name, keep in held.items():             # now, and after every optimizer step
            model.get_parameter(name).data.mul_(keep)

    Args:
        model: the network; it runs in eval mode.
        masks: ``{layer: 0/1 or boolean, shaped as its weight}``; layers without a mask are wholly alive.
        images: ``(N, C, H, W)`` on the model's device; only shape and dtype matter.

    Returns:
        ``{parameter name: (channels,) boolean}``, False where the parameter must be 0; only parameters with a False.
    """
    modules = dict(model.named_modules())
    present = {modules[name]: mask != 0 for name, mask in masks.items()}
    if not any((~links(module, mask).any(2)).any() for module, mask in present.items()):
        return {}

    def connections(module: nn.Module) -> Tensor:
        if isinstance(module, _BatchNorm):
            return torch.ones(module.num_features, dtype=torch.bool)
        weight: Any = module.weight  # may be computed from others
        return links(module, present.get(module, torch.ones_like(weight, dtype=torch.bool)))

    batch = images[:SAMPLES].repeat(math.ceil(SAMPLES / len(images[:SAMPLES])), *[1] * (images.dim() - 1))
    with modes_kept(model):
        model.eval()
        found = find_constant_channels(model, lambda: model(torch.rand_like(batch)), connections, zero_constants=True)
    held: dict[str, Tensor] = {}
    for name, module in modules.items():
        if module is found.last:
            continue
        for target, silent in found.constants_of(module).items():
            if silent.any() and module._parameters.get(target) is not None:
                held[f"{name}.{target}"] = ~silent
    return held


@torch.no_grad()
def find_constant_channels(
    model: nn.Module,
    forward: Callable[[], Any],
    connections: Callable[[nn.Module], Tensor],
    *,
    zero_constants: bool = False,
) -> ConstantChannels:
    """Channels that are constant, and those that are 0, whatever the model's input.

    Only convolutions, linear layers and BatchNorm are hooked; whatever is between them runs as it is.

    Args:
        model: in eval mode.
        forward: runs it on a batch of random inputs, `SAMPLES` or more.
        connections: of a convolution or linear layer, its `links`; of BatchNorm, ``(channels,)``, whether its weight
            is not 0.
        zero_constants: treat biases of dead filters, and weight and bias of BatchNorm on constant channels, as 0.
    """
    found = ConstantChannels()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    draw = partial(_noise, torch.Generator(device).manual_seed(0))

    def note(where: dict[nn.Module, Tensor], module: nn.Module, channels: Tensor) -> None:
        where[module] = where[module] & channels if module in where else channels

    def replaced(output: Tensor, dimension: int, live: Tensor, zero: Tensor) -> Tensor:
        shape = (-1, *[1] * (-1 - dimension))
        if zero_constants:
            output = output.masked_fill(zero.view(shape), 0)
        return torch.where(live.view(shape), draw(output), output[:1])

    def weighted(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        dimension = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)  # type: ignore[arg-type]
        zero, constant = _fixed(x, dimension)
        read = connections(module).to(x.device)

        def reached_by(channels: Tensor) -> Tensor:
            return (read & channels.view(read.shape[0], 1, -1)).any(2).flatten()

        live, dead = reached_by(~constant), ~reached_by(~zero)
        note(found.zero, module, zero)
        note(found.constant, module, constant)
        note(found.dead, module, dead)
        note(found.still, module, ~live)
        found.last = module
        return replaced(output, dimension, live, dead)

    def normalised(module: _BatchNorm, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        dimension = 1 - x.dim()
        constant = _fixed(x, dimension)[1]
        note(found.constant, module, constant)
        return replaced(output, dimension, ~constant & connections(module).to(x.device), constant)

    with ExitStack() as hooks:
        for module in model.modules():
            if is_weighted(module):
                hooks.enter_context(module.register_forward_hook(weighted, with_kwargs=True))
            elif isinstance(module, _BatchNorm):
                hooks.enter_context(module.register_forward_hook(normalised, with_kwargs=True))
        for _ in range(_ROUNDS):
            forward()
    return found


def _noise(generator: torch.Generator, like: Tensor) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype).mul_(_SPREAD)
    if len(drawn) > 1:  # one sample of either sign throughout: ReLU must not hide a channel
        drawn[0] = drawn[0].abs()
        drawn[1] = -drawn[1].abs()
    return drawn


def _fixed(x: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """Which channels are 0, and which are the same in every sample."""
    largest = x.transpose(dimension, 0).flatten(1).abs().amax(1)
    spread = (x - x[:1]).transpose(dimension, 0).flatten(1).abs().amax(1)
    # Pooling rounds; noise differs by far more. NaN is not constant; in a batch of one, only 0 is.
    constant = spread <= torch.finfo(x.dtype).eps ** 0.5 * largest
    zero = largest == 0
    return zero, constant if len(x) > 1 else zero
