"""The report of a run as Markdown, as one self-contained HTML page, and in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..pages import render, svg_plots
from ..pages.sections import markdown_lines, say, show_sections
from ..pages.text import duration, interval_text, markdown_plain
from .headline import headline
from .plots import drawings
from .report import RunReport
from .sections import sections

if TYPE_CHECKING:
    from rich.console import Console


def to_markdown(report: RunReport) -> str:
    """The report as Markdown (GitHub's), without plots."""
    lines = [f"# {markdown_plain(report.name)}", "", *map(markdown_plain, headline(report)), ""]
    for title, said in (("Before you rely on it:", report.warnings), ("Also:", report.information)):
        lines += [title, "", *(f"- {markdown_plain(remark)}" for remark in said), ""] if said else []
    return "\n".join([*lines, *markdown_lines(sections(report))]).rstrip() + "\n"


def to_html(report: RunReport) -> str:
    """The report as one HTML page that needs no other file, no script and no network."""
    return render(
        __package__,
        "report.html.j2",
        report=report,
        pruned=report.judged.get("pruned"),
        dense=report.judged.get("dense"),
        interval=interval_text,
        sections=sections(report),
        plots=svg_plots(drawings(report)),
    )


def show(report: RunReport, console: Console) -> None:
    """Print the report to a console: headline, remarks, and the sections in brief.

    A table that is wider than the console is printed whole; long names are folded, numbers are not.
    """
    how = f"{report.status}, {report.model.arch} on {report.device}, {duration(report.seconds)}"
    say(f"{report.name}: {how}", console, "bold")
    for line in headline(report):
        say(line, console)
    for warning in report.warnings:
        say(f"warning: {warning}", console, "yellow")
    for remark in report.information:
        say(f"note: {remark}", console)
    console.print()
    show_sections(sections(report), console)
