"""Lists and dicts that a notebook shows as tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ._text import visible

if TYPE_CHECKING:
    from .method.allocation import LayerAllocation
    from .pages import Table


def fragment(*parts: str | Table | Sequence[str]) -> str:
    """HTML for a notebook: paragraphs, tables and lists, with all text escaped."""
    made = []
    for part in parts:
        if isinstance(part, str):
            made.append(f"<p>{_text(part)}</p>")
        elif isinstance(part, Sequence):
            made.append(f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in part)}</ul>" if part else "")
        else:
            made.append(part.to_html())
    return "\n".join(made)


def _text(text: str) -> str:
    return escape(visible(text)).replace("\n", "<br>")


class History(list[dict[str, object]]):
    """A dict per epoch."""

    def _repr_html_(self) -> str:
        from .pages import Table
        from .pages.text import number

        names = list(dict.fromkeys(name for epoch in self for name in epoch))
        rows = [[_cell(epoch.get(name), number) for name in names] for epoch in self]
        return fragment(Table("Epochs", names, rows)) if names else fragment("No epoch has ended yet.")


def _cell(value: Any, number: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)


class Allocations(dict[str, "LayerAllocation"]):
    """What each layer keeps, by its name."""

    def _repr_html_(self) -> str:
        from .pages import Table
        from .pages.text import percent, shape_text

        kept = {name: round(layer.weights * layer.density) for name, layer in self.items()}
        rows = [
            [
                name,
                shape_text(layer.shape),
                f"{layer.weights:,}",
                f"{kept[name]:,}",
                percent(layer.density),
                layer.dense_because or "",
            ]
            for name, layer in self.items()
        ]
        total, left = sum(layer.weights for layer in self.values()), sum(kept.values())
        rows.append(["total", "", f"{total:,}", f"{left:,}", percent(left / total if total else None), ""])
        header = ("layer", "shape", "weights", "kept", "density", "dense because")
        return fragment(Table("Allocation", header, rows, left=(0, 1, 5), foot=True))
