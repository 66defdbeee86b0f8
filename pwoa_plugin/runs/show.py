"""What ``pwoa show`` prints of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..pages.sections import say, show_sections
from ..pages.text import duration
from .report import RunReport, headline
from .sections import sections

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show"]


def show(report: RunReport, console: Console) -> None:
    """Print a run: headline, remarks, and the sections in brief.

    A table that is wider than the console is printed whole; long names are folded, numbers are not.

    Args:
        report: the run.
        console: where to; its width and colours are kept to.
    """
    say(
        f"{report.name}: {report.status}, {report.model.arch} on {report.device}, {duration(report.seconds)}",
        console,
        "bold",
    )
    for line in headline(report):
        say(line, console)
    for remark in report.remarks:
        say(f"note: {remark}", console, "yellow")
    console.print()
    show_sections(sections(report), console)
