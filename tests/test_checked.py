from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from pwoa_plugin._checked import Record, checked


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


class Box(Record):
    derived = ("area",)

    sides: tuple[int, ...]

    @property
    def area(self) -> int:
        return self.sides[0] * self.sides[1]


def test_a_record_has_its_derived_values_in_the_json_and_does_not_change() -> None:
    box = checked(Box, {"sides": [2, 3]}, "box")
    assert box.to_dict() == {"sides": [2, 3], "area": 6}
    assert box == Box(sides=(2, 3))
    with pytest.raises(ValidationError, match="frozen"):
        box.sides = (1, 1)
    with pytest.raises(ValueError, match=r"^box\.colour: "):
        checked(Box, {"sides": [2, 3], "colour": "red"}, "box")
