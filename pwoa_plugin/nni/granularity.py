"""NNI's words for granularity, as our sparsity sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..method.sparsity import Block, Channel, Filter, SparsitySet, Unstructured, make_sparsity_set

__all__ = ["sparsity_set_of"]


def sparsity_set_of(granularity: Any, shape: Sequence[int], where: str) -> SparsitySet:
    """The sparsity set of an NNI granularity for a weight of ``shape``.

    Args:
        granularity: ``out_channel``, ``in_channel``, a block as NNI writes it (``[1]`` is unstructured; shorter lists
            are padded with 1 in front), or one of our own names.
        shape: of the weight.
        where: what an error names.

    Raises:
        ValueError: no set does what is asked.
    """
    if granularity == "out_channel":
        return Filter()
    if granularity == "in_channel":
        return Channel()
    if isinstance(granularity, str):
        return make_sparsity_set(granularity)
    block = list(granularity[0] if granularity and isinstance(granularity[0], (list, tuple)) else granularity)
    if len(block) > len(shape) or not all(isinstance(side, int) and side >= 1 for side in block):
        raise ValueError(f"{where}: granularity {granularity} does not fit a weight of shape {tuple(shape)}")
    rows, columns, *kernel = [1] * (len(shape) - len(block)) + block
    area, sides = 1, list(shape[2:])
    for side in kernel:
        area *= side
    if rows == columns == area == 1:
        return Unstructured()
    if area == 1 and columns == 1:
        return Block(rows, 1)
    if kernel == sides:  # whole kernels: consecutive in the flattened filter
        return Block(rows, columns * area)
    raise ValueError(
        f"{where}: granularity {granularity} cuts a weight {tuple(shape)} in blocks that are not consecutive in its "
        f"flattened filters; use {[rows] + [1] * (len(shape) - 1)}, whole kernels {[rows, columns, *sides]}, "
        "'out_channel', 'in_channel' or [1]"
    )
