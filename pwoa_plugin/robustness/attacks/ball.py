"""What is done with images that an attack moved too far."""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 1e-5
"""Of the pixel range: far above float32 rounding, far below a grey level."""


def kept_in_ball(
    name: str, images: Tensor, found: Tensor, *, norm: str, eps: float, pixel_range: tuple[float, float]
) -> tuple[Tensor, tuple[str, ...]]:
    """Adversarial images, with the clean image in place of each that is no valid image in the ball.

    Args:
        name: of the attack, for the notes.
        images: clean images ``(N, ...)``.
        found: adversarial images, of the same shape; rounding beyond the pixel range is clipped.
        norm: of the ball, ``Linf`` or ``L2``.
        eps: its radius in pixel units.
        pixel_range: ``(low, high)`` of a valid image.

    Returns:
        The images, and notes on how many are clean ones, and why.
    """
    low, high = pixel_range
    slack = SLACK * (high - low)
    broken = ~found.isfinite().flatten(1).all(1)
    outside = ((found < low - slack) | (found > high + slack)).flatten(1).any(1) & ~broken
    clipped = found.clamp(low, high)
    moved = (clipped - images).flatten(1).double()
    far = moved.abs().amax(1) > eps + slack if norm == "Linf" else moved.norm(dim=1) > eps * (1 + SLACK) + slack
    far &= ~broken & ~outside
    lost = (broken | outside | far).view(-1, *[1] * (images.dim() - 1))
    notes = []
    reasons = (
        (far, f"moved {{}} beyond eps={eps:g}"),
        (outside, f"moved {{}} out of the pixel range {pixel_range}"),
        (broken, "returned pixels that are NaN or infinite for {}"),
    )
    for which, what in reasons:
        if n := int(which.sum()):
            count = f"{n} of {len(images)} images"
            notes.append(f"{name} {what.format(count)}, which count as not broken")
    return torch.where(lost, images, clipped), tuple(notes)
