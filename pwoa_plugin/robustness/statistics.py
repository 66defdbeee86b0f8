"""Intervals of proportions, and of the difference of two that were counted on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import binomtest
from torch import Tensor

from ..errors import InputError

__all__ = ["Paired", "holm", "mcnemar_exact", "paired", "tango_interval", "wilson_interval"]

_Z = 1.959963984540054  # of a two-sided 95 % interval
_SIGNIFICANT = 0.05


def wilson_interval(n_correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927).

    Args:
        n_correct: number of successes, 0 to ``n``.
        n: number of trials, at least 1.

    Returns:
        ``(low, high)`` in [0, 1].

    Raises:
        ValueError: ``n`` is below 1 or ``n_correct`` is not in 0..n.
    """
    interval = binomtest(n_correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(n_first_only: int, n_second_only: int) -> float:
    """The two-sided exact McNemar test: a binomial test of the images on which two models differ.

    Args:
        n_first_only: images that only the first has.
        n_second_only: images that only the second has.

    Returns:
        The p value: how likely so uneven a split is where both models are equally robust.
    """
    n = n_first_only + n_second_only
    return 1.0 if n == 0 else float(binomtest(n_first_only, n, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, adjusted so that one below 0.05 by chance among them all is a 5 % event (Holm 1979).

    Args:
        p_values: one for each test, in [0, 1].

    Returns:
        The adjusted ones, in the same order; none is smaller than it was.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def tango_interval(n_first_only: int, n_second_only: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of the difference of two paired proportions (Tango 1998).

    It keeps its coverage with few images and where the models differ on none, where Wald's interval has no width.

    Args:
        n_first_only: images that only the first has.
        n_second_only: images that only the second has.
        n: all images, at least 1.

    Returns:
        ``(low, high)`` in [-1, 1], of the first's proportion less the second's.

    Raises:
        InputError: the counts are negative or more than ``n``.
    """
    b, c = n_first_only, n_second_only
    if b < 0 or c < 0 or n < 1 or b + c > n:
        raise InputError(f"{b} and {c} of {n} are not counts of differing images")

    def score(delta: float) -> float:
        quadratic, linear = 2 * n, -b - c + (2 * n - b + c) * delta
        constant = -c * delta * (1 - delta)
        # The likeliest share of the second's, where the difference is delta.
        share = (math.sqrt(max(0.0, linear**2 - 4 * quadratic * constant)) - linear) / (2 * quadratic)
        variance = n * (2 * share + delta * (1 - delta))
        above = b - c - n * delta
        return above / math.sqrt(variance) if variance > 1e-300 else math.copysign(math.inf, above) if above else 0.0

    best = (b - c) / n
    return _root(lambda d: score(d) - _Z, -1.0, best), _root(lambda d: score(d) + _Z, best, 1.0)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that does not rise crosses 0; an end where it does not."""
    if falling(low) <= 0:
        return low
    return high if falling(high) >= 0 else float(brentq(falling, low, high, xtol=1e-15))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two models on the same images.

    Attributes:
        n: number of images.
        both: images that both have.
        first_only: images that the first alone has.
        second_only: images that the second alone has.
    """

    n: int
    both: int
    first_only: int
    second_only: int

    @property
    def difference(self) -> float:
        """The second's accuracy less the first's, in [-1, 1]."""
        return (self.second_only - self.first_only) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `difference`; see `tango_interval`."""
        return tango_interval(self.second_only, self.first_only, self.n)

    @property
    def p_value(self) -> float:
        """See `mcnemar_exact`."""
        return mcnemar_exact(self.first_only, self.second_only)

    @property
    def beyond_chance(self) -> bool:
        """Whether they differ at the 5 % level."""
        return self.p_value < _SIGNIFICANT


def paired(first: Tensor, second: Tensor) -> Paired:
    """Compare verdicts image by image.

    Args:
        first, second: bool ``(N,)``, on the same images in the same order.

    Raises:
        InputError: they are of different lengths.
    """
    if first.shape != second.shape:
        raise InputError(f"verdicts on {len(first)} and {len(second)} images cannot be paired; judge the same images")
    return Paired(
        n=len(first),
        both=int((first & second).sum()),
        first_only=int((first & ~second).sum()),
        second_only=int((~first & second).sum()),
    )
