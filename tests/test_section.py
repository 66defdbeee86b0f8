"""What sections of a config are built of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from pwoa_plugin._section import ConfigError, Names, Pixels, Section, as_section, check_options, fraction, key_of

TABLE = {"one": 1, "two": 2}


class Inner(Section):
    size: int = 3
    kind: Annotated[str, key_of(TABLE)] = "one"


class Outer(Section):
    inner: Inner = Inner()
    eps: Pixels | None = None
    layers: Names = ()


def test_a_nested_field_is_named_with_its_sections() -> None:
    with pytest.raises(ConfigError, match=r"^inner.size='x': input should be a valid integer"):
        Outer(inner={"size": "x"})
    with pytest.raises(ConfigError, match=r"^inner.kind='three' is unknown; use one of one, two$"):
        Outer(inner={"kind": "three"})
    with pytest.raises(ConfigError, match=r"^iner: unknown key; did you mean inner\?$"):
        Outer(iner={})


def test_several_faults_are_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        Outer(inner={"size": "x", "kind": "three"}, depth=2)
    assert len(caught.value.lines) == 3
    assert "\n" not in str(caught.value)


def test_whether_any_option_is_set() -> None:
    assert not Outer().is_set
    assert Outer(eps="8/255").is_set
    assert Outer(eps="8/255").eps == 8 / 255
    assert Outer(layers="fc").layers == ("fc",)


def test_a_section_as_an_object_a_dict_or_left_out() -> None:
    given = Inner(size=4)
    assert as_section(Inner, given, "inner") is given
    assert as_section(Inner, {"size": 4}, "inner") == given
    assert as_section(Inner, None, "inner") == Inner()
    with pytest.raises(ValueError, match=r"^inner.sise: unknown key; did you mean size\?"):
        as_section(Inner, {"sise": 4}, "inner")


def test_options_are_those_of_the_class() -> None:
    class Made:
        def __init__(self, *, radius: float, scale: int = 1) -> None:
            if scale < 1:
                raise ValueError(f"scale={scale} is below 1")

    check_options(Made, {"scale": 2}, radius=0.0)
    with pytest.raises(ValueError, match=r"^options: Made has no option 'scales'; it has scale$"):
        check_options(Made, {"scales": 2}, radius=0.0)
    with pytest.raises(ValueError, match=r"^options: scale=0 is below 1$"):
        check_options(Made, {"scale": 0}, radius=0.0)


@pytest.mark.parametrize(("given", "expected"), [("8/255", 8 / 255), ("8 / 0", "8 / 0"), (0.3, 0.3), ("x", "x")])
def test_fractions(given: object, expected: object) -> None:
    assert fraction(given) == expected


class Numbers(Section):
    count: int = 1
    share: float | None = None
    factors: tuple[Annotated[float, Field(ge=0)], ...] = ()
    eps: Pixels | None = None
    channels: Literal[1, 3] = 3
    either: bool = True
    anything: Any = None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"count": True}, "count=True: give a number, not true or false"),
        ({"share": False}, "share=False: give a number"),
        ({"factors": [1.0, True]}, r"factors=\[1.0, True\]: give a number"),
        ({"channels": True}, "channels=True: give a number"),
        ({"eps": True}, "eps=True: give a number"),
        ({"count": 10**30}, "count=1000000000000000000000000000000 is too large"),
        ({"count": -(2**60)}, "count=-1152921504606846976 is too large"),
        ({"count": 10**5000}, "count"),
        ({"share": 1e-300}, "share=1e-300: give 0, or a number between 1e-37 and 1e"),
        ({"share": 5e-324}, "share=5e-324: give 0"),
        ({"share": -1e300}, "share=-1e.300: give 0"),
        ({"factors": [1e300]}, "factors=.1e.300.*: give 0"),
        ({"eps": "1/1" + "0" * 300}, "eps=1e-300: give 0"),
        ({"share": float("inf")}, "share=inf: input should be a finite number"),
        ({"share": float("nan")}, "share=nan: input should be a finite number"),
    ],
)
def test_numbers_that_no_field_can_mean(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        Numbers(**fields)


def test_numbers_that_a_field_can_mean() -> None:
    got = Numbers(
        count=0, share=0, factors=[1e-12, 1e12], eps="8/255", channels=1, either=True, anything=[True, 1e-300]
    )
    assert got.factors == (1e-12, 1e12)
