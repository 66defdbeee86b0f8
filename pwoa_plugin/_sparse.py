"""Tensors in their smallest form: dense, a bitmap with the values, or compressed sparse rows; and files of them.

The size report counts by this rule, and sparse files are written by it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ._checked import Amount, Record, checked
from ._files import parse_json
from ._weights import same_memory
from .errors import InputError, memory_for

FORMAT = "pwoa-sparse"  # of a file; its header has a JSON object under this name
VERSION: Literal[1] = 1

Form = Literal["dense", "bitmap", "csr"]
DType = Literal["float64", "float32", "float16", "bfloat16"]
DTYPES: dict[DType, torch.dtype] = {name: getattr(torch, name) for name in get_args(DType)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_VALUES = 2**53  # of one tensor
_PARTS: dict[Form, tuple[str, ...]] = {
    "dense": ("values",),
    "bitmap": ("bitmap", "values"),
    "csr": ("columns", "rows", "values"),
}


def form_bytes(tensor: Tensor, nonzero: int) -> dict[Form, int]:
    """Bytes of a tensor with that many nonzero values, in each form.

    It is a matrix ``(shape[0], the rest)``. A bitmap has one bit a value. Compressed rows have the column of every
    nonzero value and the row pointers, both in the smallest unsigned integer that holds them.
    """
    rows, columns = _matrix(tensor.shape)
    values = nonzero * tensor.element_size()
    return {
        "dense": tensor.nbytes,
        "bitmap": -(-tensor.numel() // 8) + values,
        "csr": values + nonzero * _integer_bytes(columns - 1) + (rows + 1) * _integer_bytes(nonzero),
    }


def smallest(sizes: Mapping[Form, int]) -> Form:
    """The form of fewest bytes; of equal ones the first."""
    return min(sizes, key=sizes.__getitem__)


class Packed(Record):
    """What a file's header says of a packed tensor; ``dtype`` is the network's, that of the values may be narrower."""

    form: Form
    shape: tuple[Amount, ...]
    dtype: DType

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors that `pack` makes."""
        return _PARTS[self.form]


def pack(tensor: Tensor) -> tuple[Form, dict[str, Tensor]]:
    """The smallest form of a float tensor, and its parts: one-dimensional tensors by name.

    Integers are little-endian bytes, in uint8: safetensors has stored unsigned integers since version 0.5 only.
    A negative zero is a zero like any other, and loses its sign where the form is not dense.
    """
    flat = tensor.detach().cpu().reshape(-1)
    kept = flat != 0
    nonzero = int(kept.sum())
    form = smallest(form_bytes(tensor, nonzero))
    if form == "dense":
        return form, {"values": flat}
    values = flat[kept]
    if form == "bitmap":
        return form, {"bitmap": torch.from_numpy(np.packbits(kept.numpy(), bitorder="little")), "values": values}
    rows, columns = _matrix(tensor.shape)
    ends = kept.view(rows, columns).sum(1).cumsum(0)
    return form, {
        "columns": _to_bytes(kept.nonzero().flatten().remainder(columns).numpy(), columns - 1),
        "rows": _to_bytes(np.concatenate([[0], ends.numpy()]), nonzero),
        "values": values,
    }


def unpack(packed: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """The tensor that `pack` took, on the CPU, in the header's dtype.

    Raises:
        InputError: the parts are not such a tensor's; nothing beyond them is read or written.
    """
    count, values = math.prod(packed.shape), parts["values"]
    if count > _MOST_VALUES:
        raise InputError(f"its shape {packed.shape} is too large")
    if values.dtype not in _NAMES:
        raise InputError(f"its values are {values.dtype}, and must be floats")
    values = values.to(DTYPES[packed.dtype])
    with memory_for(f"a tensor of shape {packed.shape}"):
        if packed.form == "dense":
            _check_length("values", values, count)
            return values.reshape(packed.shape).clone()
        places = _bits(parts["bitmap"], count) if packed.form == "bitmap" else _csr_places(packed.shape, parts, values)
        _check_length("values", values, len(places))
        whole = torch.zeros(count, dtype=values.dtype)
        whole[torch.from_numpy(places)] = values
    return whole.reshape(packed.shape)


def _bits(bitmap: Tensor, count: int) -> np.ndarray:
    """The places of a bitmap's ones."""
    if bitmap.dtype != torch.uint8:
        raise InputError(f"its bitmap is {bitmap.dtype}, and must be uint8")
    _check_length("bitmap", bitmap, -(-count // 8))
    ones = np.flatnonzero(np.unpackbits(bitmap.numpy(), bitorder="little"))
    if len(ones) and ones[-1] >= count:
        raise InputError("its bitmap has more bits than the tensor has values")
    return ones


def _csr_places(shape: tuple[int, ...], parts: Mapping[str, Tensor], values: Tensor) -> np.ndarray:
    """The places of the nonzero values of compressed rows, in the flattened tensor."""
    rows, columns = _matrix(shape)
    column = _from_bytes("columns", parts["columns"], values.numel(), columns - 1)
    ends = _from_bytes("rows", parts["rows"], rows + 1, values.numel())
    lengths = np.diff(ends)
    if ends[0] != 0 or ends[-1] != values.numel() or (lengths < 0).any():
        raise InputError("its row pointers do not rise from 0 to the number of values")
    if (column >= columns).any():
        raise InputError(f"a column is beyond the {columns} of the tensor")
    places: np.ndarray[Any, np.dtype[Any]] = np.repeat(np.arange(rows) * columns, lengths) + column
    if (np.diff(places) <= 0).any():
        raise InputError("the columns of a row do not rise")
    return places


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix; one dimension is one row."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // rows if rows else 0


def _integer_bytes(largest: int) -> int:
    """Bytes of the smallest unsigned integer type that holds ``largest``."""
    return next(size for size in (1, 2, 4, 8) if largest < 256**size)


def _to_bytes(numbers: np.ndarray, largest: int) -> Tensor:
    return torch.from_numpy(numbers.astype(f"<u{_integer_bytes(largest)}").view(np.uint8))


def _from_bytes(part: str, stored: Tensor, count: int, largest: int) -> np.ndarray:
    width = _integer_bytes(largest)
    if stored.dtype != torch.uint8:
        raise InputError(f"its {part} are {stored.dtype}, and must be uint8")
    _check_length(part, stored, count * width)
    return stored.numpy().view(f"<u{width}").astype(np.int64)


def _check_length(part: str, stored: Tensor, length: int) -> None:
    if stored.dim() != 1 or len(stored) != length:
        raise InputError(f"its {part} are {tuple(stored.shape)}, and must be ({length},)")


class Header(Record):
    """What the header of a sparse file says.

    Attributes:
        packed: by the tensor's name; its parts are in the file as ``NAME:PART``. All other tensors are there as they
            are.
        tied: names of tensors that share another's memory, and the other's name.
        removals: the layer, whether they are its filters, and the channels: of each removal; None where none was made.
        crc32: of the bytes of all tensors in the file, sorted by name.
    """

    version: Literal[1] = VERSION
    packed: dict[str, Packed]
    tied: dict[str, str]
    crc32: Amount
    removals: list[tuple[str, bool, tuple[Amount, ...]]] | None = None

    def shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every tensor of the network, before any is unpacked."""
        parts = {f"{name}:{part}" for name, packed in self.packed.items() for part in packed.parts}
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items() if name not in parts}
        found |= {name: (packed.shape, DTYPES[packed.dtype]) for name, packed in self.packed.items()}
        return found | {name: found[first] for name, first in self.tied.items()}


def pack_state(
    state: Mapping[str, Tensor], narrowed: torch.dtype | None, removals: Any = None
) -> tuple[dict[str, Tensor], Header]:
    """The tensors of a file, and its header.

    Floats of two and more dimensions are packed; all else stays as it is.

    Args:
        state: strided tensors with values, by name.
        narrowed: packed values of wider types are cast to it; None casts nothing.
        removals: those of the `Header`.
    """
    if clash := next((name for name in state if name.rpartition(":")[0] in state), ""):
        raise InputError(f"{clash}: its name may be that of a part; rename it without ':'")
    tensors: dict[str, Tensor] = {}
    packed: dict[str, Packed] = {}
    tied: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in state.items():
        owner = first.setdefault(same_memory(tensor), name)
        dtype = _NAMES.get(tensor.dtype)
        if owner != name:
            tied[name] = owner
        elif dtype is None or tensor.dim() < 2:
            tensors[name] = tensor
        else:
            cast = _narrowed(name, tensor, narrowed)
            form, parts = pack(cast)
            if form == "dense" and cast is tensor:
                tensors[name] = tensor
            else:
                packed[name] = Packed(form=form, shape=tuple(tensor.shape), dtype=dtype)
                tensors |= {f"{name}:{part}": stored for part, stored in parts.items()}
    return tensors, Header(packed=packed, tied=tied, crc32=_crc32(tensors), removals=removals)


def _narrowed(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or tensor.element_size() <= dtype.itemsize:
        return tensor
    cast = tensor.detach().to(dtype)
    if (cast.isinf() & ~tensor.isinf()).any():
        wider = "'bfloat16' or 'float32'" if dtype == torch.float16 else "'float32'"
        raise InputError(f"{name} has values beyond {str(dtype)[6:]}'s range; give values={wider}")
    return cast


def read_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Header:
    """The header of a sparse file, checked against the tensors in the file.

    Raises:
        InputError: it is a file of something else, of another version, or damaged; a few words say which.
    """
    if FORMAT not in metadata:
        raise InputError("it is a safetensors file of something else")
    content: Any = parse_json(metadata[FORMAT])
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise InputError(f"its version is {version!r}, this release reads {VERSION}; update pwoa_plugin")
    header = checked(Header, content, "header")
    parts = [f"{name}:{part}" for name, packed in header.packed.items() for part in packed.parts]
    whole = [*(tensors.keys() - set(parts)), *header.packed]
    wrong = [
        set(parts) - tensors.keys(),
        set(header.tied.values()) - set(whole),
        any(count > 1 for count in Counter([*parts, *whole, *header.tied]).values()),
    ]
    if any(wrong):
        raise InputError("its header does not name the tensors that are in it")
    if header.crc32 != _crc32(tensors):
        raise InputError("its bytes are not those that were written")
    return header


def unpack_state(tensors: Mapping[str, Tensor], header: Header) -> dict[str, Tensor]:
    """The state dict of a file, on the CPU; tied names have the same tensor."""
    left = dict(tensors)
    state: dict[str, Tensor] = {}
    for name, packed in header.packed.items():
        try:
            state[name] = unpack(packed, {part: left.pop(f"{name}:{part}") for part in packed.parts})
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    state |= left
    return state | {name: state[first] for name, first in header.tied.items()}


def metadata_of(header: Header) -> dict[str, str]:
    """One entry: safetensors writes several in any order, and files of equal networks would differ."""
    return {FORMAT: json.dumps(header.model_dump(exclude_none=True))}


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    found = 0
    for _, tensor in sorted(tensors.items()):
        if tensor.numel():
            found = zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data, found)
    return found
