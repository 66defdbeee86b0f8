"""NNI's granularities as our sparsity sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..method.sparsity import Block, Channel, Filter, SparsitySet, Unstructured, make_sparsity_set

_CHANNELS: dict[str, SparsitySet] = {"out_channel": Filter(), "in_channel": Channel()}


def sparsity_set_of(granularity: Any, shape: Sequence[int], where: str) -> SparsitySet:
    """The sparsity set of an NNI granularity, for a weight of ``shape``.

    It is ``out_channel``, ``in_channel``, one of our own names, or a block as NNI writes it: a list of sides (-1: the
    whole dimension), padded in front with 1; or ``[sides, "front" or "back", padding]``. ``[1]`` is unstructured.
    """
    if isinstance(granularity, str):
        found = _CHANNELS.get(granularity) or make_sparsity_set(granularity)
    else:
        found = _of_block(granularity, shape, where)
    if len(shape) < 2 and not isinstance(found, Unstructured):
        raise InputError(f"{where}: granularity {granularity!r} needs a weight (out, in, ...), not {tuple(shape)}")
    return found


def _of_block(granularity: Any, shape: Sequence[int], where: str) -> SparsitySet:
    sides = _sides(granularity, shape, where)
    if all(side == 1 for side in sides):
        return Unstructured()
    whole = list(shape)
    if sides[0] == 1 and sides[1:] == whole[1:]:
        return Filter()
    if len(sides) < 2:
        return Block(1, sides[0])
    rows, columns, *kernel = sides
    if columns == 1 and [rows, *kernel] == [whole[0], *whole[2:]]:
        return Channel()
    if columns == math.prod(kernel) == 1:
        return Block(rows, 1)
    if kernel == whole[2:]:  # whole kernels are consecutive in the flattened filter
        return Block(rows, columns * math.prod(kernel))
    raise InputError(
        f"{where}: granularity {granularity} cuts a weight {tuple(shape)} into blocks that are not consecutive in its "
        f"flattened filters; use whole kernels {[rows, columns, *whole[2:]]}, 'out_channel', 'in_channel' or [1]"
    )


def _sides(granularity: Any, shape: Sequence[int], where: str) -> list[int]:
    """The sides of an NNI block, one per dimension; padded as NNI's ``Scaling`` does."""
    block, mode, padding = granularity, None, None
    if granularity and isinstance(granularity[0], (list, tuple)):
        block, mode, padding = (*granularity, None, None)[:3]
    missing = [padding or 1] * (len(shape) - len(block))
    padded = [*block, *missing] if mode == "back" else [*missing, *block]
    sides = [size if side == -1 else side for side, size in zip(padded, shape, strict=False)]
    fits = len(block) <= len(shape) and mode in (None, "front", "back")
    if not fits or not all(
        isinstance(side, int) and 1 <= side <= size for side, size in zip(sides, shape, strict=True)
    ):
        raise InputError(f"{where}: granularity {granularity} does not fit a weight of shape {tuple(shape)}")
    return sides
