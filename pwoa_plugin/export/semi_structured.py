"""2:4 weights as torch's semi-structured tensors, which sparse tensor cores multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._network import check_network
from .._text import one_line
from .._weights import cure_of_computed, is_weighted
from .._wrapped import unwrapped
from ..errors import InputError

_DTYPES = (torch.float16, torch.bfloat16, torch.int8)
_CAPABILITY = (8, 0)  # Ampere: the first GPUs with sparse tensor cores
_NOT_2_4 = "its weights are not 2:4"
_SHOWN = 3  # layers of each kind in the short form


@dataclass(frozen=True, repr=False)
class SemiStructured:
    """What `to_semi_structured` did.

    Attributes:
        converted: names of the layers that run on 2:4 kernels.
        dense: names of the other convolutions and linear layers, and why each stays dense.
    """

    converted: tuple[str, ...]
    dense: dict[str, str]

    def __repr__(self) -> str:
        total = len(self.converted) + len(self.dense)
        return f"{len(self.converted)} of {total} layers run on 2:4 kernels{_reasons('; dense: ', self.dense)}"


def _reasons(before: str, dense: dict[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reason in dense.items():
        by_reason.setdefault(reason, []).append(name)
    parts = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        parts.append(f"{', '.join(names[:_SHOWN])}{more} ({reason})")
    return before + "; ".join(parts) if parts else ""


def to_semi_structured(model: nn.Module, *, unfold: bool = False) -> SemiStructured:
    """Turn weights that are 2:4 into torch's semi-structured tensors, in place.

    The network can then answer and no longer be trained. torch's kernels multiply matrices: linear layers are
    converted, and convolutions of 1x1, which are products of matrices, too.

    Args:
        model: pruned with ``granularity="2:4"``, in float16 or bfloat16, on a GPU.
        unfold: convert other 2-D convolutions, too, as products with unfolded images; a convolution of 3x3 then needs 9
            times the memory of its input.

    Raises:
        ValueError: no layer is 2:4, the device has no 2:4 kernels, or no 2:4 layer can be converted; the model is
            unchanged.
    """
    check_network(model)
    network = unwrapped(model)
    layers = {name: module for name, module in network.named_modules() if is_weighted(module)}
    if not any(_is_2_4(module.weight) for module in layers.values()):
        raise InputError("to_semi_structured: no layer's weights are 2:4; prune with granularity='2:4'")
    _check_device(next(module.weight.device for module in layers.values() if _is_2_4(module.weight)))
    own_kernels = _with_kernels_of_their_own(network)
    why = {name: _why_dense(module, module in own_kernels, unfold) for name, module in layers.items()}
    dense = {name: reason for name, reason in why.items() if reason}
    chosen = {name: layers[name] for name in layers if name not in dense}
    if not chosen:
        raise InputError(f"to_semi_structured: no layer can be converted: {_reasons('', dense)}")
    made: dict[Tensor, nn.Parameter] = {}  # tied weights stay tied
    for name, module in chosen.items():
        if module.weight not in made:
            try:
                sparse = torch.sparse.to_sparse_semi_structured(_matrix(module.weight.detach()).contiguous())
            except (RuntimeError, NotImplementedError) as error:
                raise InputError(f"to_semi_structured: torch cannot convert {name} ({one_line(error)})") from error
            made[module.weight] = nn.Parameter(sparse, requires_grad=False)
    for module in chosen.values():
        module.weight = made[module.weight]
        if isinstance(module, nn.Conv2d):
            module.__class__ = _ProductConv2d
    return SemiStructured(tuple(chosen), dense)


def _is_2_4(weight: Tensor) -> bool:
    """Whether every 4 consecutive weights along the input dimension have at most 2 that are not 0."""
    if weight.dim() < 2 or not weight.numel() or weight.shape[1] % 4:
        return False
    fours = weight.detach().transpose(1, -1).reshape(-1, 4)
    return int((fours != 0).sum(1).max()) <= 2


def _matrix(weight: Tensor) -> Tensor:
    """The weight ``(out, in)``, or ``(out, kernel and in)``: 2:4 runs along the input channels, so they come last."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)


class _ProductConv2d(nn.Conv2d):
    """A convolution whose weight is `_matrix` of one, computed as a product with unfolded images."""

    def forward(self, input: Tensor) -> Tensor:
        vertical, horizontal = (0, 0) if isinstance(self.padding, str) else self.padding
        patches = F.pad(input.permute(0, 2, 3, 1), (0, 0, horizontal, horizontal, vertical, vertical))
        for dim, side, step in zip((1, 2), self.kernel_size, self.stride, strict=True):
            patches = patches.unfold(dim, side, step)
        n, height, width, channels = patches.shape[:4]
        rows = patches.permute(0, 1, 2, 4, 5, 3).reshape(n * height * width, math.prod(self.kernel_size) * channels)
        return F.linear(rows, self.weight, self.bias).view(n, height, width, -1).permute(0, 3, 1, 2)


def _with_kernels_of_their_own(network: nn.Module) -> set[nn.Module]:
    """Layers whose weights torch's fused attention and encoder read when they answer."""
    return {
        child
        for module in network.modules()
        if isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoderLayer))
        for child in module.children()
    }


def _why_dense(module: nn.Module, has_own_kernels: bool, unfold: bool) -> str:
    """Why a layer cannot be converted; empty if it can be."""
    weight: Any = module.weight  # a parametrized one is no parameter
    if not _is_2_4(weight):
        return _NOT_2_4
    if not isinstance(module, nn.Linear) and (reason := _why_no_product(module, unfold)):
        return reason
    if has_own_kernels:
        return "torch's fused attention reads its weight"
    if cure_of_computed(module):
        return "its weight is computed from others"
    if weight.dtype not in _DTYPES:
        return f"{str(weight.dtype)[6:]}; call model.bfloat16() or model.half() first"
    rows, columns = _multiples(weight.dtype)
    height, width = _matrix(weight).shape
    if height % rows or width % columns:
        return f"{height} x {width} is no multiple of {rows} x {columns}"
    return ""


def _why_no_product(module: nn.Module, unfold: bool) -> str:
    """Why a convolution is not computed as a product of matrices; empty if it can be."""
    if type(module) is not nn.Conv2d:
        return "torch has no 2:4 kernels for such layers"
    if module.groups > 1 or module.dilation != (1, 1) or module.padding_mode != "zeros" or module.padding == "same":
        return "its groups, dilation or padding are not supported"
    if module.kernel_size != (1, 1) and not unfold:
        return "torch has no 2:4 kernels for convolutions; unfold=True makes them products of matrices"
    return ""


def _multiples(dtype: torch.dtype) -> tuple[int, int]:
    """What torch's kernels need the sides of a weight to be multiples of."""
    kinds = torch.sparse.semi_structured
    cutlass = kinds.SparseSemiStructuredTensor._FORCE_CUTLASS
    kind = kinds.SparseSemiStructuredTensorCUTLASS if cutlass else kinds.SparseSemiStructuredTensorCUSPARSELT
    sides = kind._DTYPE_SHAPE_CONSTRAINTS[dtype]
    return sides.sparse_min_rows, sides.sparse_min_cols


def _check_device(device: torch.device) -> None:
    need = "2:4 kernels need an NVIDIA GPU of compute capability 8.0 or more"
    if device.type != "cuda":
        cure = "move the model there" if torch.cuda.is_available() else "this machine has no GPU for torch"
        raise InputError(f"to_semi_structured: the model is on {device}, and {need}; {cure}")
    found = torch.cuda.get_device_capability(device)
    if torch.version.hip or found < _CAPABILITY:
        raise InputError(f"to_semi_structured: {torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}; {need}")
