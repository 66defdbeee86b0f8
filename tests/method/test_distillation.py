from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.method.distillation import distillation_loss, feature_loss, frozen_copy


def literal(student: Tensor, teacher: Tensor, alpha: float, tau: float) -> float:
    total = 0.0
    p, q = (teacher / tau).softmax(1), (student / tau).softmax(1)
    for row_p, row_q in zip(p.tolist(), q.tolist(), strict=True):
        for a, b in zip(row_p, row_q, strict=True):
            total += a * (torch.tensor(a).log() - torch.tensor(b).log()).item()
    return alpha * tau**2 * total / student.numel()


@pytest.mark.parametrize("tau", [1.0, 30.0])
def test_is_the_literal_formula(tau: float) -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(7, 10, generator=random) for _ in range(2))
    got = distillation_loss(student, teacher, alpha=10, temperature=tau).item()
    assert got == pytest.approx(literal(student.double(), teacher.double(), 10, tau), rel=2e-3)


def test_alpha_10_is_batchmean_1_for_10_classes() -> None:
    random = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(6, 10, generator=random) for _ in range(2))
    batchmean = nn.KLDivLoss(reduction="batchmean")((student / 30).log_softmax(1), (teacher / 30).softmax(1)) * 900
    assert distillation_loss(student, teacher, alpha=10, temperature=30).item() == pytest.approx(
        batchmean.item(), rel=1e-3
    )


def test_no_loss_and_no_gradient_where_both_agree() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = distillation_loss(logits, logits.detach())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-4


def test_float32_under_autocast() -> None:
    student, teacher = torch.randn(4, 3).bfloat16(), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert distillation_loss(student, teacher).dtype == torch.float32


def test_features_are_relative_to_the_teachers() -> None:
    random = torch.Generator().manual_seed(3)
    a, b = torch.randn(4, 6, generator=random), torch.randn(4, 3, 2, 2, generator=random)
    teacher = {"a": a, "b": b}
    assert feature_loss(teacher, teacher).item() == 0
    assert feature_loss({"a": 0 * a, "b": 0 * b}, teacher).item() == pytest.approx(1)
    assert feature_loss({"a": 1.5 * a, "b": b}, teacher).item() == pytest.approx(0.125)
    scaled = feature_loss({"a": 150 * a, "b": b}, {"a": 100 * a, "b": b})
    assert scaled.item() == pytest.approx(0.125)
    assert feature_loss({"a": a}, {"a": 0 * a}).isfinite()


def test_frozen_copy_is_apart_and_asks_for_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    model[0].weight.grad = torch.ones(3, 3)
    teacher = frozen_copy(model)
    assert not teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert teacher[0].weight.abs().sum() > 0
    assert model.training
    assert model[0].weight.requires_grad
    assert model[0].weight.grad is not None
