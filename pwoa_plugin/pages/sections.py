"""What a report says, section by section: written once for Markdown, HTML pages and terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._text import visible
from .table import Table
from .text import markdown_block, markdown_plain

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Block:
    """Text that is kept as it is: a command, or YAML. A terminal does not show it."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Plots:
    """Plots by name, which only pages have, and the parts beside them."""

    names: Sequence[str]
    beside: Sequence[Part] = ()


@dataclass(frozen=True)
class Folded:
    """A part that a page shows on a click, and a terminal does not show."""

    summary: str
    part: Part


#: A string is a paragraph.
Part = str | Table | Block | Plots | Folded


@dataclass(frozen=True)
class Section:
    """A section of a report. A terminal shows ``brief`` in place of ``parts``, unless it is None, and no title."""

    title: str
    parts: Sequence[Part]
    brief: Sequence[Part] | None = None


def markdown_lines(sections: Iterable[Section]) -> list[str]:
    """The sections as Markdown (GitHub's)."""
    lines: list[str] = []
    for section in sections:
        lines += [f"## {markdown_plain(section.title)}", ""]
        for part in section.parts:
            lines += _markdown(part)
    return lines


def _markdown(part: Part) -> list[str]:
    """The part's lines, and an empty one after them."""
    match part:
        case str():
            return [markdown_plain(part), ""]
        case Table():
            return [*part.to_markdown(), ""]
        case Block():
            return [*markdown_block(part.text, part.language), ""]
        case Plots():
            return [line for inner in part.beside for line in _markdown(inner)]
        case Folded():
            return [f"{markdown_plain(part.summary)}:", "", *_markdown(part.part)]


def show_sections(sections: Iterable[Section], console: Console) -> None:
    """Print the texts and tables of the sections."""
    for section in sections:
        parts = section.parts if section.brief is None else section.brief
        for part in parts:
            for shown in part.beside if isinstance(part, Plots) else (part,):
                if isinstance(shown, Table):
                    shown.show(console)
                elif isinstance(shown, str):
                    say(shown, console)
        if parts:
            console.print()


def say(text: str, console: Console, style: str = "") -> None:
    """Print a line. Long lines are broken only for a terminal."""
    from rich.text import Text

    console.print(Text(visible(text), style=style), highlight=False, soft_wrap=not console.is_terminal)
