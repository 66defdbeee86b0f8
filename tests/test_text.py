from __future__ import annotations

from pwoa_plugin._text import named, one_line


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("") == ""


def test_named() -> None:
    assert named(KeyError("a\n  b")) == r"KeyError: 'a\n b'"
    assert named(ValueError("a\n  b")) == "ValueError: a b"
    assert named(ValueError()) == "ValueError"
    assert len(named(ValueError("x" * 1000))) == 300
    assert named(ValueError("x" * 1000), 20) == "ValueError: xxxxxxxx"
