"""Masks in a file, and masks against a model.

A file is safetensors: a 0/1 tensor for each ``module.target``, and in its header, as JSON, which name is the module's
and which the target's.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ._files import write_tensors
from ._text import one_line
from .errors import InputError, MissingFileError

__all__ = ["Masks", "check_masks", "load_masks", "save_masks"]

#: ``{module: {target: 0/1 tensor of the target's shape}}``, NNI's form.
Masks = dict[str, dict[str, Tensor]]

_FORMAT, _VERSION = "pwoa-masks", "1"
_ACTIVATIONS = ("_input_", "_output_")  # NNI's names of targets that are no parameters


def _key(module: str, target: str) -> str:
    return f"{module}.{target}" if module else target


def save_masks(masks: Mapping[str, Mapping[str, Tensor | None]], path: str | os.PathLike[str]) -> None:
    """Write masks to a file; one of that name is replaced whole or not at all.

    Args:
        masks: ``{module: {target: tensor}}`` of zeros and ones, any dtype, as ``compress()`` or NNI's ``get_masks()``
            gives them. Targets whose mask is None are left out.
        path: of the file; missing folders are made.

    Raises:
        ValueError: there is no mask, or one holds anything but zeros and ones; no file is written.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    pairs: list[tuple[str, str]] = []
    for module, targets in masks.items():
        for target, mask in targets.items():
            if mask is None:
                continue
            key = _key(module, target)
            _check_mask(key, mask)
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
        ``{module: {target: mask}}``, float32 zeros and ones on the CPU, as NNI's. Not yet checked against a model:
        see `check_masks`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not one of masks.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise MissingFileError(f"{path}: no such file of masks")
    try:
        with safe_open(path, framework="pt") as file:
            header, names = file.metadata() or {}, set(file.keys())
            if header.get("format") != _FORMAT:
                raise InputError("it is a safetensors file of something else")
            if header.get("version") != _VERSION:
                raise InputError(f"its version is {header.get('version')!r}, this release reads {_VERSION}")
            pairs = _pairs(header.get("targets", ""))
            if {_key(*pair) for pair in pairs} != names or len(pairs) != len(names):
                raise InputError("its header does not name the masks that are in it")
            masks: Masks = {}
            for module, target in pairs:
                masks.setdefault(module, {})[target] = _mask(
                    _key(module, target), file.get_tensor(_key(module, target))
                )
            return masks
    except (SafetensorError, OSError, ValueError) as error:
        reason = one_line(error)
        raise InputError(f"{path} is no usable file of masks: {reason}; make one with save_masks()") from None


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        pairs = json.loads(text)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
    ):
        raise InputError("its header lists no modules and targets")
    return [(module, target) for module, target in pairs]


def _check_mask(key: str, mask: object) -> None:
    if not isinstance(mask, Tensor) or not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"masks: {key} is no tensor of zeros and ones; give what get_masks() returns")


def _mask(key: str, stored: Tensor) -> Tensor:
    # As bytes: a bool of a damaged file may hold more than 0 and 1.
    if stored.dtype not in (torch.bool, torch.uint8) or (stored.view(torch.uint8) > 1).any():
        raise InputError(f"{key} is no mask of zeros and ones")
    return stored.float()


def check_masks(model: nn.Module, masks: Mapping[str, Mapping[str, Tensor | None]]) -> None:
    """Whether masks belong to a model: each names a parameter of it, has its shape, and holds zeros and ones.

    NNI's masks of inputs and outputs (``_input_0``...) are not compared with a shape.

    Raises:
        ValueError: one line that names the first that does not.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, targets in masks.items():
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"masks are of another model: it has no module {name!r}{hint}")
        for target, mask in targets.items():
            if mask is None:
                continue
            _check_mask(_key(name, target), mask)
            if target.startswith(_ACTIVATIONS):
                continue
            tensor = getattr(modules[name], target, None)
            if not isinstance(tensor, Tensor):
                raise InputError(f"masks are of another model: module {name!r} has no parameter {target!r}")
            if tensor.shape != mask.shape:
                raise InputError(
                    f"masks are of another model: {_key(name, target)} is {tuple(tensor.shape)}, its mask "
                    f"{tuple(mask.shape)}"
                )
