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
        ("a: !!python/object/apply:os.system ['echo hi']", "line 1: could not determine a constructor"),
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
