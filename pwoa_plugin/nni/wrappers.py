"""NNI's wrappers: each owns a copy of its module's parameters. Here these copies are kept right.

NNI leaves the masked weights as they are and multiplies the mask in at each forward; unwrapped, they are back. Here
masks are in the weights themselves, so that all who read them agree.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from nni.compression.base.compressor import Compressor
from nni.compression.base.target_space import PruningTargetSpace, TargetType
from nni.compression.base.wrapper import ModuleWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from ..method.distillation import frozen_copy

__all__ = [
    "Baking",
    "bake",
    "hook",
    "is_on",
    "live_parameter",
    "masked_copy",
    "read_parameters",
    "refuse_taken_over",
    "release",
    "settle",
]

_logger = logging.getLogger(__name__)

_NOT_ZEROS = ("add", "bypass")  # apply methods under which a mask of 0 does not make a zero


def is_on(wrapper: ModuleWrapper) -> bool:
    """Whether the wrapper is in its module's place now, whichever compressor put it there."""
    return getattr(wrapper.module, "_nni_wrapper", None) is wrapper


def refuse_taken_over(is_wrapped: bool, wrappers: Iterable[ModuleWrapper]) -> None:
    """Whether a compressor may wrap the model and train it.

    Args:
        is_wrapped: by this very compressor.
        wrappers: the compressor's.

    Raises:
        ValueError: a later compressor has put them on.
    """
    if not is_wrapped and any(is_on(wrapper) for wrapper in wrappers):
        raise InputError("compress: a later compressor wraps the model; call its compress() or unwrap_model()")


def live_parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter that is trained: the wrapper's own, where the module is wrapped."""
    owner, _, target = name.rpartition(".")
    module = model.get_submodule(owner)
    wrapper = getattr(module, "_nni_wrapper", None)
    own: nn.Parameter | None = wrapper._parameters.get(target) if isinstance(wrapper, ModuleWrapper) else None
    return module.get_parameter(target) if own is None else own


def _masked(wrappers: Iterable[ModuleWrapper]) -> Iterator[tuple[ModuleWrapper, str, PruningTargetSpace]]:
    for wrapper in wrappers:
        for target, space in wrapper.pruning_target_spaces.items():
            makes_zeros = space.type is TargetType.PARAMETER and space.apply_method not in _NOT_ZEROS
            if makes_zeros and space.target is not None and space.mask is not None:
                yield wrapper, target, space


@torch.no_grad()
def bake(wrappers: Iterable[ModuleWrapper]) -> None:
    """Set the wrappers' own parameters to 0 where their masks are."""
    for _, _, space in _masked(wrappers):
        space.target.masked_fill_(space.mask == 0, 0)


def masked_copy(model: nn.Module, wrappers: Mapping[str, ModuleWrapper]) -> nn.Module:
    """A frozen copy of an unwrapped model, as it answers when ``wrappers`` are on: with their masks."""
    frozen = frozen_copy(model)
    for wrapper, target, space in _masked(wrappers.values()):
        parameter = frozen.get_submodule(wrapper.name).get_parameter(target)
        parameter.masked_fill_(space.mask.to(parameter.device) == 0, 0)
    return frozen


@torch.no_grad()
def read_parameters(wrappers: Iterable[ModuleWrapper]) -> None:
    """Bring what an unwrapped model's parameters hold now into the wrappers' own."""
    for wrapper in wrappers:
        spaces = {**wrapper.pruning_target_spaces, **wrapper.quantization_target_spaces}
        for target, space in spaces.items():
            current = wrapper.module._parameters.get(target)
            if space.type is TargetType.PARAMETER and current is not None:
                space.target.copy_(current)


def _release_in_eval(module: nn.Module, *_: Any) -> None:
    if not module.training:  # in training a penalty of the user's may need the graph
        release(module)


def release(module: nn.Module) -> None:
    """Let go of the last forward's graph, which NNI leaves in a wrapped module: with it no deepcopy works."""
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.grad_fn is not None:
            module._buffers[name] = buffer.detach()


def settle(wrappers: Iterable[ModuleWrapper]) -> None:
    """Have wrapped modules hold their wrappers' own parameters, as they are now, masked.

    NNI leaves there what the last forward used: an optimizer step older, without masks made since. A quantized
    parameter stays as it was rounded.
    """
    for wrapper in wrappers:
        if not is_on(wrapper):
            continue
        release(wrapper.module)
        for target, space in wrapper.pruning_target_spaces.items():
            is_plain = space.type is TargetType.PARAMETER and space.apply_method not in _NOT_ZEROS
            if is_plain and space.target is not None and target not in wrapper.quantization_target_spaces:
                wrapper.module._buffers[target] = space.target.detach().clone()


def hook(wrappers: Iterable[ModuleWrapper]) -> list[RemovableHandle]:
    """Make wrapped modules behave as plain ones do, in two things.

    ``load_state_dict`` of a plain checkpoint reaches the wrapped weights; NNI fills buffers, which nobody reads. And a
    wrapped model can be copied after a forward in eval mode.

    Returns:
        Handles, to remove when the wrappers go.
    """
    modules = [wrapper.module for wrapper in wrappers]
    loading = [module.register_load_state_dict_pre_hook(_into_wrapper) for module in modules]
    return loading + [module.register_forward_hook(_release_in_eval) for module in modules]


def _into_wrapper(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    wrapper = getattr(module, "_nni_wrapper", None)
    if not isinstance(wrapper, ModuleWrapper):
        return
    for target in wrapper._parameters:
        plain, wrapped = f"{prefix}{target}", f"{prefix}_nni_wrapper.{target}"
        if plain in state_dict and wrapped not in state_dict:
            value: Tensor = state_dict[plain]
            mask = getattr(wrapper, f"{target}_mask", None)
            if mask is not None:
                value = value.masked_fill(mask.to(value.device) == 0, 0)
            state_dict[plain] = state_dict[wrapped] = value


class Baking(Compressor):
    """Wrapping and unwrapping with the masks in the weights themselves; a base of our compressors, before NNI's."""

    _hooks: list[RemovableHandle]
    _wrapped_here = False

    @property
    def _is_wrapped(self) -> bool:
        """NNI's flag; False, too, where another of the fused compressors has unwrapped the model since."""
        return self._wrapped_here and all(is_on(wrapper) for wrapper in self._module_wrappers.values())

    @_is_wrapped.setter
    def _is_wrapped(self, value: bool) -> None:
        self._wrapped_here = value

    def _bake(self) -> None:
        """Set the weights to 0 where masks are."""
        bake(self._module_wrappers.values())

    def _wrappers(self) -> dict[str, ModuleWrapper]:
        """All wrappers in the model's order, those of compressors that were fused later too."""
        found = {
            name: getattr(module, "_nni_wrapper", None) or self._module_wrappers.get(name)
            for name, module in self.bound_model.named_modules()
        }
        return {name: wrapper for name, wrapper in found.items() if wrapper is not None}

    def _tell_unmasked(self) -> None:
        """After a fused training: of layers that other compressors should have pruned, and have not."""
        unmasked = [
            name
            for name, wrapper in self._wrappers().items()
            for target, space in wrapper.pruning_target_spaces.items()
            if target not in self._target_spaces.get(name, ())
            and space.sparse_ratio
            and space.mask is not None
            and bool((space.mask == 1).all())
        ]
        if unmasked:
            _logger.warning(
                "no mask was made for %s: a pruner that makes one at once goes inside AGPPruner", ", ".join(unmasked)
            )

    def wrap_model(self) -> None:
        """Wrap the layers as NNI does; their wrappers start from the model's current weights, masks baked in."""
        if self._is_wrapped:
            return
        read_parameters(self._module_wrappers.values())
        self._bake()
        super().wrap_model()
        self._unhook()  # of a wrapping that another compressor has ended
        self._hooks = hook(self._module_wrappers.values())

    def unwrap_model(self) -> None:
        """Unwrap the layers, masks baked into their weights; without effect where they are not wrapped."""
        if not self._is_wrapped:
            if any(is_on(wrapper) for wrapper in self._module_wrappers.values()):
                _logger.warning("the model is wrapped by a later compressor; call that one's unwrap_model()")
            return
        self._unhook()
        self._bake()
        super().unwrap_model()

    def _unhook(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
