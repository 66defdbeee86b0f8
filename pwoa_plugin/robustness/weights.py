"""How many weights a model has left, and in which structure the others are missing."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import NonNegativeInt
from torch import Tensor, nn

from .._checked import Record
from .._weights import counted_weights


class Weights(Record):
    """Weights of convolution and linear layers.

    Attributes:
        total: their number; the dense model's where this one is the same network with fewer channels.
        nonzero: those that are there and not 0.
        struct: where the others are, in the Adversarial Pruning Benchmark's words: ``weights``, ``filters`` (whole
            rows), ``channels`` (whole columns, or removed ones), or empty where nearly all are there.
    """

    total: NonNegativeInt
    nonzero: NonNegativeInt
    struct: str = ""

    @property
    def sparsity(self) -> float:
        """Share of zeros and of removed weights, in [0, 1]."""
        return 1 - self.nonzero / self.total if self.total else 0.0


def count_weights(model: nn.Module, dense: nn.Module | None = None) -> Weights:
    """Count a model's weights. ``dense`` is the network from which channels may have been removed; it is ignored if it
    is another architecture."""
    named, whole = counted_weights(model), {} if dense is None else counted_weights(dense)
    weights = list(named.values())
    there, nonzero = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    total = sum(w.numel() for w in whole.values()) if _is_part(named, whole) else there
    zeros = there - nonzero
    struct = ""
    if total - there > 0.01 * total:
        struct = "channels" if zeros < 0.05 * (total - nonzero) else "weights"
    elif zeros > 0.01 * total:
        zero = [w.eq(0) for w in weights]
        in_filters = sum(int(z.flatten(1).all(1).sum()) * z[0].numel() for z in zero)
        in_channels = sum(int(z.transpose(0, 1).flatten(1).all(1).sum()) * z[:, 0].numel() for z in zero)
        struct = "weights"
        if max(in_filters, in_channels) > 0.95 * zeros:
            struct = "filters" if in_filters >= in_channels else "channels"
    return Weights(total=total, nonzero=nonzero, struct=struct)


def _is_part(weights: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> bool:
    return weights.keys() == whole.keys() and all(
        weight.dim() == whole[name].dim() and all(a <= b for a, b in zip(weight.shape, whole[name].shape, strict=True))
        for name, weight in weights.items()
    )
