"""What `speedup` removed, what it kept, and why."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .._weights import is_weighted
from ..method.constants import ConstantChannels, links
from .groups import Network

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShrunkLayer:
    """A convolution or linear layer that got smaller.

    Attributes:
        filters: output channels before and after.
        inputs: input channels before and after.
        removed_filters, removed_inputs: indices in the layer as it was.
    """

    filters: tuple[int, int]
    inputs: tuple[int, int]
    removed_filters: tuple[int, ...]
    removed_inputs: tuple[int, ...]


@dataclass(frozen=True)
class KeptChannels:
    """Channels that a mask sets to 0 and that stay.

    Attributes:
        layer: the layer of the mask.
        side: ``filters`` or ``inputs``.
        channels: indices in the layer as it was.
        reason: why they stay.
    """

    layer: str
    side: str
    channels: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class SpeedupReport:
    """What `speedup_with_report` did.

    Attributes:
        layers: the layers that got smaller, by name.
        kept: channels that masks set to 0 and that stay.
        zeroed: ``{parameter: channels}``: how many constants were set to 0 (``zero_constants=True``).
        output_change: how much that changed the output: largest absolute difference over the largest absolute value.
        error: the same measure between the small model and the masked one (with constants at 0).
        parameters: their number before and after.
        history: Torch-Pruning's pruning history, ``(layer, whether filters, indices)``. Replayed on the original model
            by ``DependencyGraph.load_pruning_history``, it gives the shapes of the small one.
    """

    layers: dict[str, ShrunkLayer]
    kept: tuple[KeptChannels, ...]
    zeroed: dict[str, int]
    output_change: float
    error: float
    parameters: tuple[int, int]
    history: tuple[tuple[str, bool, tuple[int, ...]], ...]

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"parameters {before} -> {after}; output differs by {self.error:.1e} of its largest value"]
        if self.zeroed:
            lines.append(
                f"{sum(self.zeroed.values())} constants zeroed in {len(self.zeroed)} parameters, which changes the "
                f"output by {self.output_change:.1e} of its largest value"
            )
        width = max(map(len, self.layers), default=0)
        for name, layer in self.layers.items():
            filters, inputs = (
                f"{old} -> {new}" if old != new else f"{old}" for old, new in (layer.filters, layer.inputs)
            )
            lines.append(f"  {name:<{width}}  filters {filters}, inputs {inputs}")
        lines += [f"  {kept.layer}: {len(kept.channels)} dead {kept.side} kept: {kept.reason}" for kept in self.kept]
        return "\n".join(lines)


def shrunk_layers(network: Network, model: nn.Module) -> dict[str, ShrunkLayer]:
    """The layers of ``network`` that are smaller than in ``model``, of which it was made."""
    found = {}
    before = Network(model, ConstantChannels())
    for name in before.inputs:
        sizes, gone = [], []
        for first, left in ((before.filters, network.filters), (before.inputs, network.inputs)):
            sizes.append((len(first[name]), len(left[name])))
            gone.append(tuple(sorted({*first[name].tolist()} - {*left[name].tolist()})))
        if any(gone):
            found[name] = ShrunkLayer(*sizes, *gone)
    return found


def kept_channels(
    network: Network, model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[KeptChannels]:
    """The channels that ``masks`` set to 0 and that are still in ``network``, by layer and reason."""
    for name, module in model.named_modules():
        weight = masks.get(name, {}).get("weight")
        if weight is None or not is_weighted(module):
            continue
        read = links(module, weight != 0)
        by_reason: dict[tuple[str, str], list[int]] = defaultdict(list)
        for side, alive in (("filters", read.any(2)), ("inputs", read.any(1))):
            left = network.filters[name] if side == "filters" else network.inputs[name]
            for index in left[~alive.flatten().cpu()[left]].tolist():
                by_reason[side, _reason(network, name, side, index)].append(index)
        for (side, reason), indices in by_reason.items():
            yield KeptChannels(name, side, tuple(indices), reason)


def _reason(network: Network, name: str, side: str, index: int) -> str:
    if name not in network.still:
        return "the layer does not run in eval mode"
    obstacle = network.obstacles.get((name, side), {}).get(index)
    if obstacle is None:
        return "autograd's trace does not reach the layer" if side == "filters" else "no earlier layer produces them"
    if obstacle.structure:
        return obstacle.structure
    readers, alive = ([n for n in network.inputs if n in names] for names in (obstacle.readers, obstacle.alive))
    if side == "inputs":
        return f"still read by {_some(readers)}"
    others = [other for other in alive if other != name]
    if others and not obstacle.constant:
        return f"alive in {_some(others)}"
    what = "their constant reaches" if obstacle.constant else "they still carry something to"
    return f"{what} {_some(readers)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def log_report(report: SpeedupReport, network: Network) -> None:
    """Log a report at INFO; warn where nothing shrinks or a layer did not run."""
    _logger.info("speedup: %s", report)
    if report.layers:
        inside = [name for name, module in network.model.named_modules() if isinstance(module, nn.MultiheadAttention)]
        asleep = [n for n in network.inputs if n not in network.still and n.rpartition(".")[0] not in inside]
        if asleep:
            _logger.warning(
                "speedup: %s did not run in eval mode and may not fit the smaller layers before", _some(asleep)
            )
    else:
        why = "the masks leave no filter and no input channel wholly 0 (unstructured masks never do)"
        if report.kept:
            first = report.kept[0]
            why = f"every dead channel has to stay ({first.layer}: {first.reason})"
        _logger.warning("speedup: nothing shrinks: %s; the copy has its masks applied", why)
