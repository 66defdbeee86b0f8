from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pwoa_plugin.robustness import CarliniWagnerMargin, evaluate


@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 2**31 - 1), st.booleans())
def test_margin_is_the_best_wrong_logit_minus_the_true_one(n: int, c: int, seed: int, one_hot: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=generator, dtype=torch.float64)
    labels = torch.randint(c, (n,), generator=generator)
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total += max(z for j, z in enumerate(row) if j != label) - row[label]
    given_labels = torch.nn.functional.one_hot(labels, c).float() if one_hot else labels
    assert CarliniWagnerMargin()(logits, given_labels).item() == pytest.approx(total / n, abs=1e-12)


def test_margin_is_differentiable_and_pushes_two_logits_only() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]], requires_grad=True)
    CarliniWagnerMargin()(logits, torch.tensor([1])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, -1.0, 1.0, 0.0]]


def test_cw_sees_through_logits_so_large_that_the_cross_entropy_has_no_gradient(
    model: nn.Module, held_out: tuple[Tensor, Tensor], eps: float
) -> None:
    saturated = copy.deepcopy(model)
    with torch.no_grad():
        saturated[-1].weight *= 1e4  # type: ignore[index]
        saturated[-1].bias *= 1e4  # type: ignore[index]
    plain = evaluate(model, held_out, eps=eps, attacks="CW", progress=False)
    report = evaluate(saturated, held_out, eps=eps, attacks=["PGD-20", "CW"], progress=False)
    assert abs(report.attacks["CW"].n_robust - plain.attacks["CW"].n_robust) <= 2
    assert report.attacks["PGD-20"].n_robust > report.attacks["CW"].n_robust + 20
