from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pwoa_plugin.method.sparsity import make_sparsity_set

SHAPES = [(6, 4, 3, 3), (5, 3, 1, 1), (7, 10), (1, 8), (9, 2, 3)]
NAMES = ["unstructured", "filter", "channel", "column", "block", "block:2x3", "block:3x1"]


def groups_of(name: str, shape: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """An independent list of every group's indices."""
    every = list(itertools.product(*map(range, shape)))

    def flat(index: tuple[int, ...]) -> int:
        position = 0
        for i, side in zip(index[1:], shape[1:], strict=True):
            position = position * side + i
        return position

    def key(index: tuple[int, ...]) -> object:
        if name == "unstructured":
            return index
        if name == "filter":
            return index[0]
        if name == "channel":
            return index[1]
        if name == "column":
            return flat(index)
        rows, columns = (4, 4) if name == "block" else map(int, name.split(":")[1].split("x"))
        return index[0] // rows, flat(index) // columns

    found: dict[object, list[tuple[int, ...]]] = {}
    for index in every:
        found.setdefault(key(index), []).append(index)
    return list(found.values())


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    shape=st.sampled_from(SHAPES),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    tied=st.booleans(),
)
def test_projection_keeps_exactly_k_whole_groups_of_largest_norm(
    name: str, shape: tuple[int, ...], share: float, seed: int, tied: bool
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if tied:
        weight = weight.sign()  # every weight as large as every other
    groups = groups_of(name, shape)
    k = round(share * len(groups))
    sparsity_set = make_sparsity_set(name)
    assert len(sparsity_set.scores(weight)) == len(groups)
    mask = sparsity_set.mask(weight, k)
    assert mask.shape == weight.shape
    assert mask.dtype == torch.bool
    kept = [all(mask[index] for index in group) for group in groups]
    gone = [not any(mask[index] for index in group) for group in groups]
    assert all(a or b for a, b in zip(kept, gone, strict=True))
    assert sum(kept) == k
    norms = [sum(float(weight[index]) ** 2 for index in group) for group in groups]
    best = sum(sorted(norms, reverse=True)[:k])
    assert math.isclose(float((weight * mask).square().sum()), best, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4)])
@pytest.mark.parametrize("shape", [(3, 8, 3, 3), (5, 12), (2, 4, 1)])
def test_n_of_m_keeps_the_n_largest_of_m_consecutive_inputs(n: int, m: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    sparsity_set = make_sparsity_set(f"{n}:{m}")
    mask = sparsity_set.mask(weight, weight.numel() * n // m)
    blocks = mask.transpose(1, -1).reshape(-1, m)
    values = weight.abs().transpose(1, -1).reshape(-1, m)
    assert (blocks.sum(1) == n).all()
    for kept, value in zip(blocks, values, strict=True):
        assert value[kept].min() >= value[~kept].max()
    ones = sparsity_set.mask(torch.ones(shape), weight.numel() * n // m)
    assert (ones.transpose(1, -1).reshape(-1, m).sum(1) == n).all()


def test_n_of_m_says_which_shapes_it_cannot_take() -> None:
    two_of_four = make_sparsity_set("2:4")
    assert two_of_four.fixed_density == 0.5
    assert two_of_four.supports(torch.Size([8, 8])) is None
    assert two_of_four.supports(torch.Size([8, 3, 3, 3])) == "its input dimension 3 is no multiple of 4"


@pytest.mark.parametrize("name", ["fine-grained", "4:2", "0:4", "block:0x2", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match="granularity"):
        make_sparsity_set(name)


def test_projection_is_a_nearest_point_of_the_set() -> None:
    weight: Tensor = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = []
    for kept in itertools.combinations(range(4), 2):
        candidate = torch.zeros_like(weight)
        candidate[list(kept)] = weight[list(kept)]
        distances.append(float((weight - candidate).norm()))
    projected = weight * make_sparsity_set("filter").mask(weight, 2)
    assert float((weight - projected).norm()) == pytest.approx(min(distances))


def test_channels_of_groups_are_no_set_of_a_layer() -> None:
    with pytest.raises(ValueError, match=r"granularity='structured' removes channels.*PwoAGroupPruner"):
        make_sparsity_set("structured")
