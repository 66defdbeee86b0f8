"""A table, as Markdown, HTML, plain text and in a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from .._text import visible
from .text import markdown_code, markdown_plain

if TYPE_CHECKING:
    from rich.console import Console

#: A text, or a text and its small print (an interval, say).
Cell = str | tuple[str, str]

_SHORTEST_NAME = 12  # columns that a narrow terminal leaves for names
_ENDLESS = 100_000


@dataclass(frozen=True)
class Table:
    """A table. Cells hold plain text; each renderer escapes what it has to.

    Small print is a second line in HTML. Elsewhere it gets a column of its own where the header's cell has small print
    too, and stands in brackets after the text where it has none.

    Attributes:
        left: columns that are aligned left, by index; negative ones count from the end. Numbers stand on the right.
        foot: whether the last row holds totals.
        code: whether the first column holds names from code (its totals apart), which Markdown sets as code.
    """

    title: str
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    left: Collection[int] = (0,)
    foot: bool = False
    code: bool = False

    def _is_left(self, column: int) -> bool:
        return column in self.left or column - len(self.header) in self.left

    def to_markdown(self) -> list[str]:
        """Lines of a Markdown table (GitHub's), without the title."""
        header, *rows = self._lines()
        sides = ["---" if left else "---:" for left in self._sides()]
        lines = [[markdown_plain(cell) for cell in header], sides]
        for i, row in enumerate(rows):
            is_code = self.code and not (self.foot and i == len(rows) - 1)
            lines.append([(markdown_code if is_code else markdown_plain)(row[0]), *map(markdown_plain, row[1:])])
        return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]

    def to_html(self) -> str:
        """A ``<table>`` in a box that scrolls; the title is the box's label."""
        lines = [
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(visible(self.title))}">',
            "<table>",
            f"<thead>{self._html_row(self.header, 'col')}</thead>",
            "<tbody>",
        ]
        for i, row in enumerate(self.rows):
            lines.append(self._html_row(row, "row", foot=self.foot and i == len(self.rows) - 1))
        return "\n".join([*lines, "</tbody>", "</table>", "</div>"])

    def to_text(self) -> str:
        """Lines of aligned columns, without the title."""
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if left else cell.rjust(width)
                for cell, width, left in zip(line, widths, self._sides(), strict=True)
            ).rstrip()
            for line in lines
        )

    def show(self, console: Console) -> None:
        """Print the table under its title. Where it is too wide, names are folded; numbers never are."""
        from rich import box
        from rich.cells import cell_len
        from rich.measure import Measurement
        from rich.table import Table as RichTable
        from rich.text import Text

        lines, sides = [[*map(visible, line)] for line in self._lines()], self._sides()
        made = RichTable(
            title=Text(visible(self.title)),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for i, column in enumerate(zip(*lines, strict=True)):
            longest = max(map(cell_len, column))
            made.add_column(
                Text(column[0]),
                justify="left" if sides[i] else "right",
                overflow="fold",
                min_width=min(longest, _SHORTEST_NAME) if i == 0 else longest,
            )
        for line in lines[1:]:
            made.add_row(*map(Text, line))
        whole = Measurement.get(console, console.options.update(max_width=_ENDLESS), made).maximum
        names = max(cell_len(line[0]) for line in lines)
        made.width = min(whole, max(console.width, whole - names + min(names, _SHORTEST_NAME)))
        console.print(made, crop=False, highlight=False)

    def _lines(self) -> list[list[str]]:
        """Header and rows as text, on one line each, with small print in columns of its own or in brackets."""
        own = [isinstance(cell, tuple) for cell in self.header]
        lines = []
        for row in (self.header, *self.rows):
            line: list[str] = []
            for cell, has_own in zip(row, own, strict=True):
                text, small = _parts(cell)
                line += [text, small] if has_own else [f"{text} ({small})" if small else text]
            lines.append([" ".join(text.split()) for text in line])
        return lines

    def _sides(self) -> list[bool]:
        """Of each column that `_lines` makes, whether it is aligned left."""
        sides: list[bool] = []
        for i, cell in enumerate(self.header):
            sides += [self._is_left(i)] * (2 if isinstance(cell, tuple) else 1)
        return sides

    def _html_row(self, cells: Sequence[Cell], scope: str, foot: bool = False) -> str:
        made = ""
        for i, cell in enumerate(cells):
            head = scope == "col" or i == 0
            opened = f'th scope="{scope}"' if head else "td"
            side = ' class="left"' if self._is_left(i) else ""
            text, small = map(escape, _parts(cell))
            small = f" <small>{small}</small>" if small else ""
            made += f"<{opened}{side}>{text}{small}</{'th' if head else 'td'}>"
        return f'<tr class="foot">{made}</tr>' if foot else f"<tr>{made}</tr>"


def _parts(cell: Cell) -> tuple[str, str]:
    text, small = cell if isinstance(cell, tuple) else (cell, "")
    return visible(text), visible(small)
