"""Intervals of proportions, and of the difference of two that were counted on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import binomtest
from torch import Tensor

_Z = 1.959963984540054  # of a two-sided 95 % interval
_SIGNIFICANT = 0.05


def wilson_interval(n_correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927): ``(low, high)`` in [0, 1]."""
    interval = binomtest(n_correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(n_first_only: int, n_second_only: int) -> float:
    """P value of the two-sided exact McNemar test, from the numbers of images that only one of two models has right."""
    n = n_first_only + n_second_only
    return 1.0 if n == 0 else float(binomtest(n_first_only, n, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, adjusted for their number (Holm 1979); in the same order, and none smaller."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def tango_interval(n_first_only: int, n_second_only: int, n: int) -> tuple[float, float]:
    """The 95 % score interval ``(low, high)`` of the first's proportion less the second's, paired (Tango 1998).

    It keeps its coverage with few images and where the models differ on none, where Wald's interval has no width.

    Args:
        n_first_only: images that only the first has right.
        n_second_only: images that only the second has right.
        n: all images.
    """
    b, c = n_first_only, n_second_only

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
    """Where a falling function crosses 0; one of the ends if it does not."""
    if falling(low) <= 0:
        return low
    return high if falling(high) >= 0 else float(brentq(falling, low, high, xtol=1e-15))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two models on the same ``n`` images: how many both have right, and how many one alone."""

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
        """The 95 % interval of `difference`."""
        return tango_interval(self.second_only, self.first_only, self.n)

    @property
    def p_value(self) -> float:
        return mcnemar_exact(self.first_only, self.second_only)

    @property
    def beyond_chance(self) -> bool:
        """Whether they differ at the 5 % level."""
        return self.p_value < _SIGNIFICANT


def paired(first: Tensor, second: Tensor) -> Paired:
    """Compare verdicts, bool ``(N,)``, on the same images in the same order."""
    return Paired(
        n=len(first),
        both=int((first & second).sum()),
        first_only=int((first & ~second).sum()),
        second_only=int((~first & second).sum()),
    )
