"""The constants of dead filters: a filter without weights still emits its bias, and the BatchNorm behind it beta.

Which channels carry such a constant is read from forwards in which every layer's live channels are overwritten with
noise: what is the same in all samples then, is so for every image. So concatenations, residual sums, depthwise layers
and activations need no graph and no table of operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .._modes import modes_kept
from .._weights import is_weighted
from ..errors import InputError

#: Samples that `find_constant_channels` wants in a batch, so that no activation hides all noise of a channel.
SAMPLES = 8
_ROUNDS = 2
_SPREAD = 3.0  # of the noise: beyond the saturation of ReLU6 and hard swish, and within


@dataclass
class ConstantChannels:
    """What reaches and leaves each layer, whatever the model's input.

    Attributes:
        zero: ``{layer: (in,) boolean}``: input channels that are 0; convolutions and linear layers.
        constant: ``{layer: (in,) boolean}``: input channels that no image changes, 0 or not; BatchNorm too.
        dead: ``{layer: (out,) boolean}``: filters that see only 0 and emit their bias; convolutions and linear layers.
        still: ``{layer: (out,) boolean}``: filters whose output no image changes; these and the dead ones.
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
    """Which filters of a convolution or linear layer read which of its input channels.

    Args:
        module: the layer.
        present: boolean, shaped as its weight.

    Returns:
        ``(groups, out / groups, in / groups)``, boolean.
    """
    groups = module.groups if isinstance(module, _ConvNd) else 1
    each = present.reshape(groups, present.shape[0] // groups, present.shape[1], -1).any(3)
    return each.transpose(1, 2) if isinstance(module, _ConvTransposeNd) else each


def dead_constants(model: nn.Module, masks: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """The constants to zero, and to hold at zero while training, so that filters dead by ``masks`` emit nothing.

    These are the biases of dead filters, weight and bias of every BatchNorm channel that sees nothing else than dead
    filters (directly, through a concatenation, a sum or a pooling), and so on through layers that read such channels
    only: behind a dead filter a depthwise filter is dead, too. The layer that runs last keeps its bias: nobody reads
    it but the user. The model is not changed::

        held = dead_constants(model, masks, images)
        for name, keep in held.items():             # now, and after every optimizer step
            model.get_parameter(name).data.mul_(keep)

    Args:
        model: the network; run in eval mode, it comes back in the mode it had.
        masks: ``{layer: 0/1 or boolean, shaped as its weight}``; layers without a mask count as wholly alive.
        images: ``(N, C, H, W)`` on the model's device; their values do not matter.

    Returns:
        ``{parameter name: (channels,) boolean}``, False where the parameter is to be 0; only parameters with one.

    Raises:
        ValueError: a mask is for no convolution or linear layer of the model, or not of its weight's shape.
    """
    modules = dict(model.named_modules())
    for name, mask in masks.items():
        if not is_weighted(modules.get(name, nn.Identity())):
            raise InputError(f"masks: the model has no convolution or linear layer {name!r}")
        shape = modules[name].weight.shape
        if mask.shape != shape:
            raise InputError(f"masks: {name} is {tuple(mask.shape)}, and the weight is {tuple(shape)}")
    present = {modules[name]: mask != 0 for name, mask in masks.items()}
    if not any((~links(module, mask).any(2)).any() for module, mask in present.items()):
        return {}

    def connections(module: nn.Module) -> Tensor:
        weight = getattr(module, "weight", None)
        if isinstance(module, _BatchNorm):
            return torch.ones(module.num_features, dtype=torch.bool)
        assert isinstance(weight, Tensor)
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

    Convolutions, linear layers and BatchNorm are what this knows; everything between them computes what it computes.

    Args:
        model: in eval mode.
        forward: runs it on a batch of random inputs, `SAMPLES` or more.
        connections: of a convolution or linear layer, its `links`; of BatchNorm, ``(channels,)``, whether its weight
            is not 0.
        zero_constants: go on as if biases of dead filters, and weight and bias of BatchNorm on constant channels,
            were 0.
    """
    found = ConstantChannels()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    random = torch.Generator(device).manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=random, device=like.device, dtype=like.dtype).mul_(_SPREAD)
        if len(drawn) > 1:  # one sample of either sign throughout: ReLU must not hide a channel
            drawn[0] = drawn[0].abs()
            drawn[1] = -drawn[1].abs()
        return drawn

    def note(where: dict[nn.Module, Tensor], module: nn.Module, channels: Tensor) -> None:
        where[module] = where[module] & channels if module in where else channels

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
        shape = (-1, *[1] * (-1 - dimension))
        if zero_constants:
            output = output.masked_fill(dead.view(shape), 0)
        return torch.where(live.view(shape), noise(output), output[:1])

    def normalised(module: _BatchNorm, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        dimension = 1 - x.dim()
        constant = _fixed(x, dimension)[1]
        note(found.constant, module, constant)
        shape = (-1, *[1] * (-1 - dimension))
        if zero_constants:
            output = output.masked_fill(constant.view(shape), 0)
        live = ~constant & connections(module).to(constant.device)
        return torch.where(live.view(shape), noise(output), output[:1])

    handles = []
    try:
        for module in model.modules():
            if is_weighted(module):
                handles.append(module.register_forward_hook(weighted, with_kwargs=True))
            elif isinstance(module, _BatchNorm):
                handles.append(module.register_forward_hook(normalised, with_kwargs=True))
        for _ in range(_ROUNDS):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _fixed(x: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """Which channels are 0, and which are the same in every sample."""
    largest = x.transpose(dimension, 0).flatten(1).abs().amax(1)
    spread = (x - x[:1]).transpose(dimension, 0).flatten(1).abs().amax(1)
    # Pooling rounds; noise differs by far more. NaN is no constant; nor is anything in a batch of one.
    constant = spread <= torch.finfo(x.dtype).eps ** 0.5 * largest
    zero = largest == 0
    return zero, constant if len(x) > 1 else zero
