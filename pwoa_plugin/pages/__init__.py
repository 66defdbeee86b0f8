"""What reports are made of: text, tables, sections, plots and self-contained HTML pages."""

from .page import render
from .plots import Drawing, Drawn, Palette, SVGPlot, svg_plots, write_plots
from .sections import Block, Facts, Folded, Note, Part, Plots, Section, say, show_sections, to_markdown
from .table import Cell, Table

__all__ = [
    "Block",
    "Cell",
    "Drawing",
    "Drawn",
    "Facts",
    "Folded",
    "Note",
    "Palette",
    "Part",
    "Plots",
    "SVGPlot",
    "Section",
    "Table",
    "render",
    "say",
    "show_sections",
    "svg_plots",
    "to_markdown",
    "write_plots",
]
