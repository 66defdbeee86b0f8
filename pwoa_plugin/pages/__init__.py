"""What reports are made of: text, tables, sections, plots and self-contained HTML pages."""

from .page import render
from .plots import Drawing, Drawn, Palette, SVGPlot, svg_plots, write_plots
from .table import Cell, Table

__all__ = ["Cell", "Drawing", "Drawn", "Palette", "SVGPlot", "Table", "render", "svg_plots", "write_plots"]
