from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pwoa_plugin._yaml import YAMLError, dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),  # YAML 1.1 says 124
        ("1e-3", 0.001),  # YAML 1.1 says text
        ("no", "no"),
        ("on", "on"),
        ("012", 12),
        ("0x1F", 31),
        ("8/255", "8/255"),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("true", True),
        ("", None),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("[1, {a: 2}]", [1, {"a": 2}]),
        ("0o17", 15),
        ("<<", "<<"),
        ("[" * 99 + "]" * 99, json.loads("[" * 99 + "]" * 99)),
    ],
)
def test_values_as_people_mean_them(text: str, value: Any) -> None:
    got = parse_yaml(f"k: {text}")["k"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x", "line 2: aliases are not read"),
        ("a: 1\nb: 2\na: 3", 'line 3: found duplicate key "a"'),
        ("a: !!python/object/apply:os.system ['echo hi']", "line 1: tag !!python/object/apply:os.system"),
        ("a: 1\nb: !!bool x", "line 2: 'x' is no bool; leave !!bool out"),
        ('!!float ""', "line 1: '' is no float"),
        ('!!int ""', "line 1: '' is no int"),
        ("!!int 0b1", "line 1: '0b1' is no int"),
        ("!!null x", "line 1: 'x' is no null"),
        ("!!int [a]", "line 1: expected a scalar"),
        ("!!timestamp abc", "line 1: tag !!timestamp is not read; write plain data"),
        ("a: !!timestamp 2020-01-01", "line 1: tag !!timestamp is not read"),
        ("!!set {a}", "line 1: tag !!set is not read"),
        ("!!binary aGk=", "line 1: tag !!binary is not read"),
        ("!!omap [a: 1]", "line 1: tag !!omap is not read"),
        ("!own x", "line 1: tag !own is not read"),
        ('a: 1\nb: "\\U99999999"', "line 2: an escape .* stands for no character"),
        ("a: " + "1" * 5000, "line 1: .* has too many digits"),
        ("a: 0x" + "f" * 5000, "line 1: .* has too many digits"),
        ("a: 1\nb: \x1b[31m", "line 2: character #x001b: special characters"),
        (b"a: 1\nb: \xe9", "line 2: is not text .*; save the file as UTF-8"),
        (b"\xff\xfea", "line 1: is not text .*; save the file as UTF-8"),
        ("a: [", "line 1: expected"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: \x00", "special characters"),
        (b"\xff\xfe\x00", "."),
        ("[" * 5000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("? [a]\n: 1", "line 1: key .'a',. is not text"),
        ("? - - a", "line 1: key ..'a'.,. is not text"),
        ("a: {1: 2}", "line 1: key 1 is not text; quote it"),
    ],
)
def test_what_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(YAMLError, match=said) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    assert parse_yaml("a: gr\u00fcn".encode(encoding)) == {"a": "gr\u00fcn"}


def test_tags_of_plain_data_may_be_explicit() -> None:
    text = "{a: !!str 1, b: !!int 1, c: !!float 1.5, d: !!bool true, e: !!seq [1], f: !!map {}, g: !!null null}"
    assert parse_yaml(text) == {"a": "1", "b": 1, "c": 1.5, "d": True, "e": [1], "f": {}, "g": None}


words = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")))  # names and paths, no control characters
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


def test_an_object_that_comes_twice_is_written_twice() -> None:
    radii = [1, 2]
    assert parse_yaml(dump_yaml({"a": radii, "b": radii})) == {"a": radii, "b": radii}


@given(plain)
def test_round_trip_here_and_in_readers_of_yaml_1_1(value: Any) -> None:
    text = dump_yaml(value)
    assert parse_yaml(text) == value
    assert yaml.safe_load(text) == value
