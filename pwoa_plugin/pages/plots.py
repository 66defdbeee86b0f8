"""Plots as PNG files, and as SVG that takes the colours of the page it is in."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._files import named_path, replaced_whole

_LONGEST_NAME = 26


@dataclass(frozen=True)
class Palette:
    """matplotlib colours of text and axes, of lines in the background, and of the series."""

    ink: str
    muted: str
    series: tuple[str, ...]


_PNG = Palette("#1c2024", "#8a929a", ("#1f66a8", "#c2570c", "#1b7f4b", "#7b4ab5", "#a8326e", "#6b6f12"))
# Placeholders, replaced in the SVG by variables that the page defines for its light and its dark scheme.
_PAGE = Palette("#010101", "#010102", tuple(f"#0102{i:02x}" for i in range(6)))
_PAGE_COLOURS = {
    _PAGE.ink: "currentColor",
    _PAGE.muted: "var(--plot-muted)",
    **{colour: f"var(--plot-{i + 1})" for i, colour in enumerate(_PAGE.series)},
}


@dataclass(frozen=True)
class SVGPlot:
    """A plot for an HTML page: an ``<svg>`` element, or empty.

    The description is for those who cannot see the plot; without a plot, it says why there is none.
    """

    title: str
    description: str
    svg: str


#: A figure and its description, or None and why there is no figure.
Drawn = tuple[Any, str]

#: A plot's title, and the function that draws it in given colours.
Drawing = tuple[str, Callable[[Palette], Drawn]]


def svg_plots(drawings: Mapping[str, Drawing]) -> dict[str, SVGPlot]:
    """All plots by name. Equal drawings give equal text."""
    plots = {}
    for name, (title, draw) in drawings.items():
        with _style(name):
            figure, description = draw(_PAGE)
            plots[name] = SVGPlot(title, description, _svg(figure, name) if figure is not None else "")
    return plots


def write_plots(drawings: Mapping[str, Drawing], folder: str | os.PathLike[str]) -> list[Path]:
    """Write a PNG file, ``NAME.png``, for each plot that has data; the files' paths."""
    paths = []
    place = named_path("folder", folder)
    for name, (title, draw) in drawings.items():
        with _style(name):
            figure, _ = draw(_PNG)
            if figure is None:
                continue
            figure.suptitle(title, fontsize=12)
            path = place / f"{name}.png"
            with replaced_whole(path) as scratch:
                figure.savefig(scratch, format="png", dpi=200, facecolor="white", metadata={"Software": None})
            paths.append(path)
    return paths


@contextmanager
def _style(name: str) -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own settings would change the page
        mpl.rcParams.update(
            {
                "svg.hashsalt": name,
                "svg.fonttype": "none",
                "font.size": 10.5,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "legend.frameon": False,
                "lines.linewidth": 1.6,
                "lines.markersize": 4,
                "text.parse_math": False,
                "axes.unicode_minus": True,
            }
        )
        yield


def _svg(figure: Any, name: str) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)  # the page has its own
    text = re.sub(r"<defs>\s*</defs>", "", text)
    text = re.sub(r'\b(id|xlink:href|clip-path)="(url\(#|#)?', rf'\1="\2{name}-', text)
    text = text.replace("xlink:href=", "href=").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    text = re.sub(r"<svg [^>]*viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = re.sub(r"(font: [0-9.]+px|font-family:) [^;\"]*", r"\1 var(--plot-font, sans-serif)", text)
    for colour, css in _PAGE_COLOURS.items():
        text = text.replace(colour, css)
    return text.strip()


def axes(palette: Palette, height: float = 2.9, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, made without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, height), layout="constrained")
    made = figure.subplots(rows, **options)
    for ax in figure.axes:
        ax.tick_params(colors=palette.ink, which="both")
        ax.set_facecolor("none")
        for spine in ax.spines.values():
            spine.set_color(palette.muted)
        ax.xaxis.label.set_color(palette.ink)
        ax.yaxis.label.set_color(palette.ink)
    return figure, made


def legend(ax: Any, palette: Palette) -> None:
    longest = max(len(label) for label in ax.get_legend_handles_labels()[1])
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.12),  # above the names of the phases
        ncols=max(1, min(4, 56 // (longest + 5))),  # as many as fit side by side
        borderaxespad=0,
        labelcolor=palette.ink,
        handlelength=1.6,
        columnspacing=1.2,
    )


def percent_axis(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=None))


def short_percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def shortened(name: str) -> str:
    """The two ends of a long name; they tell layers apart."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2 - 1]}…{name[-_LONGEST_NAME // 2 :]}"
