"""What `speedup` removed, what it kept, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KeptChannels", "ShrunkLayer", "SpeedupReport"]


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
    """Channels that a mask has dead, and that stay.

    Attributes:
        layer: whose mask it is.
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
        kept: channels that masks have dead, and that stay.
        zeroed: ``{parameter: channels}`` whose constants were set to 0 (``zero_constants=True``).
        output_change: what that changed in the output: largest absolute difference over the largest absolute value.
        error: the same between the small model and the masked one (constants zeroed), as measured.
        parameters: before and after.
        history: Torch-Pruning's pruning history, ``(layer, of its filters?, indices)``; replayed on the model as it was
            by ``DependencyGraph.load_pruning_history``, it gives the small one's shapes.
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
