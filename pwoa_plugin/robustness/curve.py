"""Security curves: robust accuracy by the radius of the ball."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from ..errors import InputError
from .alarms import Alarm, rises_with_eps
from .attacks import Attack
from .evaluation import evaluate
from .inputs import check_eps, check_norm, check_pixel_range, collect
from .report import AttackReport
from .statistics import wilson_interval

__all__ = ["Curve", "security_curve"]

_RISE = 0.01  # of the images: below it, a rise is a few draws of the attack


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Robust accuracy by radius, as it was measured.

    Attributes:
        attack: its name.
        norm: of the ball.
        n_images: that were judged.
        eps: radii in pixel units, rising; the first is 0, where the images are clean.
        n_robust: robust images at each.
        alarms: where robust accuracy rises with eps.
    """

    attack: str
    norm: str
    n_images: int
    eps: tuple[float, ...]
    n_robust: tuple[int, ...]
    alarms: tuple[Alarm, ...]

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Robust accuracy at each radius, in [0, 1]."""
        return tuple(n / self.n_images for n in self.n_robust)

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """95 % Wilson intervals of `accuracy`."""
        return tuple(wilson_interval(n, self.n_images) for n in self.n_robust)


def security_curve(
    model: nn.Module,
    data: Iterable[Any],
    *,
    eps: Sequence[float],
    attack: str | Attack = "PGD-20",
    norm: str = "Linf",
    seed: int = 0,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    state: str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> Curve:
    """Robust accuracy under one attack at several radii, with one seed, and nothing smoothed.

    Args:
        model: see `evaluate`.
        data: see `evaluate`; read once.
        eps: radii in pixel units.
        attack: a name, or an `Attack`.
        norm, seed, pixel_range, state: see `evaluate`.
        arguments: of `evaluate`, but for ``attacks``, ``protocol`` and ``alarms``.

    Raises:
        ValueError: ``eps`` is empty, or something else is off; see `evaluate`.
    """
    pixel_range, norm = check_pixel_range(pixel_range), check_norm(norm)
    data = collect(data, pixel_range)
    n_pixels = data.images[0].numel()
    radii = sorted({check_eps(value, pixel_range, norm, n_pixels) for value in eps})
    if not radii:
        raise InputError("eps is empty; give the radii of the curve, such as [2/255, 4/255, 8/255]")
    columns: list[AttackReport] = []
    for radius in radii:
        report = evaluate(
            model,
            data.as_given(),
            attacks=attack,
            norm=norm,
            eps=radius,
            seed=seed,
            pixel_range=pixel_range,
            state=state,
            alarms=False,
            **arguments,
        )
        columns += report.attacks.values()
    n = report.config.n_images
    n_robust = (int(report.clean_correct.sum()), *(column.n_robust for column in columns))
    (name,) = report.attacks
    alarms = []
    for (less, before), (more, after) in pairwise(zip((0.0, *radii), n_robust, strict=True)):
        if after - before > max(1, _RISE * n):
            alarms.append(rises_with_eps(name, less, more, after - before, n))
    return Curve(attack=name, norm=norm, n_images=n, eps=(0.0, *radii), n_robust=n_robust, alarms=tuple(alarms))
