"""How sparse a network is on its way, and what a cut leaves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pwoa_plugin.method.allocation import ALLOCATIONS
from pwoa_plugin.method.gradual import Budget, sparsity_at
from pwoa_plugin.method.sparsity import make_sparsity_set


@given(final=st.floats(0.01, 0.999), first=st.floats(0, 1), second=st.floats(0, 1))
def test_sparsity_grows_from_dense_to_its_end(final: float, first: float, second: float) -> None:
    assert sparsity_at(0.0, final) == 0.0
    assert sparsity_at(1.0, final) == final
    low, high = sorted((first, second))
    assert 0 <= sparsity_at(low, final) <= sparsity_at(high, final) <= final
    # Zhu and Gupta, eq. 1, with s_i = 0, t_0 = 0 and n * dt = 1.
    assert sparsity_at(first, final) == pytest.approx(final + (0 - final) * (1 - first) ** 3)


@pytest.mark.parametrize("rule", ALLOCATIONS)
@pytest.mark.parametrize("granularity", ["unstructured", "filter", "block:2x2"])
def test_a_cut_takes_the_smallest_groups(rule: str, granularity: str) -> None:
    torch.manual_seed(0)
    weights = {name: torch.nn.Parameter(torch.randn(16, 8)) for name in "ab"}
    sparsity_set = make_sparsity_set(granularity)
    budget = Budget(0.75, sparsity_set, ALLOCATIONS[rule])
    allocated = budget.allocate(weights, 0.5)
    masks = budget.masks(weights, 0.5)
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert gone == pytest.approx(256 * 0.75 * (1 - 0.5**3), abs=8)
    for name, weight in weights.items():
        norms = sparsity_set.scores(weight.detach())
        kept = sparsity_set.scores(masks[name].double()) > 0
        assert int(kept.sum()) == allocated[name].keep
        assert norms[kept].min() >= norms[~kept].max()


def test_a_set_of_fixed_density_is_whole_from_the_first_cut() -> None:
    weights = {"fc": torch.randn(4, 8)}
    masks = Budget(0.5, make_sparsity_set("2:4"), ALLOCATIONS["lamp"]).masks(weights, 0.01)
    assert masks["fc"].view(4, 2, 4).sum(-1).eq(2).all()
