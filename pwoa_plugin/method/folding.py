"""BatchNorm of a frozen network, folded into the convolution before it: the same answers in fewer passes."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .hidden import unwrapped
from .logits import logits_of

__all__ = ["fold_batch_norms"]

_logger = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(model: nn.Module, images: Tensor, *, keep: Collection[str] = ()) -> nn.Module:
    """A network with the same answers in which an identity stands for each BatchNorm that could be folded.

    Modules keep their names, and the forward is still the model's own, so that hooks find what they did before, but for
    the output of a convolution whose BatchNorm is gone: it is the BatchNorm's. What was not folded is shared
    with the model, not copied. A BatchNorm is left alone that does not follow a convolution directly and alone; and all
    are where `torch.fx` cannot trace the forward, where there are hooks, or where the answers to ``images``
    would differ.

    Args:
        model: frozen, in eval mode.
        images: ``(N, C, H, W)``, one or more, on the model's device.
        keep: names of modules (see `unwrapped`) whose input is to stay what it is.

    Returns:
        A copy, or the model itself where there is nothing to fold.
    """
    if any(_has_hooks(module) for module in model.modules()):
        return model
    tensors = [*model.parameters(), *model.buffers()]
    try:
        pairs = list(_pairs(copy.deepcopy(model, memo=_shared(tensors)), keep))
    except Exception as error:  # the forward is the user's, and tracing may break it in any way
        _logger.debug("BatchNorms are not folded: the forward cannot be traced (%s)", error)
        return model
    if not pairs:
        return model
    folded = copy.deepcopy(model, memo=_shared(tensors))
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(cast(Any, folded.get_submodule(convolution)), cast(Any, folded.get_submodule(norm)))
        folded.set_submodule(convolution, fused.requires_grad_(False))
        folded.set_submodule(norm, nn.Identity())
    with torch.no_grad():
        before, after = logits_of(model(images)), logits_of(folded(images))
    close = 1e-3 * before.abs().max().clamp_min(torch.finfo(before.dtype).tiny)
    if not (before - after).abs().max() <= close:  # a NaN is no agreement, either
        _logger.debug("BatchNorms are not folded: the answers would differ")
        return model
    return folded


def _shared(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """`copy.deepcopy`'s memo for a copy that has these very tensors."""
    return {id(tensor): tensor for tensor in tensors}


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _pairs(model: nn.Module, keep: Collection[str]) -> Iterator[tuple[str, str]]:
    """Names of a convolution and of the BatchNorm that alone takes its output."""
    graph = fx.Tracer().trace(model)
    modules, inside = dict(model.named_modules()), dict(unwrapped(model).named_modules())
    kept = {inside[name] for name in keep if name in inside}
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    read_directly = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(norm := modules[node.target], _BATCH_NORMS):
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution = modules[str(source.target)]
        once = calls[str(source.target)] == calls[str(node.target)] == 1
        shared = any(owners[id(parameter)] > 1 for parameter in convolution.parameters(recurse=False))
        read = {str(source.target), str(node.target)} & read_directly
        foldable = type(convolution) in _CONVOLUTIONS and norm.running_mean is not None and not norm.training
        if foldable and once and not shared and not read and norm not in kept:
            yield str(source.target), str(node.target)
