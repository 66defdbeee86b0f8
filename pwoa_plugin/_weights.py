"""Which weights count: those of convolutions and linear layers. Sparsity, sizes and comparisons all go by this."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ._wrapped import unwrapped

#: An attribute of a network that lost channels; its copies have it, too. Plain lists, for pickles.
REMOVALS = "_pwoa_removals"


def is_weighted(module: nn.Module) -> bool:
    """True for convolutions and linear layers (transposed ones and subclasses too) that hold a weight matrix."""
    return isinstance(module, (_ConvNd, nn.Linear)) and getattr(module, "weight", None) is not None


def cure_of_computed(module: nn.Module, target: str = "weight") -> str:
    """What computes a layer's tensor from others, and how to keep the result; empty if it is a parameter, or none."""
    if not isinstance(getattr(module, target, None), Tensor) or module._parameters.get(target) is not None:
        return ""
    which = "" if target == "weight" else f", {target!r}"
    if parametrize.is_parametrized(module, target):
        remove = "torch.nn.utils.parametrize.remove_parametrizations"
        return f"(a parametrization); call {remove}(layer, {target!r})"
    if f"{target}_mask" in module._buffers and f"{target}_orig" in module._parameters:
        return f"(torch.nn.utils.prune); call torch.nn.utils.prune.remove(layer, {target!r})"
    if f"{target}_g" in module._parameters:
        return f"(weight_norm); call torch.nn.utils.remove_weight_norm(layer{which})"
    if f"{target}_u" in module._buffers:
        return f"(spectral_norm); call torch.nn.utils.remove_spectral_norm(layer{which})"
    if hasattr(module, "_nni_wrapper"):
        return "(NNI's wrapper); call the compressor's unwrap_model()"
    return "(a hook); remove that first"


def same_memory(tensor: Tensor) -> object:
    """A key that is equal for two tensors in the same memory, as tied weights are."""
    place = tensor.data_ptr()
    return (place, tuple(tensor.shape), tensor.stride(), tensor.dtype) if place else id(tensor)


def counted_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers by layer, detached; tied ones once, by their first layer. Names are
    those inside wrappers.

    A weight that is computed from others (a parametrization) is counted as it comes out.
    """
    stored = {same_memory(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[str, Tensor] = {}
    seen: set[object] = set()
    for name, module in unwrapped(model).named_modules():
        if is_weighted(module):
            weight: Tensor = module.weight.detach()
            key = same_memory(weight)
            # The memory of a computed weight is free again at once, and may be the next one's.
            if key not in stored or key not in seen:
                found[name] = weight
            seen.add(key)
    return found
