"""Logits, out of whatever a classifier returns: one rule for pruning and for judging."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from .errors import InputError


def check_output(value: Any) -> int | str | None:
    """The choice of a part of an output; InputError if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, str, type(None))):
        raise InputError(f"output={value!r}: give an index, a key or an attribute")
    return int(value) if isinstance(value, str) and re.fullmatch("-?[0-9]+", value) else value


Output = Annotated[int | str | None, BeforeValidator(check_output)]
"""Which part of a network's output has the logits: an index, a key or attribute, dotted where nested (``heads.0``)."""


def logits_of(output: Any, images: int, choice: Output = None) -> Tensor:
    """The logits ``(N, C)``, C >= 2, in what a network returned for N images.

    A tensor is taken as it is. Of a tuple, list, mapping or object the part named ``logits`` is taken, else the only
    ``(N, C)`` tensor without an ``(N,)`` beside it, else the only one of ``(N, C, 1, 1)``. One logit z per image,
    ``(N, 1)`` or ``(N,)``, becomes the pair ``(-z/2, z/2)``, whose softmax is the sigmoid of z. Trailing dimensions of
    size 1 are dropped, and that of a single image may be missing.

    Args:
        output: what the network returned.
        images: N.
        choice: which part has the logits, itself read by this rule; of no effect where the output is a tensor.

    Raises:
        InputError: there are no logits, or several parts may be.
    """
    chosen = choice is not None and not isinstance(output, Tensor)
    found = _chosen(output, choice) if chosen else output
    logits = _as_matrix(found if isinstance(found, Tensor) else _only_one(found, images), images)
    if logits is None:
        what = f"output={choice!r} is" if chosen else "the model returns"
        raise InputError(
            f"{what} {described(found)} for {images} images; return logits, one floating tensor (N, classes), or set "
            "output= to the index or key of the part that has them"
        )
    return logits


def unused_note(output: Any, choice: Output) -> str:
    """What to say of a choice that has no effect, for there is one tensor; empty if it has, or there is no choice."""
    if choice is None or not isinstance(output, Tensor):
        return ""
    return f"output={choice!r} has no effect: the model returns one tensor"


def are_probabilities(logits: Tensor) -> bool:
    """Whether these look like probabilities ``(N, C)``: between 0 and 1, with a sum of 1."""
    least, most = logits.aminmax()
    within = bool(least > -1e-5) and bool(most < 1 + 1e-5)
    return within and bool(((logits.sum(1) - 1).abs() < 1e-4).all())


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
        layout = "" if is_dense(value) else f" and {'nested' if value.is_nested else value.layout}"
        shape = "" if value.is_nested else f"{tuple(value.shape)} "
        return f"a tensor {shape}of {value.dtype}{layout}"
    if parts := {name: described(part) for name, part in parts_of(value)}:
        return f"a {type(value).__name__} ({_listed(parts)})"
    return f"a {type(value).__name__}"


def parts_of(output: Any) -> list[tuple[str, Any]]:
    """The parts of an output, by index, key or attribute; none of a tensor, or of what has no parts."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(output, Mapping):
        pairs = output.items()
    elif hasattr(output, "_asdict"):
        pairs = output._asdict().items()
    elif isinstance(output, (tuple, list)):
        pairs = enumerate(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        pairs = ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    elif not isinstance(output, (Tensor, nn.Module, type)) and hasattr(output, "__dict__"):
        pairs = vars(output).items()
    return [(str(name), part) for name, part in pairs]


def is_dense(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_nested


def _as_matrix(value: Any, images: int) -> Tensor | None:
    """Logits ``(N, C)``; None if this is something else."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not is_dense(value):
        return None
    if images == 1 and value.dim() < 2:
        return _as_matrix(value.reshape(1, -1), images)  # squeezed
    if not value.dim() or len(value) != images:
        return None
    if value.dim() == 2 and value.shape[1] > 1:  # what nearly all networks return
        return value
    if value.numel() == images:
        z = value.reshape(images, 1) / 2
        return torch.cat([-z, z], 1)
    return value.flatten(1) if value.dim() > 2 and value.numel() == images * value.shape[1] else None


def _only_one(output: Any, images: int) -> Any:
    named = part_of(output)
    if isinstance(named, Tensor):
        return named
    fitting: dict[str, Tensor] = {}
    for name, part in parts_of(output):
        fits = _as_matrix(part, images) is not None and part.dim() and len(part) == images
        if fits and all(part is not other for other in fitting.values()):
            fitting[name] = part
    found = {name: part for name, part in fitting.items() if part.dim() < 3} or fitting  # (N,): losses, or logits
    if len(found) > 1:
        listed = _listed({name: f"{tuple(part.shape)}" for name, part in found.items()})
        raise InputError(
            f"the model returns several tensors that may be logits ({listed}); set output= to the index or key of one"
        )
    return next((part for part in found.values() if part.dim() > 1), None)


def _chosen(output: Any, choice: Output) -> Any:
    found, steps = output, str(choice).split(".")
    for i, step in enumerate(steps):
        whole = _part(found, ".".join(steps[i:]))  # a key may have dots
        if whole is not _MISSING:
            return whole
        found = _part(found, step)
    if found is _MISSING:
        raise InputError(f"output={choice!r}: the model returns {described(output)}; name a part of it")
    return found


def _part(value: Any, step: str) -> Any:
    parts = parts_of(value)
    if step in (by_name := dict(parts)):
        return by_name[step]
    if re.fullmatch("-?[0-9]+", step) and -len(parts) <= int(step) < len(parts):
        return parts[int(step)][1]
    return getattr(value, step, _MISSING)


def _listed(parts: Mapping[str, str]) -> str:
    """Parts by name, six at most."""
    more = f", and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
    return ", ".join(f"{name}: {part}" for name, part in [*parts.items()][:_LISTED]) + more


_LISTED = 6
_MISSING = object()
