from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from pwoa_plugin.robustness.statistics import holm, mcnemar_exact, paired, tango_interval, wilson_interval

tables = st.integers(2, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n)))
)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_is_wilsons(counts: tuple[int, int]) -> None:
    k, n = counts
    p, z = k / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = wilson_interval(k, n)
    assert low == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1.0, centre + half), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_adds_up_the_binomial(b: int, c: int) -> None:
    n = b + c
    probabilities = [math.comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(p for p in probabilities if p <= probabilities[b] * (1 + 1e-9))
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, expected))


def score_by_search(b: int, c: int, n: int, delta: float) -> float:
    """Tango's statistic, its nuisance parameter found by searching the likelihood instead of by his formula."""

    def unlikely(share: float) -> float:  # of the images that only the second has
        cells = ((b, share + delta), (c, share), (n - b - c, 1 - 2 * share - delta))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    share = float(minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
    # Of the differing images' sum b - c: variance n (p12 + p21 - delta^2).
    return (b - c - n * delta) / math.sqrt(n * (2 * share + delta - delta * delta))


@settings(deadline=None, max_examples=60)
@given(tables)
def test_the_ends_of_tangos_interval_are_where_the_score_test_rejects(table: tuple[int, int, int]) -> None:
    b, c, n = table
    low, high = tango_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    if low > -1 + 1e-9:
        assert score_by_search(b, c, n, low) == pytest.approx(1.95996, abs=2e-3)
    if high < 1 - 1e-9:
        assert score_by_search(b, c, n, high) == pytest.approx(-1.95996, abs=2e-3)


@pytest.mark.parametrize(("p12", "p21", "n"), [(0.08, 0.03, 100), (0.02, 0.0, 200), (0.2, 0.15, 50), (0.01, 0.01, 100)])
def test_tangos_interval_covers_as_often_as_it_says(p12: float, p21: float, n: int) -> None:
    covered = 0.0
    for b in range(n + 1):
        weight = binom.pmf(b, n, p12)
        if weight < 1e-7:
            continue
        for c in range(n - b + 1):
            both = weight * binom.pmf(c, n - b, p21 / (1 - p12))
            if both > 1e-7:
                low, high = tango_interval(b, c, n)
                covered += both * (low <= p12 - p21 <= high)
    assert 0.93 < covered <= 1.0


def test_models_that_differ_nowhere_leave_an_interval() -> None:
    low, high = tango_interval(0, 0, 100)
    assert (low, high) == (pytest.approx(-high), pytest.approx(0.037, abs=2e-3))  # z^2 / (n + z^2)


def test_paired_counts_and_directions() -> None:
    random = np.random.default_rng(0)
    dense = torch.from_numpy(random.random(500) < 0.9)
    pruned = dense & torch.from_numpy(random.random(500) < 0.9)
    pair = paired(dense, pruned)
    assert pair.first_only == int(dense.sum()) - int(pruned.sum())
    assert (pair.second_only, pair.both, pair.n) == (0, int(pruned.sum()), 500)
    assert pair.difference == pytest.approx(float(pruned.double().mean() - dense.double().mean()))
    assert pair.interval[0] < pair.difference < pair.interval[1] < 0
    assert pair.beyond_chance
    assert not paired(dense, dense).beyond_chance


def test_holm_adjusts_as_published() -> None:
    # Checked by hand: the smallest times 4, the next times 3, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
