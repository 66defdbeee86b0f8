from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.method.distillation import distillation_loss, feature_loss, frozen_copy, gradient_loss


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


def curved(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def margins_gradient(model: nn.Module, x: Tensor, first: int, second: int, h: float = 1e-6) -> Tensor:
    """By central differences, one pixel after another."""
    result = torch.zeros_like(x)
    for place in range(x.numel()):
        for sign in (1, -1):
            moved = x.clone()
            moved.view(-1)[place] += sign * h
            logits = model(moved).sum(0)  # one image only
            result.view(-1)[place] += sign * (logits[first] - logits[second]).item() / (2 * h)
    return result


def test_gradients_are_those_of_the_teachers_margin() -> None:
    student, teacher = curved(0), frozen_copy(curved(1))
    x = torch.rand(1, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    first, second = teacher(x)[0].topk(2).indices.tolist()
    expected = set()
    for other in (second, *range(3)):
        wanted, got = (margins_gradient(model, x, first, other) for model in (teacher, student))
        if other != first:
            expected.add(round(((got - wanted).square().sum() / wanted.square().sum()).item(), 4))
    seen = set()
    for seed in range(20):
        image = x.clone().requires_grad_()
        generator = torch.Generator().manual_seed(seed)
        seen.add(round(gradient_loss(student(image), teacher(image), image, generator=generator).item(), 4))
    assert len(expected) == 2
    assert seen == expected  # never the first class against itself, which has no gradient


def test_gradients_reach_the_students_parameters() -> None:
    student, teacher = curved(0), frozen_copy(curved(1))
    x = torch.rand(4, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def value() -> Tensor:
        return gradient_loss(student(x), teacher(x), x, generator=torch.Generator().manual_seed(3))

    weight = student.get_parameter("1.weight")
    value().backward()
    assert weight.grad is not None
    weight.data[2, 3] += 1e-3
    above = value().item()
    weight.data[2, 3] -= 2e-3
    below = value().item()
    assert weight.grad[2, 3].item() == pytest.approx((above - below) / 2e-3, rel=1e-2, abs=1e-5)


def test_no_gradient_loss_where_both_agree_and_1_where_the_student_is_flat() -> None:
    teacher = frozen_copy(curved(1))
    x = torch.rand(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert gradient_loss(teacher(x), teacher(x), x).item() == pytest.approx(0, abs=1e-12)
    assert gradient_loss(0 * teacher(x), teacher(x), x).item() == pytest.approx(1)


def test_logits_without_a_graph_to_the_images_raise() -> None:
    x = torch.rand(3, 2, 2, 2, requires_grad=True)
    for logits, said in (
        (torch.rand(3, 4), "does not require grad"),
        (torch.rand(3, 4, requires_grad=True), "not have been used in the graph"),
    ):
        with pytest.raises(RuntimeError, match=said):
            gradient_loss(logits, logits, x)
