from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.method.distillation import distillation_loss, feature_loss, frozen_copy
from pwoa_plugin.method.hidden import read_hidden
from pwoa_plugin.method.hsic import gaussian_kernel, hsic, linear_kernel, one_hot
from pwoa_plugin.method.objective import PwoAObjective
from pwoa_plugin.method.perturbation import Sign

LAYERS = ["fc1", "fc2"]


def perturbed_student(model: nn.Module) -> nn.Module:
    student = frozen_copy(model).requires_grad_(True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return student


def test_terms_are_the_parts_and_sum_to_the_loss(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images[0][:32], images[1][:32]
    student, teacher = perturbed_student(trained), frozen_copy(trained)
    objective = PwoAObjective(
        teacher, LAYERS, alpha=7.0, temperature=20.0, feature_weight=0.5, lambda_x=0.02, lambda_y=0.03
    )
    loss = objective(student, x, y)
    with read_hidden(student, LAYERS) as hidden, read_hidden(teacher, LAYERS) as target:
        logits, wanted = student(x), teacher(x)
    values = hsic([gaussian_kernel(x), linear_kernel(one_hot(y, 3))], list(hidden.values()))
    expected = {
        "distillation": distillation_loss(logits, wanted, alpha=7.0, temperature=20.0),
        "features": 0.5 * feature_loss(hidden, target),
        "hsic_x": 0.02 * values[0].sum(),
        "hsic_y": -0.03 * values[1].sum(),
    }
    assert objective.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert objective.terms[name].item() == pytest.approx(value.item(), rel=1e-4)
    assert loss.item() == pytest.approx(sum(value.item() for value in expected.values()), rel=1e-4)
    got = torch.autograd.grad(loss, list(student.parameters()))
    oracle = torch.autograd.grad(sum(expected.values()), list(student.parameters()))
    for a, b in zip(got, oracle, strict=True):
        torch.testing.assert_close(a, b)


class Counting(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.model(x)


def test_one_forward_each_on_the_same_perturbed_images(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    student, teacher = Counting(perturbed_student(trained)), Counting(frozen_copy(trained))
    layers = [f"model.{name}" for name in LAYERS]
    objective = PwoAObjective(
        teacher, layers, feature_weight=1.0, lambda_x=1e-3, lambda_y=1e-3, perturbation=Sign(radius=0.2)
    )
    objective(student, images[0][:8], images[1][:8]).backward()
    assert len(student.seen) == len(teacher.seen) == 1
    assert torch.equal(student.seen[0], teacher.seen[0])
    assert 0.1 < (student.seen[0] - images[0][:8]).abs().max() <= 0.2 + 1e-6
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_labels_are_needed_only_for_their_term(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x = images[0][:8]
    unlabelled = PwoAObjective(frozen_copy(trained), LAYERS, lambda_x=1e-3)
    assert not unlabelled.needs_labels
    assert "hsic_x" in (unlabelled(trained, x), unlabelled.terms)[1]
    labelled = PwoAObjective(frozen_copy(trained), LAYERS, lambda_y=1e-3)
    with pytest.raises(ValueError, match="labels are missing"):
        labelled(trained, x)
    labelled.use_hsic = False
    assert labelled(trained, x).item() == pytest.approx(0, abs=1e-5)


def test_a_last_batch_of_one_has_no_hsic(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    objective = PwoAObjective(frozen_copy(trained), LAYERS, lambda_x=1.0, lambda_y=1.0)
    assert objective(trained, images[0][:1], images[1][:1]).isfinite()
    assert "hsic_x" not in objective.terms


def test_teacher_is_no_part_of_the_objective(trained: nn.Module) -> None:
    objective = PwoAObjective(frozen_copy(trained), LAYERS)
    assert not list(objective.parameters())
    objective.train()
    assert not objective.teacher.training


def test_features_of_a_narrower_student(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Compared where widths agree, or with the channels of the teacher's that are told to be left."""
    left = torch.tensor([0, 3, 4, 9])
    student = frozen_copy(trained)
    student.fc1, student.fc2 = nn.Linear(96, 4), nn.Linear(4, 3)
    with torch.no_grad():
        student.fc1.weight.copy_(trained.fc1.weight[left] * 1.5)
        student.fc1.bias.copy_(trained.fc1.bias[left] * 1.5)
    objective = PwoAObjective(frozen_copy(trained), LAYERS, feature_weight=1.0)
    objective(student, images[0][:8])
    assert objective.terms["features"].item() == 0  # fc1's inputs alone, which are the same
    assert objective.not_alike == {"fc2"}
    objective.kept = {"fc2": (-1, left)}
    objective(student, images[0][:8])
    # Activations 1.5 times as large: |s - t|^2 / |t|^2 is .25 in one layer, 0 in the other.
    assert objective.terms["features"].item() == pytest.approx(0.125, rel=1e-4)
    objective.kept, objective.hidden_layers = {}, ["fc2"]
    objective(student, images[0][:8])
    assert "features" not in objective.terms


def test_input_gradients_are_one_more_term(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images[0][:8], images[1][:8]
    student, teacher = Counting(perturbed_student(trained)), Counting(frozen_copy(trained))
    layers = [f"model.{name}" for name in LAYERS]
    terms = {"feature_weight": 1.0, "lambda_x": 1e-3, "lambda_y": 1e-3}
    without, objective = (
        PwoAObjective(teacher, layers, **terms, gradient_weight=weight, gradient_share=1.0) for weight in (0.0, 3.0)
    )
    expected = without(student, x, y)
    student.seen.clear(), teacher.seen.clear()
    loss = objective(student, x, y)
    assert len(student.seen) == len(teacher.seen) == 1
    assert objective.terms.keys() == without.terms.keys() | {"gradients"}
    assert objective.terms["gradients"] > 0
    assert loss.item() == pytest.approx(expected.item() + objective.terms["gradients"].item(), rel=1e-4)
    loss.backward()
    assert not x.requires_grad
    assert x.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_input_gradients_in_a_share_of_the_calls(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    student = perturbed_student(trained)
    objective = PwoAObjective(frozen_copy(trained), gradient_weight=1.0, gradient_share=0.3)
    drawn = sum((objective(student, images[0][:4]), objective.terms["gradients"].item() > 0)[1] for _ in range(200))
    assert 40 <= drawn <= 80


def test_no_input_gradients_where_none_are_enabled(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    objective = PwoAObjective(frozen_copy(trained), gradient_weight=1.0, gradient_share=1.0)
    with torch.no_grad():
        objective(perturbed_student(trained), images[0][:4])
    assert objective.terms["gradients"] == 0


def test_input_gradients_under_autocast(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    student = perturbed_student(trained)
    objective = PwoAObjective(frozen_copy(trained), LAYERS, feature_weight=1.0, gradient_weight=1.0, gradient_share=1.0)
    torch.manual_seed(0)
    objective(student, images[0][:8])
    exact = objective.terms
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(student, images[0][:8])
    loss.backward()
    torch.testing.assert_close(objective.terms, exact)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in student.parameters())
