"""Wrappers around a network: layer and mask names are always those inside."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ._text import named
from .errors import InputError


class NetworkWrapper(nn.Module):
    """A wrapper around a network, its ``module``, as in ``DistributedDataParallel``; layer names are those inside."""

    module: nn.Module


_HOLDERS = (DataParallel, DistributedDataParallel, AveragedModel)
_PREFIXES = ("module.", "_orig_mod.")


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that went into ``torch.compile``, which shares its parameters; another module as it is."""
    inside: Any = model._modules.get("_orig_mod") if isinstance(getattr(model, "_modules", None), dict) else None
    return model if inside is None else inside


def unwrapped(model: nn.Module, *, adapters: bool = True) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel``, ``torch.compile``, and, with
    ``adapters``, `NetworkWrapper`.
    """
    holders = (*_HOLDERS, NetworkWrapper) if adapters else _HOLDERS
    while True:
        inside = model.module if isinstance(model, holders) else uncompiled(model)
        if inside is model:
            return model
        model = inside


def network_or_ddp(model: nn.Module) -> nn.Module:
    """The network inside, or the ``DistributedDataParallel`` of several processes around it, whose forward averages
    gradients.
    """
    outer = uncompiled(model)
    several = isinstance(outer, DistributedDataParallel) and outer.process_group.size() > 1
    return outer if several else unwrapped(model)


def hookable(model: nn.Module) -> nn.Module:
    """The model; where it is compiled, the network inside its wrappers, for ``torch.compile`` ignores later hooks."""
    return network_or_ddp(model) if has_compiled(model) else model


def has_compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, is what ``torch.compile`` made."""
    return any(hasattr(module, "_orig_mod") for module in model.modules())


def name_inside(name: str, known: Any) -> str:
    """A module's name without the wrappers' prefixes, where the network has no module of the name as it is."""
    short = name
    while short not in known and short.startswith(_PREFIXES):
        short = short.split(".", 1)[1]
    return short if short in known else name


def forget_graphs(model: nn.Module) -> None:
    """Detach what hooks compute at each forward (``weight_norm``, ``prune``): tensors with a graph cannot be copied."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(module)[name] = value.detach()


def deep_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """`copy.deepcopy` of a network, also if hooks compute its weights; InputError that names what has no copy."""
    kept = [(module, dict(vars(module))) for module in model.modules()]
    try:
        forget_graphs(model)
        return copy.deepcopy(model, memo)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, (InputError, torch.OutOfMemoryError)):
            raise
        raise InputError(
            f"model{_without_copy(model)} cannot be copied ({named(error)}); keep it outside the network, or write a "
            "__deepcopy__"
        ) from error
    finally:
        for module, attributes in kept:
            vars(module).update(attributes)


def _without_copy(model: nn.Module) -> str:
    """Where a network holds something that `copy.deepcopy` refuses, as ``: name``."""
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in ("_modules", "_parameters")}
        for key, value in (own | module._parameters).items():
            try:
                copy.deepcopy(value)
            except Exception:
                return f": {name and name + '.'}{key}"
    return ""
