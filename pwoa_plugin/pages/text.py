"""Numbers as text, and text as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .._text import one_line


def percent(share: float | None) -> str:
    """A share as a percentage with two decimals, or two digits where that would be 0.00."""
    if share is None:
        return "-"
    return f"{share:.2%}" if share == 0 or share >= 5e-4 else f"{100 * share:.2g}%"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def size_text(count: int) -> str:
    """Bytes with a decimal unit and three digits."""
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{count:,} bytes" if unit == "bytes" else f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def shape_text(shape: Iterable[int]) -> str:
    """``32x16x5x5``"""
    return "x".join(map(str, shape)) or "scalar"


def interval_text(low: float, high: float) -> str:
    return f"{low:.2%} to {high:.2%}"


def markdown_block(text: str, language: str = "") -> list[str]:
    """Text in a fence that is longer than any fence within."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [fence + language, text, fence]


def markdown_code(text: str) -> str:
    return f"`{one_line(text.replace('`', chr(39)))}`" if text.strip() else ""


def markdown_plain(text: str) -> str:
    """Text with Markdown and HTML escaped, on one line."""
    text = one_line(text)
    for mark in "\\`*_[]<>#":
        text = text.replace(mark, f"\\{mark}")
    return text
