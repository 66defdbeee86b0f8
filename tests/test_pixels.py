"""Radii against the range of pixels."""

from __future__ import annotations

import pytest

from pwoa_plugin._pixels import check_radius


@pytest.mark.parametrize(
    ("eps", "pixel_range", "message"),
    [
        (0.1, (1.0, 0.0), "pixel_range=.* is empty"),
        (1.0, (0.0, 1.0), r"eps=1 is outside \(0, 1\)"),
        (0.0, (0.0, 1.0), "eps=0 is outside"),
        (8 / 255, (0.0, 255.0), r"eps=0.03\d+ is next to nothing .*did you mean 8\?"),
    ],
)
def test_what_cannot_be_meant(eps: float, pixel_range: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_radius(eps, pixel_range)


def test_what_can() -> None:
    check_radius(None, (0.0, 1.0))
    check_radius(8 / 255, (0.0, 1.0))
    check_radius(8, (0.0, 255.0))
