from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pwoa_plugin.method.allocation import ALLOCATIONS, allocate, allocation_table
from pwoa_plugin.method.sparsity import make_sparsity_set

SHAPES = {"conv1": (8, 3, 3, 3), "conv2": (16, 8, 3, 3), "fc1": (32, 64), "fc2": (10, 32)}


def network(seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=random) * scale ** (i + 1) for i, (name, shape) in enumerate(SHAPES.items())
    }


@settings(deadline=None, max_examples=80)
@given(
    rule=st.sampled_from(sorted(ALLOCATIONS)),
    granularity=st.sampled_from(["unstructured", "filter", "channel", "column", "block:2x4"]),
    sparsity=st.floats(0.01, 0.99),
    seed=st.integers(0, 50),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    tied=st.booleans(),
)
def test_total_is_exact_and_no_layer_is_emptied(
    rule: str, granularity: str, sparsity: float, seed: int, scale: float, tied: bool
) -> None:
    weights = network(seed, scale)
    if tied:
        weights = {name: weight.sign() for name, weight in weights.items()}
    sparsity_set = make_sparsity_set(granularity)
    total = sum(weight.numel() for weight in weights.values())
    sizes = {name: weight.numel() / len(sparsity_set.scores(weight)) for name, weight in weights.items()}
    if (1 - sparsity) * total < sum(sizes.values()):
        return  # refused or at its limit: tested below
    allocated = allocate(weights, sparsity, sparsity_set, ALLOCATIONS[rule])
    kept = 0
    for name, weight in weights.items():
        mask = sparsity_set.mask(weight, allocated[name].keep)
        kept += int(mask.sum())
        assert mask.any()
    # To one weight; for groups, to one group.
    slack = 0.5 if granularity == "unstructured" else max(8, *sizes.values())
    assert abs(kept - (1 - sparsity) * total) <= slack + 1e-6


def test_uniform_gives_every_layer_the_ratio() -> None:
    allocated = allocate(network(), 0.75, make_sparsity_set("unstructured"), ALLOCATIONS["uniform"])
    for layer in allocated.values():
        assert abs(layer.keep - 0.25 * layer.weights) <= 1


def test_erk_is_the_formula() -> None:
    allocated = allocate(network(), 0.9, make_sparsity_set("unstructured"), ALLOCATIONS["erk"])
    densities = {name: layer.density for name, layer in allocated.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in SHAPES.items()}
    scales = [densities[name] / raw[name] for name in SHAPES if densities[name] < 1]
    assert len(scales) >= 2
    assert max(scales) / min(scales) < 1.02
    assert all(densities[name] == 1 or scales[0] * raw[name] <= 1.02 for name in SHAPES)


def literal_lamp(weight: Tensor) -> Tensor:
    squares = weight.flatten().double().square()
    return torch.stack([s / squares[squares >= s].sum() for s in squares])


def test_lamp_keeps_the_largest_scores_of_the_formula() -> None:
    weights = network(3)
    allocated = allocate(weights, 0.8, make_sparsity_set("unstructured"), ALLOCATIONS["lamp"])
    scores = {name: literal_lamp(weight) for name, weight in weights.items()}
    budget = sum(layer.keep for layer in allocated.values())
    threshold = torch.cat(list(scores.values())).topk(budget).values[-1]
    for name, layer in allocated.items():
        assert layer.keep == int((scores[name] >= threshold).sum())


def test_global_is_one_threshold() -> None:
    weights = network(4)
    allocated = allocate(weights, 0.6, make_sparsity_set("unstructured"), ALLOCATIONS["global"])
    budget = sum(layer.keep for layer in allocated.values())
    threshold = torch.cat([w.abs().flatten() for w in weights.values()]).topk(budget).values[-1]
    for name, layer in allocated.items():
        assert layer.keep == int((weights[name].abs() >= threshold).sum())


@pytest.mark.parametrize("rule", ["lamp", "global"])
def test_a_layer_of_zeros_keeps_one_weight(rule: str) -> None:
    weights = network() | {"fc2": torch.zeros(10, 32)}
    allocated = allocate(weights, 0.9, make_sparsity_set("unstructured"), ALLOCATIONS[rule])
    assert allocated["fc2"].keep == 1


def test_n_of_m_leaves_layers_dense_that_it_cannot_take_and_says_so() -> None:
    allocated = allocate(network(), 0.5, make_sparsity_set("2:4"), ALLOCATIONS["lamp"])
    assert allocated["conv1"].dense_because == "its input dimension 3 is no multiple of 4"
    assert allocated["conv1"].keep == allocated["conv1"].weights
    assert all(allocated[name].density == 0.5 for name in ("conv2", "fc1", "fc2"))
    assert "dense: its input dimension 3" in allocation_table(allocated)


def test_table_adds_up() -> None:
    allocated = allocate(network(), 0.9, make_sparsity_set("unstructured"), ALLOCATIONS["lamp"])
    table = allocation_table(allocated).splitlines()
    assert len(table) == 6
    assert table[2].split()[:3] == ["conv2", "16x8x3x3", "1,152"]
    kept = [int(line.split()[3].replace(",", "")) for line in table[1:5]]
    assert table[-1].split()[2].replace(",", "") == str(sum(kept))


@pytest.mark.parametrize(
    ("sparsity", "granularity", "said"),
    [
        (0.9999, "unstructured", "would empty a layer"),
        (0.99, "filter", "would empty a layer"),
    ],
)
def test_refused(sparsity: float, granularity: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        allocate(network(), sparsity, make_sparsity_set(granularity), ALLOCATIONS["uniform"])


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = network()
    weights["fc1"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="'fc1' holds a weight that is not finite"):
        allocate(weights, 0.5, make_sparsity_set("unstructured"), ALLOCATIONS["lamp"])
