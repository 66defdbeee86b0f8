"""NNI's words for granularity, as our sparsity sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..method.sparsity import Block, Channel, Filter, SparsitySet, Unstructured, make_sparsity_set

__all__ = ["sparsity_set_of"]


def sparsity_set_of(granularity: Any, shape: Sequence[int], where: str) -> SparsitySet:
    """The sparsity set of an NNI granularity for a weight of ``shape``.

    Args:
        granularity: ``out_channel``, ``in_channel``, a block as NNI writes it, or one of our own names. A block is a
            list of sides (-1: the whole dimension), which is padded in front with 1; or ``[sides, "front" or "back",
            padding]``. ``[1]`` is unstructured.
        shape: of the weight.
        where: what an error names.

    Raises:
        ValueError: no set does what is asked.
    """
    if granularity in ("out_channel", "in_channel"):
        if len(shape) < 2:
            raise InputError(f"{where}: granularity {granularity!r} needs a weight (out, in, ...), not {tuple(shape)}")
        return Filter() if granularity == "out_channel" else Channel()
    if isinstance(granularity, str):
        sparsity_set = make_sparsity_set(granularity)
        if len(shape) < 2 and not isinstance(sparsity_set, Unstructured):
            raise InputError(f"{where}: granularity {granularity!r} needs a weight (out, in, ...), not {tuple(shape)}")
        return sparsity_set
    sides = _sides(granularity, shape, where)
    if all(side == 1 for side in sides):
        return Unstructured()
    if len(shape) < 2:
        raise InputError(f"{where}: granularity {granularity} needs a weight (out, in, ...), not {tuple(shape)}")
    rows, columns, *kernel = sides
    whole = list(shape)
    if rows == 1 and sides[1:] == whole[1:]:
        return Filter()
    if columns == 1 and [rows, *kernel] == [whole[0], *whole[2:]]:
        return Channel()
    if columns == math.prod(kernel) == 1:
        return Block(rows, 1)
    if kernel == whole[2:]:  # whole kernels: consecutive in the flattened filter
        return Block(rows, columns * math.prod(kernel))
    raise InputError(
        f"{where}: granularity {granularity} cuts a weight {tuple(shape)} in blocks that are not consecutive in its "
        f"flattened filters; use {[rows] + [1] * (len(shape) - 1)}, whole kernels {[rows, columns, *whole[2:]]}, "
        "'out_channel', 'in_channel' or [1]"
    )


def _sides(granularity: Any, shape: Sequence[int], where: str) -> list[int]:
    """The sides of an NNI block, one a dimension; padded as NNI's ``Scaling`` does."""
    nested = bool(granularity) and isinstance(granularity[0], (list, tuple))
    block = list(granularity[0] if nested else granularity)
    mode, padding = [*granularity[1:], None, None][:2] if nested else (None, None)
    if len(block) > len(shape) or mode not in (None, "front", "back"):
        raise InputError(f"{where}: granularity {granularity} does not fit a weight of shape {tuple(shape)}")
    missing = [padding or 1] * (len(shape) - len(block))
    padded = block + missing if mode == "back" else missing + block
    sides = [size if side == -1 else side for side, size in zip(padded, shape, strict=True)]
    if not all(isinstance(side, int) and 1 <= side <= size for side, size in zip(sides, shape, strict=True)):
        raise InputError(f"{where}: granularity {granularity} does not fit a weight of shape {tuple(shape)}")
    return sides
