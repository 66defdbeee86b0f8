"""How small a network is: bytes as stored, bytes without its zeros, and weights over nonzero weights."""

from __future__ import annotations

import math

from pydantic import ConfigDict, NonNegativeInt, model_validator
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._checked import Record
from .._weights import is_weighted, same_memory
from ..errors import InputError
from ..pages import Table

__all__ = ["LayerSize", "SizeReport", "size_report"]


class LayerSize(Record):
    """One convolution or linear layer.

    Attributes:
        name: of the module.
        shape: of its weight.
        weights: their number.
        nonzero: those that are not 0.
        dense_bytes: of the weight as it is stored.
        bitmap_bytes: one bit a weight, and the nonzero values.
        csr_bytes: compressed sparse rows of the weight as a matrix ``(shape[0], the rest)``: the nonzero values, their
            columns and the row pointers, both in the smallest unsigned integer that holds them.
        tied_to: the earlier layer that has the same weight, which is counted there.
    """

    model_config = ConfigDict(extra="ignore")  # what is derived
    derived = ("format", "sparse_bytes")

    name: str
    shape: tuple[NonNegativeInt, ...]
    weights: NonNegativeInt
    nonzero: NonNegativeInt
    dense_bytes: NonNegativeInt
    bitmap_bytes: NonNegativeInt
    csr_bytes: NonNegativeInt
    tied_to: str | None = None

    @model_validator(mode="after")
    def _check(self) -> LayerSize:
        if self.weights != math.prod(self.shape) or self.nonzero > self.weights:
            raise InputError(f"{self.nonzero} nonzero of {self.weights} weights contradict shape {list(self.shape)}")
        return self

    @property
    def format(self) -> str:
        """The smallest of ``dense``, ``bitmap`` and ``csr``."""
        sizes = {"dense": self.dense_bytes, "bitmap": self.bitmap_bytes, "csr": self.csr_bytes}
        return min(sizes, key=sizes.__getitem__)

    @property
    def sparse_bytes(self) -> int:
        """Bytes in the smallest format."""
        return min(self.dense_bytes, self.bitmap_bytes, self.csr_bytes)


class SizeReport(Record):
    """Sizes of a network. A tensor that is in several places is counted once.

    Attributes:
        layers: the convolutions and linear layers, in the model's order.
        dense_bytes: of all parameters and buffers.
        parameters: their number, without buffers.
        nonzero_parameters: those that are not 0.
    """

    model_config = ConfigDict(extra="ignore")  # what is derived
    derived = (
        "weights",
        "nonzero",
        "compression",
        "parameter_compression",
        "sparse_bytes",
        "bitmap_bytes",
        "csr_bytes",
    )

    layers: tuple[LayerSize, ...]
    dense_bytes: NonNegativeInt
    parameters: NonNegativeInt
    nonzero_parameters: NonNegativeInt

    @model_validator(mode="after")
    def _check(self) -> SizeReport:
        if self.nonzero_parameters > self.parameters:
            raise InputError(f"{self.nonzero_parameters} nonzero of {self.parameters} parameters")
        return self

    @property
    def counted(self) -> tuple[LayerSize, ...]:
        """The layers whose weight is their own."""
        return tuple(layer for layer in self.layers if layer.tied_to is None)

    @property
    def weights(self) -> int:
        """Weights of all convolutions and linear layers, also of those that were not to be pruned."""
        return sum(layer.weights for layer in self.counted)

    @property
    def nonzero(self) -> int:
        """Those of `weights` that are not 0."""
        return sum(layer.nonzero for layer in self.counted)

    @property
    def compression(self) -> float | None:
        """`weights` over `nonzero`; None where nothing is left."""
        return self.weights / self.nonzero if self.nonzero else None

    @property
    def parameter_compression(self) -> float | None:
        """The same over all parameters, with biases and normalisation."""
        return self.parameters / self.nonzero_parameters if self.nonzero_parameters else None

    @property
    def sparse_bytes(self) -> int:
        """Bytes with each layer in its smallest format, everything else dense."""
        return self.dense_bytes - sum(layer.dense_bytes - layer.sparse_bytes for layer in self.counted)

    @property
    def bitmap_bytes(self) -> int:
        """Bytes with every layer as bitmap and values, everything else dense."""
        return self.dense_bytes - sum(layer.dense_bytes - layer.bitmap_bytes for layer in self.counted)

    @property
    def csr_bytes(self) -> int:
        """Bytes with every layer as compressed sparse rows, everything else dense."""
        return self.dense_bytes - sum(layer.dense_bytes - layer.csr_bytes for layer in self.counted)

    def table(self) -> Table:
        """Sizes by layer, and the totals."""
        rows = [
            [
                layer.name,
                *_counts(layer.weights, layer.nonzero, layer.dense_bytes, layer.sparse_bytes),
                f"tied to {layer.tied_to}" if layer.tied_to else layer.format,
            ]
            for layer in self.layers
        ]
        totals = _counts(self.weights, self.nonzero, self.dense_bytes, self.sparse_bytes)
        header = ["layer", "weights", "nonzero", "dense bytes", "sparse bytes", "format"]
        rows.append(["all, with the rest dense", *totals, ""])
        return Table("Size", header, rows, left=(0, 5), foot=True, code=True)

    def __str__(self) -> str:
        return self.table().to_text()


def _counts(*counts: int) -> list[str]:
    return [f"{count:,}" for count in counts]


def size_report(model: nn.Module) -> SizeReport:
    """The sizes of a network.

    Weights that are computed from others (a parametrization) are counted as computed, and stored dense.

    Raises:
        InputError: a tensor has no values yet (a lazy layer, or the meta device).
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_meta or is_lazy(tensor):
            raise InputError(f"{name}: has no values yet; load a checkpoint, or run the model once")
    parameters = {same_memory(tensor): tensor for tensor in model.parameters()}
    stored = parameters | {same_memory(tensor): tensor for tensor in model.buffers()}
    layers: list[LayerSize] = []
    first: dict[object, str] = {}
    for name, module in model.named_modules():
        if is_weighted(module):
            weight = module.weight.detach()
            own = same_memory(weight)
            # The memory of a computed weight is free again at once, and may be the next one's.
            tied_to = first.setdefault(own, name) if own in stored else name
            layers.append(_layer_size(name, weight, own in stored, tied_to if tied_to != name else None))
    return SizeReport(
        layers=tuple(layers),
        dense_bytes=sum(tensor.nbytes for tensor in stored.values()),
        parameters=sum(tensor.numel() for tensor in parameters.values()),
        nonzero_parameters=sum(int(tensor.count_nonzero()) for tensor in parameters.values()),
    )


def _layer_size(name: str, weight: Tensor, stored: bool, tied_to: str | None) -> LayerSize:
    nonzero, dense = int(weight.count_nonzero()), weight.nbytes
    rows = weight.shape[0] if weight.dim() > 1 else 1
    columns = weight.numel() // rows if rows else 0
    values = nonzero * weight.element_size()
    csr = values + nonzero * _integer_bytes(columns - 1) + (rows + 1) * _integer_bytes(nonzero)
    return LayerSize(
        name=name,
        shape=tuple(weight.shape),
        weights=weight.numel(),
        nonzero=nonzero,
        dense_bytes=dense,
        bitmap_bytes=-(-weight.numel() // 8) + values if stored else dense,
        csr_bytes=csr if stored else dense,
        tied_to=tied_to,
    )


def _integer_bytes(largest: int) -> int:
    """Bytes of the smallest unsigned integer type that holds ``largest``."""
    return next(size for size in (1, 2, 4, 8) if largest < 256**size)
