"""The report of a run as Markdown and as one self-contained HTML page."""

from __future__ import annotations

from ..pages import render, svg_plots
from ..pages.sections import markdown_lines
from ..pages.text import interval_text, markdown_plain
from .plots import drawings
from .report import RunReport, headline
from .sections import sections

__all__ = ["to_html", "to_markdown"]


def to_markdown(report: RunReport) -> str:
    """The report as Markdown (GitHub's), without plots."""
    lines = [f"# {markdown_plain(report.name)}", "", *map(markdown_plain, headline(report)), ""]
    lines += [f"- {markdown_plain(remark)}" for remark in report.remarks]
    return "\n".join([*lines, "", *markdown_lines(sections(report))]).rstrip() + "\n"


def to_html(report: RunReport) -> str:
    """The report as one HTML page that needs no other file, no script and no network."""
    return render(
        __package__,
        "report.html.j2",
        report=report,
        size=report.size,
        pruned=report.judged.get("pruned"),
        dense=report.judged.get("dense"),
        interval=interval_text,
        sections=sections(report),
        plots=svg_plots(drawings(report)),
    )
