from __future__ import annotations

from pwoa_plugin._text import did_you_mean, named, one_line, short


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("") == ""


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
