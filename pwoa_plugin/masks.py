"""Masks in a file, masks against a model, and masks in its weights.

A file is safetensors: a 0/1 tensor for each ``module.target``. Its header says, as JSON, which part of the name is the
module's and which the target's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._files import read_tensors, write_tensors
from ._logits import is_dense
from ._text import did_you_mean
from ._weights import cure_of_computed
from ._wrapped import name_inside, unwrapped
from .errors import InputError

#: ``{module: {target: 0/1 tensor of the target's shape}}``, NNI's form.
Masks = dict[str, dict[str, Tensor]]

_FORMAT, _VERSION = "pwoa-masks", "1"
_ACTIVATIONS = ("_input_", "_output_")  # NNI's names of targets that are no parameters


def _key(module: str, target: str) -> str:
    return f"{module}.{target}" if module else target


def save_masks(masks: Mapping[str, Mapping[str, Tensor | None]], path: str | os.PathLike[str]) -> None:
    """Write masks to a file; an existing file is replaced whole or not at all.

    Args:
        masks: ``{module: {target: tensor}}`` of zeros and ones, any dtype, as ``compress()`` or NNI's ``get_masks()``
            returns them. Targets whose mask is None are left out.
        path: of the file; missing folders are made.

    Raises:
        ValueError: there is no mask, or one has values other than 0 and 1; no file is written.
        OSError: the file cannot be written.
    """
    _check_form(masks)
    tensors: dict[str, Tensor] = {}
    pairs: list[tuple[str, str]] = []
    for module, targets in masks.items():
        for target, mask in targets.items():
            if mask is None:
                continue
            key = _key(module, target)
            _check_values(key, mask)
            if key in tensors:
                raise InputError(f"masks: two masks have the name {key}; rename a module")
            tensors[key] = mask != 0
            pairs.append((module, target))
    if not tensors:
        raise InputError("masks: there is none to save; call compress() first")
    header = {"format": _FORMAT, "version": _VERSION, "targets": json.dumps(pairs)}
    write_tensors(path, tensors, header)


def load_masks(path: str | os.PathLike[str]) -> Masks:
    """Read what `save_masks` wrote. No code in a file is ever run.

    Returns:
        ``{module: {target: mask}}``, float32 zeros and ones on the CPU, as NNI's. They are not yet checked against a
        model: see `check_masks`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not hold masks.
    """
    tensors, header = read_tensors(path, "file of masks")
    try:
        return _unpack(tensors, header)
    except InputError as error:
        raise InputError(
            f"{os.fspath(path)}: is no usable file of masks ({error}); make one with save_masks()"
        ) from None


def _unpack(tensors: dict[str, Tensor], header: dict[str, str]) -> Masks:
    if header.get("format") != _FORMAT:
        raise InputError("it is a safetensors file of something else")
    if header.get("version") != _VERSION:
        raise InputError(f"its version is {header.get('version')!r}, this release reads {_VERSION}")
    try:
        pairs = [(str(module), str(target)) for module, target in json.loads(header["targets"])]
    except (KeyError, ValueError, TypeError, RecursionError):
        raise InputError("its header lists no modules and targets") from None
    if sorted(_key(*pair) for pair in pairs) != sorted(tensors):
        raise InputError("its header does not name the masks that are in it")
    masks: Masks = {}
    for module, target in pairs:
        stored = tensors[_key(module, target)]
        # As bytes: a bool of a damaged file may hold more than 0 and 1.
        if stored.dtype not in (torch.bool, torch.uint8) or (stored.view(torch.uint8) > 1).any():
            raise InputError(f"{_key(module, target)} is no mask of zeros and ones")
        masks.setdefault(module, {})[target] = stored.float()
    return masks


def _check_form(masks: Any) -> None:
    in_form = isinstance(masks, Mapping) and all(isinstance(targets, Mapping) for targets in masks.values())
    if not in_form or not all(isinstance(name, str) for name in masks):
        raise InputError("masks: give NNI's format, {module name: {'weight': 0/1 tensor}}, as compress() returns it")


def _check_values(key: str, mask: object) -> None:
    dense = isinstance(mask, Tensor) and is_dense(mask) and not mask.is_meta
    if not isinstance(mask, Tensor) or not dense or not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"masks: {key} is no dense tensor of zeros and ones; give what get_masks() returns")


def check_masks(model: nn.Module, masks: Any, *, parameters_only: bool = False) -> Masks:
    """The masks that are not None, checked against a model: each has the shape of its parameter, and zeros and ones.

    The names are those inside the model's wrappers (`unwrapped`); a wrapper's prefix (``module.``) is taken off.

    With ``parameters_only``, masks of tensors that are computed from parameters are refused, and so are NNI's masks of
    inputs and outputs (``_input_0``...), which otherwise pass without a look at their shape.
    """
    _check_form(masks)
    modules = dict(unwrapped(model).named_modules(remove_duplicate=False))
    checked: Masks = {}
    for given, targets in masks.items():
        name = name_inside(given, modules)
        if name not in modules:
            hint = did_you_mean(name, modules, "are they another model's?", most=2)
            raise InputError(f"masks: the model has no module {name!r}{hint}")
        for target, mask in targets.items():
            if mask is None:
                continue
            _check_values(_key(name, target), mask)
            if parameters_only or not target.startswith(_ACTIVATIONS):
                _check_target(_key(name, target), modules[name], target, mask, parameters_only)
            checked.setdefault(name, {})[target] = mask.detach()
    return checked


def _check_target(key: str, module: nn.Module, target: str, mask: Tensor, parameters_only: bool) -> None:
    tensor = getattr(module, target, None)
    if not isinstance(tensor, Tensor):
        raise InputError(f"masks: {key} is no parameter of the model; give masks of weights and biases only")
    if parameters_only and module._parameters.get(target) is None:
        raise InputError(f"masks: {key} is computed from other parameters {cure_of_computed(module, target)}")
    if tensor.shape != mask.shape:
        raise InputError(f"masks: {key} is {tuple(mask.shape)}, and the parameter is {tuple(tensor.shape)}")


@torch.no_grad()
def bake(model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Set the parameters of ``model`` to 0 where ``masks`` are 0."""
    network = unwrapped(model)
    for name, targets in masks.items():
        for target, mask in targets.items():
            parameter = network.get_submodule(name).get_parameter(target)
            parameter.masked_fill_((mask == 0).to(parameter.device), 0)
