"""Radii and the range of pixels."""

from __future__ import annotations

from typing import Any

from ._section import fraction
from .errors import InputError

GREY_LEVEL = 1.001 / 255  # of the pixel range, and some rounding


def check_radius(eps: float | None, pixel_range: tuple[float, float]) -> None:
    """Check the radius of a training run against the range of pixels.

    Args:
        eps: in the units of ``pixel_range``; None where it is not known.
        pixel_range: ``(low, high)`` of a valid image.

    Raises:
        InputError: the range is empty, or ``eps`` is not inside ``(0, high - low)`` or is of other units.
    """
    low, high = pixel_range
    if not low < high:
        raise InputError(f"pixel_range={pixel_range} is empty; give (low, high) with low < high")
    if eps is None:
        return
    if not 0 < eps < high - low:
        raise InputError(f"eps={eps:g} is outside (0, {high - low:g}); eps is in pixel units, such as 8/255")
    refuse_radius_of_other_pixels(eps, pixel_range)


def positive_pixels(name: str, value: Any) -> float:
    """A radius or a step in pixel units, also as text such as ``8/255``.

    Args:
        name: of the field, for the message.
        value: what the user gave.

    Raises:
        InputError: it is not a positive, finite number.
    """
    try:
        number = float(fraction(value))
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if not 0 < number < float("inf") or isinstance(value, bool):
        raise InputError(f"{name}={value!r} is not a positive number; give it in pixel units, such as 8/255")
    return number


def refuse_radius_of_other_pixels(eps: float, pixel_range: tuple[float, float]) -> None:
    """Refuse a radius for pixels in [0, 1] where the pixels are in [0, 255].

    Raises:
        InputError: pixels span 100 or more, and ``eps`` is less than a tenth.
    """
    span = pixel_range[1] - pixel_range[0]
    if span >= 100 and eps < 0.1:
        raise InputError(
            f"eps={eps:g} is next to nothing in pixel_range={pixel_range}; give it in the units of the pixels "
            f"(did you mean {span * eps:g}?)"
        )
