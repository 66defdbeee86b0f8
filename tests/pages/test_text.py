from __future__ import annotations

import pytest

from pwoa_plugin.pages.text import (
    duration,
    interval_text,
    markdown_block,
    markdown_code,
    markdown_plain,
    number,
    percent,
    shape_text,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.0), "0.00%"),
        (percent(0.00001), "0.001%"),
        (percent(0.12345), "12.35%"),
        (percent(None), "-"),
        (number(1234567.0), "1.235e+06"),
        (number(None), "-"),
        (size_text(999), "999 bytes"),
        (size_text(1000), "1 kB"),
        (size_text(999_600), "1 MB"),
        (size_text(1_669_928), "1.67 MB"),
        (size_text(102_228_128), "102 MB"),
        (duration(3.21), "3.2 s"),
        (duration(600), "10 min"),
        (duration(7380), "2 h 03 min"),
        (shape_text((32, 16, 5, 5)), "32x16x5x5"),
        (shape_text(()), "scalar"),
        (interval_text(0.5, 0.625), "50.00% to 62.50%"),
    ],
)
def test_numbers_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected


def test_nothing_in_plain_text_is_markdown() -> None:
    assert markdown_plain("<b> *a*\n# `c` [d](e) \\") == "\\<b\\> \\*a\\* \\# \\`c\\` \\[d\\](e) \\\\"


def test_code_ends_where_it_should() -> None:
    assert markdown_code("a `b`\nc") == "`a 'b' c`"
    assert markdown_code(" ") == ""
    assert markdown_block("x\n```\ny", "yaml") == ["````yaml", "x\n```\ny", "````"]
