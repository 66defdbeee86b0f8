"""Sparse files: a pruned network without its zeros, in safetensors. docs/shipping.md describes the format."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._files import read_tensors, write_tensors
from .._network import check_network
from .._sparse import Header, metadata_of, pack_state, read_header, unpack_state
from .._weights import REMOVALS
from .._wrapped import unwrapped
from ..errors import InputError

_VALUES: dict[str, torch.dtype | None] = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def save_sparse(
    model: nn.Module, path: str | os.PathLike[str], *, values: Literal["float32", "float16", "bfloat16"] = "float32"
) -> None:
    """Write a network without its zeros; an existing file is replaced whole or not at all.

    Each weight (floats of two and more dimensions) is written in the smallest of a bitmap with the nonzero values,
    compressed rows, and dense. Biases, normalisation, buffers and integers are written as they are, a tied weight once.
    Of a network that lost channels the file says which, for `load_pruned`.

    Args:
        model: the network; a wrapper around it (``DistributedDataParallel``, ``torch.compile``...) is left out.
        path: of the file; missing folders are made.
        values: ``float32`` casts nothing, and loads bit-equal but for the sign of zeros; ``float16`` and ``bfloat16``
            round the values of wider weights, and nothing else.

    Raises:
        ValueError: a tensor cannot be written, or has values beyond their range; no file is written.
        OSError: the file cannot be written.
    """
    if values not in _VALUES:
        raise InputError(f"save_sparse: values={values!r} is unknown; use {', '.join(_VALUES)}")
    check_network(model)
    network = unwrapped(model)
    try:
        tensors, header = pack_state(_plain_state(network), _VALUES[values], getattr(network, REMOVALS, None) or None)
    except InputError as error:
        raise InputError(f"save_sparse: {error}") from None
    write_tensors(path, tensors, metadata_of(header))


@torch.inference_mode(False)  # the network's tensors can be trained
def load_sparse(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what `save_sparse` wrote into a network. No code in a file is ever run; on an error the model is unchanged.

    Args:
        model: a network of the same architecture, with the dtypes of the one that was saved. One that lost channels
            is loaded by `load_pruned`.
        path: of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, of a later version, or of another network.
    """
    check_network(model)
    network, name = unwrapped(model), os.fspath(path)
    tensors, metadata = read_tensors(path, "sparse file")
    try:
        header = read_header(tensors, metadata)
        wanted = _plain_state(network)
        _check_fit(header, tensors, wanted)
        state = OrderedDict(unpack_state(tensors, header))
    except InputError as error:
        raise InputError(f"{name}: is no usable sparse file ({error}); make one with save_sparse()") from None
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]  # versions, which some modules read
    network.load_state_dict(state)


def _plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict, of strided tensors with values only."""
    state: dict[str, Any] = network.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} is a {type(tensor).__name__}, and only tensors can be in such a file")
        if tensor.is_quantized or tensor.layout != torch.strided:
            raise InputError(f"{name} is quantised or sparse already; give the float network")
    return state


def _check_fit(header: Header, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a file whose names, shapes and dtypes are not the network's."""
    found = header.shapes(tensors)
    problems = [f"{name} is not in the file" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is not in the network" for name in found.keys() - wanted.keys()]
    for name in found.keys() & wanted.keys():
        (shape, dtype), tensor = found[name], wanted[name]
        if shape != tuple(tensor.shape):
            problems.append(f"{name} is {shape} in the file and {tuple(tensor.shape)} in the network")
        elif dtype != tensor.dtype:
            problems.append(f"{name} is {dtype} in the file and {tensor.dtype} in the network, which to() casts")
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        cure = "; channels were removed from it: load_pruned() makes it of a whole one" if header.removals else ""
        raise InputError(f"it is of another network: {min(problems)}{more}{cure}")
