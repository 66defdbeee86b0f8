"""What ``pwoa show`` prints of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..pages.text import duration, interval_text, number, percent
from .report import (
    COST_HEADER,
    LAYER_HEADER,
    SIZE_HEADER,
    RunReport,
    best_text,
    cost_note,
    cost_rows,
    headline,
    judged_text,
    layer_rows,
    size_note,
    size_rows,
    term_names,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show"]

_SHORTEST_NAME = 12  # columns of a terminal that names are folded to, where it is narrow
_ENDLESS = 100_000


def show(report: RunReport, console: Console) -> None:
    """Print a run: headline, remarks, layers, loss, validation, size, robustness.

    A table that is wider than the console is printed whole; long names are folded, numbers are not.

    Args:
        report: the run.
        console: where to; its width and colours are kept to.
    """

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), highlight=False, soft_wrap=not console.is_terminal)

    def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)) -> None:
        lines = [[" ".join(cell.split()) for cell in row] for row in (header, *rows)]
        made = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(zip(*lines, strict=True)):
            longest = max(map(cell_len, column))
            made.add_column(
                Text(column[0]),
                justify="left" if i in left else "right",
                overflow="fold",
                min_width=min(longest, _SHORTEST_NAME) if i == 0 else longest,
            )
        for line in lines[1:]:
            made.add_row(*map(Text, line))
        whole = Measurement.get(console, console.options.update(max_width=_ENDLESS), made).maximum
        names = max(cell_len(line[0]) for line in lines)
        made.width = min(whole, max(console.width, whole - names + min(names, _SHORTEST_NAME)))
        console.print(made, crop=False, highlight=False)

    say(f"{report.name}: {report.status}, {report.model.arch} on {report.device}, {duration(report.seconds)}", "bold")
    for line in headline(report):
        say(line)
    for remark in report.remarks():
        say(f"note: {remark}", "yellow")
    console.print()

    # Why a layer is dense is among the remarks in words, and here in full below the numbers.
    table(
        f"Layers ({report.allocation}, {report.granularity}, {percent(report.sparsity)} pruned)",
        LAYER_HEADER[:-1],
        [row[:-1] for row in layer_rows(report)],
        left=(0, 1),
    )
    for layer in report.layers:
        if layer.dense_because:
            say(f"{layer.name} stays dense: {layer.dense_because}")

    phases = {epoch.phase: epoch for epoch in report.epochs}  # the last of each
    if phases:
        terms = ("loss", *term_names(report))
        rows = [
            (name, *(number(e.loss if name == "loss" else e.terms.get(name)) for e in phases.values()))
            for name in terms
        ]
        table("Loss, last epoch of a phase", ("term", *(f"{e.phase} {e.epoch}" for e in phases.values())), rows)
    else:
        say("No epoch has ended yet.")
    if report.residual is not None:
        say(f"ADMM residual |W - Z| / |W| at the hard prune: {number(report.residual)}")
    if report.validation:
        validation = report.validation
        say(f"Validation: {validation.images:,} images, dense network {percent(validation.dense_clean)} clean.")
    if report.best:
        say(best_text(report))
    console.print()

    if report.cost:
        table("Before and after", COST_HEADER, cost_rows(report))
        say(cost_note(report.cost))
        console.print()

    if report.size:
        table("Size", SIZE_HEADER, size_rows(report.size), left=(0, 5))
        say(size_note(report.size))
        console.print()

    if not report.judged:
        return  # how to judge is among the remarks
    for which, judged in report.judged.items():
        rows = [("clean", percent(judged.clean), interval_text(*judged.clean_interval), "")]
        for name, column in [*judged.attacks.items(), ("worst case", judged.worst_case)]:
            rows.append((name, percent(column.accuracy), interval_text(*column.interval), f"{column.seconds:.1f}"))
        table(f"Robustness, {which}", ("attack", "accuracy", "95 % interval", "seconds"), rows)
    say(judged_text(next(iter(report.judged.values()))))
    if report.verdict:
        say(report.verdict)
