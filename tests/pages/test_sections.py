from __future__ import annotations

import io

from rich.console import Console

from pwoa_plugin.pages.sections import Block, Folded, Plots, Section, markdown_lines, show_sections
from pwoa_plugin.pages.table import Table

NUMBERS = Table("Numbers", ["name", "n"], [["a_b", "1"]])
SECTIONS = [
    Section("A *title*", ["Some_text", Plots(["loss"], beside=[NUMBERS, Folded("Config", Block("a: 1", "yaml"))])]),
    Section("Elsewhere", ["On pages."], brief=["In a terminal, [bold]plain[/bold]."]),
    Section("Pages only", ["Not here."], brief=()),
]


def test_markdown_has_every_part_but_plots() -> None:
    assert markdown_lines(SECTIONS) == [
        *("## A \\*title\\*", "", "Some\\_text", ""),
        *("| name | n |", "| --- | ---: |", "| a\\_b | 1 |", ""),
        *("Config:", "", "```yaml", "a: 1", "```", ""),
        *("## Elsewhere", "", "On pages.", ""),
        *("## Pages only", "", "Not here.", ""),
    ]


def test_a_terminal_shows_texts_and_tables_and_what_is_brief() -> None:
    file = io.StringIO()
    show_sections(SECTIONS, Console(file=file, width=30, color_system=None))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines == ["Some_text", "Numbers", "", " name   n", " ────────", " a_b    1", "", "", *lines[8:]]
    assert lines[8:] == ["In a terminal, [bold]plain[/bold].", ""]
