"""NNI's wrappers: each owns a copy of its module's parameters. Here these copies are kept right.

NNI leaves the masked weights as they are and multiplies the mask in at each forward; unwrapped, they are back. Here the
weights themselves are masked, so that all who read them agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from nni.compression.base.target_space import PruningTargetSpace, TargetType
from nni.compression.base.wrapper import ModuleWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..masks import bake
from ..method.distillation import frozen_copy

_NOT_ZEROS = ("add", "bypass")  # apply methods under which a mask of 0 does not make a zero


def is_on(wrapper: ModuleWrapper) -> bool:
    """Whether the wrapper is in its module's place now, whichever compressor put it there."""
    return getattr(wrapper.module, "_nni_wrapper", None) is wrapper


def live_parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter that is trained: the wrapper's own if the module is wrapped."""
    owner, _, target = name.rpartition(".")
    module = model.get_submodule(owner)
    wrapper = getattr(module, "_nni_wrapper", None)
    own: nn.Parameter | None = None if wrapper is None else wrapper._parameters.get(target)
    return module.get_parameter(target) if own is None else own


def _prunable(wrapper: ModuleWrapper) -> Iterator[tuple[str, PruningTargetSpace]]:
    """Those of a wrapper's parameters in which a mask of 0 makes a zero."""
    for target, space in wrapper.pruning_target_spaces.items():
        makes_zeros = space.type is TargetType.PARAMETER and space.apply_method not in _NOT_ZEROS
        if makes_zeros and space.target is not None:
            yield target, space


@torch.no_grad()
def bake_masks(wrappers: Iterable[ModuleWrapper]) -> None:
    """Set the wrappers' own parameters to 0 where their masks are 0."""
    for wrapper in wrappers:
        for _, space in _prunable(wrapper):
            if space.mask is not None:
                space.target.masked_fill_(space.mask == 0, 0)


def masked_copy(model: nn.Module, wrappers: Mapping[str, ModuleWrapper]) -> nn.Module:
    """A frozen copy of an unwrapped model with the masks of ``wrappers``: it answers as the wrapped model does."""
    frozen = frozen_copy(model)
    for wrapper in wrappers.values():
        bake(frozen, {wrapper.name: {t: space.mask for t, space in _prunable(wrapper) if space.mask is not None}})
    return frozen


@torch.no_grad()
def read_parameters(wrappers: Iterable[ModuleWrapper]) -> None:
    """Copy the parameters of the unwrapped modules into the wrappers' own."""
    for wrapper in wrappers:
        spaces = {**wrapper.pruning_target_spaces, **wrapper.quantization_target_spaces}
        for target, space in spaces.items():
            current = wrapper.module._parameters.get(target)
            if space.type is TargetType.PARAMETER and current is not None:
                space.target.data = current.detach().clone()  # on the device where the model is now


def release(module: nn.Module) -> None:
    """Detach the last forward's graph, which NNI leaves in a wrapped module: no deepcopy works with it."""
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.grad_fn is not None:
            module._buffers[name] = buffer.detach()


def sync_buffers(wrappers: Iterable[ModuleWrapper]) -> None:
    """Have wrapped modules hold their wrappers' own parameters, as they are now, masked.

    NNI leaves there what the last forward used: an optimizer step older, without masks made since. A quantized
    parameter stays as it was rounded.
    """
    for wrapper in filter(is_on, wrappers):
        release(wrapper.module)
        for target, space in _prunable(wrapper):
            if target not in wrapper.quantization_target_spaces:
                wrapper.module._buffers[target] = space.target.detach().clone()


def hook(wrappers: Iterable[ModuleWrapper]) -> list[RemovableHandle]:
    """Make two things work on wrapped modules that NNI breaks; remove the hooks when the wrappers go.

    ``load_state_dict`` of a plain checkpoint reaches the wrapped weights; NNI fills buffers, which nobody reads. And a
    wrapped model can be copied after a forward in eval mode.
    """
    modules = [wrapper.module for wrapper in wrappers]
    loading = [module.register_load_state_dict_pre_hook(_into_wrapper) for module in modules]
    return loading + [module.register_forward_hook(_release_in_eval) for module in modules]


def _release_in_eval(module: nn.Module, *_: Any) -> None:
    if not module.training:  # in training, a user's penalty may need the graph
        release(module)


def _into_wrapper(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    wrapper = getattr(module, "_nni_wrapper", None)
    if wrapper is None:
        return
    for target in wrapper._parameters:
        plain, wrapped = f"{prefix}{target}", f"{prefix}_nni_wrapper.{target}"
        if plain in state_dict and wrapped not in state_dict:
            value: Tensor = state_dict[plain]
            mask = getattr(wrapper, f"{target}_mask", None)
            if mask is not None:
                value = value.masked_fill(mask.to(value.device) == 0, 0)
            state_dict[plain] = state_dict[wrapped] = value
