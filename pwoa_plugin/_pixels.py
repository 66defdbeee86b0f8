"""Radii and the range of pixels."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ValidationInfo

from ._section import fraction
from ._text import short
from .errors import InputError

GREY_LEVEL = 1.001 / 255  # of the pixel range, and some rounding


def as_pixel_range(value: Any) -> tuple[float, float]:
    """``(low, high)`` of a valid image, from a tuple, list, array or tensor; InputError if it is none."""
    try:
        low, high = (float(bound) for bound in (() if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise InputError(f"pixel_range={short(value)}: give (low, high), such as (0, 1)") from None
    return low, high


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


def per_channel(name: str, value: Any) -> tuple[float, ...] | None:
    """One number for each channel, as a tuple.

    Args:
        name: of the field, for the message.
        value: a number, or a list, array or tensor ``(C,)``, ``(C, 1, 1)`` or ``(1, C, 1, 1)``; None stays.

    Raises:
        InputError: it has another shape, or holds anything but finite numbers.
    """
    if value is None:
        return None
    try:
        numbers = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if numbers.dtype.kind == "f":
            numbers = numbers.astype(str)  # a float32 0.485 is 0.485, and not 0.48500001
        numbers = numbers.astype(np.float64) if numbers.dtype.kind in "iuU" else np.full((), np.nan)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, objects
        numbers = np.full((), np.nan)
    if not np.isfinite(numbers).all() or not numbers.size:
        raise InputError(f"{name}={short(value)} is not one number for each channel; give such as [0.5, 0.5, 0.5]")
    if max(numbers.shape, default=1) != numbers.size:
        raise InputError(f"{name} has the shape {numbers.shape}; give one number for each channel")
    return tuple(numbers.reshape(-1).tolist())


def _check_field(value: Any, info: ValidationInfo) -> tuple[float, ...] | None:
    return per_channel(str(info.field_name), value)


#: A field of a section: the range of pixels, in any form that `as_pixel_range` reads.
PixelRange = Annotated[tuple[float, float], BeforeValidator(as_pixel_range)]

#: A field of a section: one number for each channel, in any form that `per_channel` reads.
PerChannel = Annotated[tuple[float, ...], BeforeValidator(_check_field)]
