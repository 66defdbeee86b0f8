"""Which weights count: those of convolutions and linear layers. Sparsity, sizes and comparisons all go by this."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def is_weighted(module: nn.Module) -> bool:
    """True for convolutions and linear layers (transposed ones and subclasses too) that hold a weight matrix."""
    return isinstance(module, (_ConvNd, nn.Linear)) and getattr(module, "weight", None) is not None


def same_memory(tensor: Tensor) -> object:
    """A key that is equal for two tensors in the same memory, as tied weights are."""
    place = tensor.data_ptr()
    return (place, tuple(tensor.shape), tensor.stride(), tensor.dtype) if place else id(tensor)


def counted_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers by layer, detached; tied ones once, by their first layer.

    A weight that is computed from others (a parametrization) is counted as it comes out.
    """
    stored = {same_memory(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[str, Tensor] = {}
    seen: set[object] = set()
    for name, module in model.named_modules():
        if is_weighted(module):
            weight: Tensor = module.weight.detach()
            key = same_memory(weight)
            # The memory of a computed weight is free again at once, and may be the next one's.
            if key not in stored or key not in seen:
                found[name] = weight
            seen.add(key)
    return found
