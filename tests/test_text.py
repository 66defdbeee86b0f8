from __future__ import annotations

import pytest

from pwoa_plugin._text import did_you_mean, named, one_line, short, visible


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("") == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\rb\x85\x9b", r"a\rb\x85\x9b"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\udc80\u2028", r"\udc80\u2028"),
        ("plain\n\tÄ 中 👩‍🔬 e\u0301", "plain\n\tÄ 中 👩‍🔬 e\u0301"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown
    assert one_line(text) == " ".join(one_line(text).split())
    assert "\x1b" not in one_line(text)


def test_named() -> None:
    assert named(KeyError("a\n  b")) == r"KeyError: 'a\n b'"
    assert named(ValueError("a\n  b")) == "ValueError: a b"
    assert named(ValueError()) == "ValueError"
    assert len(named(ValueError("x" * 1000))) == 300
    assert named(ValueError("x" * 1000), 20) == "ValueError: xxxxxxxx"


def test_short() -> None:
    assert short({"a": 1}) == "{'a': 1}"
    assert len(short("x" * 1000)) <= 62
    assert len(short([["x" * 100] * 10] * 10)) == 100
    assert short([["x" * 100] * 10] * 10).endswith("...")


def test_did_you_mean() -> None:
    known = ["FGSM", "PGD-20", "PGD-40", "Square"]
    assert did_you_mean("fsgm", known) == "; did you mean FGSM?"
    assert did_you_mean("PGD20", known, most=2) == "; did you mean PGD-20 or PGD-40?"
    assert did_you_mean("nothing", known) == ""
    assert did_you_mean("nothing", known, "give FGSM") == "; give FGSM"
    assert did_you_mean(3, known, "give a name") == "; give a name"
