from __future__ import annotations

import io
import re

import pytest
from pages.parsed import Page
from rich.console import Console

from pwoa_plugin.pages import Table

SIZES = Table(
    "Size",
    ("layer", "weights", "format"),
    [("conv1", "1,152", "csr"), ("a|`b`\n<i>*c*", "12", "tied to [x]"), ("all, with the rest dense", "1,164", "")],
    left=(0, -1),
    foot=True,
    code=True,
)
JUDGED = Table(
    "Robustness", ("attack", ("pruned", "95 % interval"), "seconds"), [("PGD", ("50.00%", "40% to 60%"), "1.0")]
)


def shown(table: Table, width: int = 80) -> str:
    file = io.StringIO()
    table.show(Console(file=file, width=width, color_system=None))
    return file.getvalue()


def test_markdown_escapes_and_sets_names_as_code() -> None:
    assert SIZES.to_markdown() == [
        "| layer | weights | format |",
        "| --- | ---: | --- |",
        "| `conv1` | 1,152 | csr |",
        "| `a\\|'b' <i>*c*` | 12 | tied to \\[x\\] |",
        "| all, with the rest dense | 1,164 |  |",
    ]


def test_small_print_has_a_column_where_the_header_names_it_and_else_brackets() -> None:
    assert JUDGED.to_markdown() == [
        "| attack | pruned | 95 % interval | seconds |",
        "| --- | ---: | ---: | ---: |",
        "| PGD | 50.00% | 40% to 60% | 1.0 |",
    ]
    unnamed = Table("Compared", ("model", "clean"), [("dense", ("50.00%", "40% to 60%")), ("pruned", "-")])
    assert unnamed.to_markdown()[2:] == ["| dense | 50.00% (40% to 60%) |", "| pruned | - |"]


def test_text_is_aligned_and_no_line_ends_in_spaces() -> None:
    table = Table("Size", ("layer", "weights", ""), [("conv\n1", "1,152", "csr"), ("fc", "12", "")], left=(0, 2))
    assert table.to_text() == "layer   weights\nconv 1    1,152  csr\nfc           12"


def test_html_is_escaped_labelled_and_has_heads_and_a_foot() -> None:
    text = SIZES.to_html()
    page = Page(text)
    assert {tag for tag, _ in page.tags} == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.attributes("aria-label") == ["Size"]
    assert page.attributes("scope") == ["col"] * 3 + ["row"] * 3
    assert "a|`b`\n<i>*c*" in page.text("th")
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "tr"] == [None] * 3 + ["foot"]
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "td"] == [None, "left"] * 3
    assert Page(JUDGED.to_html()).text("small").split("\n") == ["95 % interval", "40% to 60%"]
    hostile = Page(Table("<script>\"'", ["<script>"], [["</td>"]]).to_html())
    assert hostile.attributes("aria-label") == ["<script>\"'"]
    assert hostile.text("th").split() == ["<script>", "</td>"]


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_terminal_shows_numbers_whole_and_folds_names(width: int) -> None:
    name = "backbone.layer3.22.conv2.parametrizations.the_longest_name_of_all"
    text = shown(Table("Sizes", ("layer", "weights"), [(name, "1,234,567"), ("[bold]fc[/bold]", "8")]), width)
    assert re.search(r"\b1,234,567\b", text)
    assert "…" not in text
    assert "[bold]fc" in text
    if width == 80:
        assert max(map(len, text.splitlines())) <= 80
    lines = [line.split("  ")[0].strip() for line in text.splitlines()]
    assert name in "".join(line.removesuffix("1,234,567").strip() for line in lines)
