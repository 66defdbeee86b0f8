"""Masks in NNI's format: checked against a model, and multiplied into its weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["bake", "check_masks"]

Masks = Mapping[str, Mapping[str, Tensor | None]]


def check_masks(model: nn.Module, masks: Any) -> dict[str, dict[str, Tensor]]:
    """The masks, without those that are None, once they are known to be of this model.

    Args:
        model: whose parameters they are for.
        masks: ``{module name: {parameter name: 0/1 tensor shaped as the parameter}}``.

    Raises:
        ValueError: a name, a shape or a value does not fit.
    """
    if not isinstance(masks, Mapping) or not all(isinstance(targets, Mapping) for targets in masks.values()):
        raise InputError("masks: give NNI's format, {module name: {'weight': 0/1 tensor}}, as compress() returns it")
    modules = dict(model.named_modules())
    checked: dict[str, dict[str, Tensor]] = {}
    for name, targets in masks.items():
        if name not in modules:
            close = difflib.get_close_matches(str(name), modules, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else "; are they another model's?"
            raise InputError(f"masks: the model has no module {name!r}{hint}")
        for target, mask in targets.items():
            if mask is None:
                continue
            where = f"masks: {name}.{target}"
            parameter = modules[name]._parameters.get(target)
            if parameter is None:
                if isinstance(getattr(modules[name], target, None), Tensor):
                    raise InputError(
                        f"{where} is computed from other parameters (a parametrization, weight_norm or another "
                        "pruner's hook); remove that first"
                    )
                raise InputError(f"{where} is no parameter of the model; give masks of weights and biases only")
            if not isinstance(mask, Tensor) or mask.shape != parameter.shape:
                what = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
                raise InputError(f"{where} is {what}, and the parameter is {tuple(parameter.shape)}")
            if not ((mask == 0) | (mask == 1)).all():
                raise InputError(f"{where} has values other than 0 and 1; give 0 where the parameter is pruned, else 1")
            checked.setdefault(name, {})[target] = mask.detach()
    return checked


@torch.no_grad()
def bake(model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Set the parameters of ``model`` to 0 where ``masks`` are 0."""
    for name, targets in masks.items():
        for target, mask in targets.items():
            parameter = model.get_submodule(name).get_parameter(target)
            parameter.masked_fill_((mask == 0).to(parameter.device), 0)
