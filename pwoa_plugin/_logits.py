"""Logits, out of whatever a classifier returns: one rule for pruning and for judging."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import InputError

Output = int | str | None
"""Which part of a network's output has the logits: an index, a key or attribute, dotted where nested (``heads.0``)."""


def logits_of(output: Any, images: int, choice: Output = None) -> Tensor:
    """The logits ``(N, C)``, C >= 2, in what a network returned for N images.

    A tensor is taken as it is. Of a tuple, list, mapping or object the part named ``logits`` is taken, else the only
    one that may be logits. One logit z per image, ``(N, 1)`` or ``(N,)``, becomes the pair ``(-z/2, z/2)``, whose
    softmax is the sigmoid of z. Trailing dimensions of size 1 are dropped, and that of a single image may be missing.

    Args:
        output: what the network returned.
        images: N.
        choice: which part has the logits; of no effect where the output is a tensor.

    Raises:
        InputError: there are no logits, or several parts may be.
    """
    if isinstance(output, Tensor):
        found: Any = output
    else:
        found = _only_one(output, images) if choice is None else _chosen(output, choice)
    logits = _as_matrix(found, images)
    if logits is None:
        raise InputError(
            f"the model returns {described(output)} for {images} images; return logits, one floating tensor "
            "(N, classes), or set output= to the index or key of the part that has them"
        )
    return logits


def part_of(output: Any, choice: Output = None) -> Any:
    """The chosen part of an output, else that named ``logits``, else all of it; what it is is not checked."""
    if choice is not None:
        return output if isinstance(output, Tensor) else _chosen(output, choice)
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)


def described(value: Any) -> str:
    """What a value is, in messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if parts := [f"{name}: {described(part)}" for name, part in _parts(value)][:6]:
        return f"a {type(value).__name__} ({', '.join(parts)})"
    return f"a {type(value).__name__}"


def _as_matrix(value: Any, images: int) -> Tensor | None:
    """Logits ``(N, C)``; None if this is something else."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if value.dim() == 2 and len(value) == images and value.shape[1] > 1:  # what nearly all networks return
        return value
    if images == 1 and value.dim() < 2:  # squeezed
        value = value.reshape(1, -1)
        if value.shape[1] > 1:
            return value
    if value.dim() and value.numel() == images == len(value):
        z = value.reshape(images, 1) / 2
        return torch.cat([-z, z], 1)
    if value.dim() > 2 and len(value) == images and value.numel() == images * value.shape[1]:
        return value.flatten(1)
    return None


def _parts(output: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an output by index, key or attribute."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(output, Mapping):
        pairs = output.items()
    elif hasattr(output, "_asdict"):
        pairs = output._asdict().items()
    elif isinstance(output, (tuple, list)):
        pairs = enumerate(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        pairs = ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    elif not isinstance(output, Tensor) and hasattr(output, "__dict__"):
        pairs = vars(output).items()
    return ((str(name), part) for name, part in pairs)


def _only_one(output: Any, images: int) -> Any:
    named = part_of(output)
    if isinstance(named, Tensor):
        return named
    fitting = {name: part for name, part in _parts(output) if _as_matrix(part, images) is not None}
    matrices = {name: part for name, part in fitting.items() if part.dim() == 2 and part.shape[1] > 1}
    found = matrices or {name: part for name, part in fitting.items() if part.dim() > 1}
    if len(found) > 1:
        listed = ", ".join(f"{name} {tuple(part.shape)}" for name, part in found.items())
        raise InputError(f"the model returns several tensors that may be logits ({listed}); set output= to one of them")
    return next(iter(found.values()), None)


def _chosen(output: Any, choice: int | str) -> Any:
    found = output
    for step in str(choice).split("."):
        if isinstance(found, Mapping):
            by_name = {str(key): value for key, value in found.items()}
            found = by_name.get(step, _MISSING)
        elif isinstance(found, (tuple, list)) and step.lstrip("-").isdigit():
            found = found[int(step)] if -len(found) <= int(step) < len(found) else _MISSING
        else:
            found = getattr(found, step, _MISSING)
        if found is _MISSING:
            raise InputError(f"output={choice!r}: the model returns {described(output)}; name a part of it")
    return found


_MISSING = object()
