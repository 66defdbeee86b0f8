"""How small a network is: bytes as stored, bytes without its zeros, and weights over nonzero weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._checked import Amount, Measure, Record
from .._sparse import form_bytes, smallest
from .._weights import is_weighted, same_memory
from .._wrapped import unwrapped
from ..errors import InputError
from ..pages import Table


class LayerSize(Record):
    """One convolution or linear layer.

    Attributes:
        dense_bytes: of the weight as it is stored.
        bitmap_bytes: one bit a weight, and the nonzero values.
        csr_bytes: compressed sparse rows of the weight as a matrix ``(shape[0], the rest)``: the nonzero values, their
            columns and the row pointers, both in the smallest unsigned integer that holds them.
        tied_to: the earlier layer that has the same weight, which is counted there.
        format: the smallest of ``dense``, ``bitmap`` and ``csr``; ``sparse_bytes`` are its bytes.
    """

    name: str
    shape: tuple[Amount, ...]
    weights: Amount
    nonzero: Amount
    dense_bytes: Amount
    bitmap_bytes: Amount
    csr_bytes: Amount
    tied_to: str | None = None
    format: str
    sparse_bytes: Amount


class SizeReport(Record):
    """Sizes of a network. A tensor that is in several places is counted once.

    Attributes:
        layers: the convolutions and linear layers, in the model's order.
        dense_bytes: of all parameters and buffers.
        parameters, nonzero_parameters: their numbers, without buffers.
        weights, nonzero: of all convolutions and linear layers, also of those that were not to be pruned.
        compression: ``weights / nonzero``; None where nothing is left.
        parameter_compression: the same over all parameters, with biases and normalisation.
        sparse_bytes: with each layer in its smallest format, everything else dense.
        bitmap_bytes, csr_bytes: with all layers in that format, everything else dense.
    """

    layers: tuple[LayerSize, ...]
    dense_bytes: Amount
    parameters: Amount
    nonzero_parameters: Amount
    weights: Amount
    nonzero: Amount
    compression: Measure | None
    parameter_compression: Measure | None
    sparse_bytes: Amount
    bitmap_bytes: Amount
    csr_bytes: Amount

    def table(self) -> Table:
        """Sizes by layer, and the totals."""
        rows = [
            [layer.name, *_counts(layer), f"tied to {layer.tied_to}" if layer.tied_to else layer.format]
            for layer in self.layers
        ]
        rows.append(["all, with the rest dense", *_counts(self), ""])
        header = ["layer", "weights", "nonzero", "dense bytes", "sparse bytes", "format"]
        return Table("Size", header, rows, left=(0, 5), foot=True, code=True)


def _counts(size: LayerSize | SizeReport) -> list[str]:
    return [f"{count:,}" for count in (size.weights, size.nonzero, size.dense_bytes, size.sparse_bytes)]


def size_report(model: nn.Module) -> SizeReport:
    """The sizes of a network.

    Weights that are computed from others (a parametrization) are counted as computed, and stored dense.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_meta or is_lazy(tensor):
            raise InputError(f"{name}: has no values yet; load a checkpoint, or run the model once")
    parameters = {same_memory(tensor): tensor for tensor in model.parameters()}
    stored = parameters | {same_memory(tensor): tensor for tensor in model.buffers()}
    layers: list[LayerSize] = []
    first: dict[object, str] = {}
    for name, module in unwrapped(model).named_modules():
        if is_weighted(module):
            weight = module.weight.detach()
            memory = same_memory(weight)
            # The memory of a computed weight is free again at once, and may be the next one's.
            tied_to = first.setdefault(memory, name) if memory in stored else name
            layers.append(_layer_size(name, weight, memory in stored, tied_to if tied_to != name else None))
    own = [layer for layer in layers if layer.tied_to is None]
    dense_bytes = sum(tensor.nbytes for tensor in stored.values())
    dense_layers = sum(layer.dense_bytes for layer in own)
    weights, nonzero = sum(layer.weights for layer in own), sum(layer.nonzero for layer in own)
    n_parameters = sum(tensor.numel() for tensor in parameters.values())
    n_nonzero = sum(int(tensor.count_nonzero()) for tensor in parameters.values())
    return SizeReport(
        layers=tuple(layers),
        dense_bytes=dense_bytes,
        parameters=n_parameters,
        nonzero_parameters=n_nonzero,
        weights=weights,
        nonzero=nonzero,
        compression=weights / nonzero if nonzero else None,
        parameter_compression=n_parameters / n_nonzero if n_nonzero else None,
        sparse_bytes=dense_bytes - dense_layers + sum(layer.sparse_bytes for layer in own),
        bitmap_bytes=dense_bytes - dense_layers + sum(layer.bitmap_bytes for layer in own),
        csr_bytes=dense_bytes - dense_layers + sum(layer.csr_bytes for layer in own),
    )


def _layer_size(name: str, weight: Tensor, stored: bool, tied_to: str | None) -> LayerSize:
    nonzero = int(weight.count_nonzero())
    sizes = form_bytes(weight, nonzero)
    if not stored:
        sizes |= dict.fromkeys(sizes, weight.nbytes)
    form = smallest(sizes)
    return LayerSize(
        name=name,
        shape=tuple(weight.shape),
        weights=weight.numel(),
        nonzero=nonzero,
        dense_bytes=sizes["dense"],
        bitmap_bytes=sizes["bitmap"],
        csr_bytes=sizes["csr"],
        tied_to=tied_to,
        format=form,
        sparse_bytes=sizes[form],
    )
