"""How many channels stay, and which."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pwoa_plugin.method.allocation import ALLOCATIONS
from pwoa_plugin.torch_pruning.selection import Candidates, Rounding, keep


def candidates(sizes: list[int], most: float = 1.0, width: int = 1) -> list[Candidates]:
    random = torch.Generator().manual_seed(sum(sizes))
    return [Candidates(torch.rand(size, generator=random), width, size, (size,), most) for size in sizes]


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    ratio=st.floats(0, 0.99),
    most=st.floats(0.3, 1),
    to=st.integers(1, 9),
    up=st.booleans(),
    width=st.integers(1, 6),
    rule=st.sampled_from([None, *ALLOCATIONS]),
)
def test_bounds_hold_whatever_is_asked(
    sizes: list[int], ratio: float, most: float, to: int, up: bool, width: int, rule: str | None
) -> None:
    given_candidates = candidates(sizes, most, width)
    allocation = None if rule is None else ALLOCATIONS[rule]
    kept = keep(given_candidates, ratio, rounding=Rounding(to, up), allocation=allocation)
    for each, stays in zip(given_candidates, kept, strict=True):
        count = int(stays.sum())
        assert count >= max(1, each.before * (1 - most) - 1e-6)
        assert count == len(each.scores) or (count * width) % to == 0
        if 0 < count < len(each.scores):  # the largest stay
            assert each.scores[stays].min() >= each.scores[~stays].max()


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(4, 60), min_size=1, max_size=5),
    ratio=st.floats(0.1, 0.9),
    rule=st.sampled_from([*ALLOCATIONS]),
)
def test_without_rounding_the_total_is_exact(sizes: list[int], ratio: float, rule: str) -> None:
    kept = keep(candidates(sizes), ratio, rounding=Rounding(), allocation=ALLOCATIONS[rule])
    expected = max(len(sizes), sum(sizes) * (1 - ratio))
    assert abs(sum(int(stays.sum()) for stays in kept) - expected) <= 0.5 + 1e-6


def test_after_a_first_step_the_ratio_is_still_of_what_there_was() -> None:
    left = Candidates(torch.rand(30), 1, before=40, shape=(30,), most=1.0)
    assert int(keep([left], 0.75, rounding=Rounding())[0].sum()) == 10


def test_erk_keeps_fewer_channels_of_wide_layers() -> None:
    """ERK goes by the shapes of weights; channels alone say nothing of them."""
    random = torch.Generator().manual_seed(0)
    narrow, wide = (Candidates(torch.rand(n, generator=random), 1, n, (n, n, 3, 3), 1.0) for n in (16, 64))
    few, many = (
        int(kept.sum()) for kept in keep([narrow, wide], 0.5, rounding=Rounding(), allocation=ALLOCATIONS["erk"])
    )
    assert few + many == 40
    # Densities are as (2 n + 6) / 9 n^2, so that the narrow layer stays whole.
    assert (few, many) == (16, 24)
