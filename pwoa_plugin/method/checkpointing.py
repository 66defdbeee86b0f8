"""Activation checkpointing: a block's activations are computed again in the backward pass, and not kept until then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .._weights import is_weighted
from .._wrapped import unwrapped
from ..errors import InputError

_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The innermost members of ``Sequential``, ``ModuleList`` or ``ModuleDict`` that hold two weighted layers or more.

    Such are the residual blocks of ResNets and the layers of transformers.

    Raises:
        InputError: there is none.
    """
    members = [
        child for holder in unwrapped(model).modules() if isinstance(holder, _HOLDERS) for child in holder.children()
    ]
    wide = [member for member in dict.fromkeys(members) if sum(map(is_weighted, member.modules())) > 1]
    blocks = [block for block in wide if not any(part in wide for part in block.modules() if part is not block)]
    if not blocks:
        raise InputError(
            "checkpoint: the model has no blocks (members of a Sequential or ModuleList with two layers or more each); "
            "leave it out, and set accumulate to save memory"
        )
    return blocks


@contextlib.contextmanager
def checkpointed(blocks: list[nn.Module]) -> Iterator[None]:
    """While the context lasts, the blocks' forwards keep no activations; hooks on them and inside them still run."""
    patched = {block: vars(block).get("forward") for block in blocks}  # NNI and others may have set their own
    for block in blocks:
        block.forward = partial(_again, block, block.forward)
    try:
        yield
    finally:
        for block, before in patched.items():
            del block.forward
            if before is not None:
                block.forward = before


def _again(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    ran = False

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal ran
        # A forward that is repeated, once for each derivative, must not update BatchNorm's statistics again.
        with buffers_apart(block) if ran else contextlib.nullcontext():
            ran = True
            return forward(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)


@contextlib.contextmanager
def buffers_apart(block: nn.Module) -> Iterator[None]:
    """Have forwards in the body change copies of the buffers, which are dropped."""
    kept = [(module, dict(module._buffers)) for module in block.modules()]
    try:
        for module, buffers in kept:
            for name, buffer in buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
