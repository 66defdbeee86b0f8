from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pwoa_plugin._checked import checked


@dataclass
class Point:
    x: int


def nested(depth: int) -> Any:
    return {f"key {i}" * 5: nested(depth - 1) for i in range(4)} if depth else 1.5


def test_the_first_field_that_is_off_is_named() -> None:
    assert checked(Point, {"x": 3}, "point") == Point(3)
    with pytest.raises(ValueError, match=r"^point\.x: 'a': input should be a valid integer$"):
        checked(Point, {"x": "a"}, "point")
    with pytest.raises(ValueError, match=r"^point\.x: is missing$"):
        checked(Point, {}, "point")


@pytest.mark.parametrize("value", [nested(5), "a" * 1000, ["b" * 30] * 50], ids=["nested", "text", "list"])
def test_a_value_is_shown_in_short(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^point\.x: .*\.\.\..*: input should be a valid integer$") as caught:
        checked(Point, {"x": value}, "point")
    assert len(str(caught.value)) < 150
