"""What reports are made of: text, tables, plots and self-contained HTML pages."""

from .page import render
from .plots import Drawing, Drawn, Palette, SVGPlot, svg_plots, write_plots

__all__ = ["Drawing", "Drawn", "Palette", "SVGPlot", "render", "svg_plots", "write_plots"]
