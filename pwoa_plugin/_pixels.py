"""Radii and the range of pixels."""

from __future__ import annotations

from .errors import InputError

__all__ = ["GREY_LEVEL", "refuse_radius_of_other_pixels"]

GREY_LEVEL = 1.001 / 255  # of the pixel range, and some rounding


def refuse_radius_of_other_pixels(eps: float, pixel_range: tuple[float, float]) -> None:
    """Refuse a radius that is meant for pixels in [0, 1] where they are in [0, 255].

    Raises:
        ValueError: pixels span 100 or more, and ``eps`` is less than a tenth.
    """
    span = pixel_range[1] - pixel_range[0]
    if span >= 100 and eps < 0.1:
        raise InputError(
            f"eps={eps:g} is next to nothing in pixel_range={pixel_range}; give it in the units of the pixels "
            f"(did you mean {span * eps:g}?)"
        )
