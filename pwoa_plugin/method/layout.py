"""The memory layout of weights: channels last is 1.5 times as fast on the CPU, where it is safe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# oneDNN's block of input channels: 8 with AVX2, 16 with AVX-512.
_BLOCK = 16


def channels_last_is_safe(model: nn.Module) -> bool:
    """Whether a network can be trained with weights or images channels last on the CPU.

    It cannot with a 1x1 convolution of stride 2 or more that reads fewer than 16 channels: oneDNN's gradient of the
    weights writes beyond its workspace, which gives wrong gradients or a crash
    (github.com/uxlfoundation/oneDNN/issues/6035; torch 2.14 has it).
    """
    return not any(_breaks(module) for module in model.modules() if isinstance(module, _ConvNd))


def _breaks(layer: _ConvNd) -> bool:
    pointwise = all(size == 1 for size in layer.kernel_size)
    strided = any(stride > 1 for stride in layer.stride)
    return pointwise and strided and layer.in_channels // layer.groups < _BLOCK


def lay_out(model: nn.Module, images: Tensor, *, safe: bool = True) -> torch.memory_format:
    """Put a network's convolutions channels last, or contiguous if its forward fails with that; returns the layout.

    Args:
        model: on the CPU, in eval mode.
        images: ``(N, C, H, W)`` for a forward; two are enough.
        safe: False: contiguous in any case.
    """
    if safe:
        _set_layout(model, torch.channels_last)
        try:
            with torch.no_grad():
                model(images.clone())
        except Exception:  # if the images do not fit, `find_classes` says so
            pass
        else:
            return torch.channels_last
    _set_layout(model, torch.contiguous_format)
    return torch.contiguous_format


def lay_out_both(model: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Lay out both networks alike, so that their hidden layers can be compared without a copy."""
    _set_layout(model, lay_out(teacher, images, safe=channels_last_is_safe(model)))


def _set_layout(model: nn.Module, layout: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


@contextmanager
def layout_kept(model: nn.Module) -> Iterator[None]:
    """Restore the memory layout of weights afterwards; on the CPU a run changes it to the fastest."""
    strides = {parameter: parameter.stride() for parameter in model.parameters() if parameter.dim() == 4}
    try:
        yield
    finally:
        for parameter in (parameter for parameter in model.parameters() if parameter.dim() == 4):
            value, stride = parameter.data, strides.get(parameter)
            if stride is None:  # new
                parameter.data = value.contiguous()
            elif value.stride() != stride:
                as_before = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device)
                parameter.data = as_before.copy_(value)
