from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from conftest import EVERY_STEP, TinyNet
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin import PwoAConfig, PwoALoss, PwoAPruner
from pwoa_plugin._section import ConfigError
from pwoa_plugin.errors import InputError
from pwoa_plugin.method.adversarial import TRAINING_ATTACKS, AdversarialConfig, gradient_of

Pair = tuple[Tensor, Tensor]
EPS = 0.1
REACH = {"n-fgsm": 3 * EPS, "fgsm-rs": EPS, "pgd": EPS}  # how far a pixel can go


def of_class(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return F.cross_entropy(model(x), y).item()


@pytest.mark.parametrize("kind", TRAINING_ATTACKS)
def test_examples_increase_the_loss_and_stay_where_published(kind: str, trained: TinyNet, images: Pair) -> None:
    x, y = images[0][:64], images[1][:64]
    before = x.clone()
    attack = AdversarialConfig(attack=kind).make(EPS, (0.0, 1.0))
    torch.manual_seed(0)
    examples = attack(x, gradient_of(trained, y))
    assert torch.equal(x, before)
    assert not examples.requires_grad
    assert examples.min() >= 0
    assert examples.max() <= 1
    assert (examples - x).abs().max() <= REACH[kind] + 1e-6
    noise = x + EPS * (2 * torch.rand_like(x) - 1)
    assert of_class(trained, examples, y) > max(of_class(trained, x, y), of_class(trained, noise, y))
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_one_step_is_the_published_formula(trained: TinyNet, images: Pair) -> None:
    x, y = images[0][:8], images[1][:8]
    for kind, noise, step in (("n-fgsm", 2.0, 1.0), ("fgsm-rs", 1.0, 1.25)):
        torch.manual_seed(3)
        examples = AdversarialConfig(attack=kind).make(EPS, (0.0, 1.0))(x, gradient_of(trained, y))
        torch.manual_seed(3)
        start = (x + noise * EPS * (2 * torch.rand_like(x) - 1)).requires_grad_()
        F.cross_entropy(trained(start), y).backward()
        assert start.grad is not None
        wanted = start.detach() + step * EPS * start.grad.sign()
        if kind == "fgsm-rs":
            wanted = x + (wanted - x).clamp(-EPS, EPS)
        torch.testing.assert_close(examples, wanted.clamp(0, 1), atol=1e-6, rtol=0)


def test_none_is_made_unless_asked_for(trained: TinyNet, images: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr("pwoa_plugin.method.loss.gradient_of", lambda *_: made.append("made"))
    loss = PwoALoss(trained, eps=EPS)
    loss(copy.deepcopy(trained).train(), images[0][:16], images[1][:16])
    assert not made
    assert not loss.attacking


def test_both_networks_see_the_examples_and_labels_are_learnt(trained: TinyNet, images: Pair) -> None:
    x, y = images[0][:16], images[1][:16]
    student, seen = copy.deepcopy(trained).train(), []
    loss = PwoALoss(trained, eps=EPS, adversarial={"weight": 2}, hsic={"lambda_x": 0, "lambda_y": 0})
    for network in (student, loss.teacher):
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    loss.prepare(student, x)
    seen.clear()
    value = loss(student, x, y)
    made, by_teacher, by_student = seen  # the example is made with the student alone
    assert torch.equal(by_teacher, by_student)
    assert (by_student - x).abs().max() > EPS
    assert not torch.equal(made, by_student)
    student.eval()  # TinyNet has no BatchNorm and no dropout
    wanted = 2 * of_class(student, by_student, y)
    assert loss.terms["adversarial"].item() == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(value.detach(), torch.stack(list(loss.terms.values())).sum())


def test_the_teachers_classes_stand_for_labels(trained: TinyNet, images: Pair) -> None:
    x = images[0][:16]
    answers = trained(x).argmax(1)
    values = []
    for y in (None, answers):
        torch.manual_seed(0)
        loss = PwoALoss(trained, eps=EPS, adversarial={}, hsic={"lambda_y": 0})
        values.append(loss(copy.deepcopy(trained).train(), x, y).item())
    assert values[0] == values[1]


def test_the_teachers_classes_replace_labels_where_asked(trained: TinyNet, images: Pair) -> None:
    x, y = images[0][:16], (trained(images[0][:16]).argmax(1) + 1) % 3  # none is the teacher's
    values = {}
    for classes, labels in (("teacher", None), ("teacher", y), ("labels", y), ("labels", None)):
        torch.manual_seed(0)
        loss = PwoALoss(trained, eps=EPS, adversarial={"classes": classes}, hsic={"lambda_y": 0})
        values[classes, labels is None] = loss(copy.deepcopy(trained).train(), x, labels).item()
        assert loss.reads_labels == (classes == "labels")
    assert values["teacher", True] == values["teacher", False] == values["labels", True] != values["labels", False]


def test_the_teacher_runs_only_where_a_term_needs_it(trained: TinyNet, images: Pair) -> None:
    runs = []
    off: dict[str, Any] = {"distillation": {"alpha": 0, "feature_weight": 0}, "hsic": {"lambda_x": 0, "lambda_y": 0}}
    for classes in ("teacher", "labels"):
        student = copy.deepcopy(trained).train()
        loss = PwoALoss(trained, eps=EPS, adversarial={"classes": classes}, **off)
        loss.prepare(student, images[0][:16])
        loss.teacher.register_forward_hook(lambda *_: runs.append("teacher"))
        value = loss(student, images[0][:16], images[1][:16])
        runs.append(classes)
        assert loss.terms["distillation"] == 0
        assert value.item() == loss.terms["adversarial"] > 0
    assert runs == ["teacher", "teacher", "labels"]


def test_without_weight_labels_are_not_read(trained: TinyNet, images: Pair) -> None:
    loss = PwoALoss(trained, eps=EPS, adversarial={"weight": 0}, hsic={"lambda_y": 0})
    loss(copy.deepcopy(trained).train(), images[0][:16], torch.rand(16, 3))  # no labels at all
    assert "adversarial" not in loss.terms
    assert not loss.reads_labels


def test_no_examples_where_nothing_is_differentiated(trained: TinyNet, images: Pair) -> None:
    loss = PwoALoss(trained, eps=EPS, adversarial={})
    with torch.no_grad():
        loss(trained, images[0][:16], images[1][:16])
    assert "adversarial" not in loss.terms


@pytest.mark.parametrize(("last", "wanted"), [(None, [1, 1, 1]), (1, [0, 0, 1]), (3, [1, 1, 1])])
def test_a_polish_is_of_the_last_epochs(last: int | None, wanted: list[int], trained: TinyNet, images: Pair) -> None:
    config = PwoAConfig(
        sparsity=0.5,
        train_loader=images,
        eps=EPS,
        epochs=3,
        batch_size=64,
        adversarial={"epochs": last},
        progress=False,
    )
    pruner = PwoAPruner(copy.deepcopy(trained), config)
    pruner.compress()
    assert ["adversarial" in epoch for epoch in pruner.history] == wanted


def test_a_loop_of_ones_own_says_which_epochs(trained: TinyNet, images: Pair) -> None:
    loss, made = PwoALoss(trained, eps=EPS, adversarial={"epochs": 1}), []
    student = copy.deepcopy(trained).train()
    for epoch in range(3):
        loss.attack_if_due(3 - epoch)
        loss(student, images[0][:16], images[1][:16])
        made.append("adversarial" in loss.terms)
    assert made == [False, False, True]


def test_the_student_learns_its_examples(trained: TinyNet, images: Pair) -> None:
    x, y = images
    student = copy.deepcopy(trained).train()
    loss = PwoALoss(trained, eps=0.3, adversarial={"weight": 10}, hsic={"lambda_x": 0, "lambda_y": 0})
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    values = []
    torch.manual_seed(0)
    for xs, ys in itertools.islice(itertools.cycle(zip(x.split(64), y.split(64), strict=True)), 60):
        optimizer.zero_grad()
        loss(student, xs, ys).backward()
        optimizer.step()
        values.append(loss.terms["adversarial"].item())
    assert sum(values[-10:]) < 0.9 * sum(values[:10])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"attack": "cw"}, r"adversarial\.attack='cw' is unknown; use one of n-fgsm, fgsm-rs, pgd"),
    ({"options": {"steps": 3}}, r"NFGSM has no option 'steps'; it has noise, step"),
    ({"attack": "pgd", "options": {"steps": 0}}, "steps=0"),
    ({"eps": 2}, r"adversarial\.eps=2 is outside \(0, 1\)"),
    ({"epochs": 4}, r"adversarial\.epochs=4: more than the run's 3"),
    ({"weight": -1}, r"adversarial\.weight=-1"),
]


@pytest.mark.parametrize(("section", "message"), BAD)
def test_bad_sections_are_refused_before_training(section: dict[str, Any], message: str, images: Pair) -> None:
    with pytest.raises(ConfigError, match=message):
        PwoAConfig(sparsity=0.5, train_loader=images, eps=EPS, epochs=3, adversarial=section)


def test_a_radius_is_needed(trained: TinyNet, images: Pair) -> None:
    with pytest.raises(ConfigError, match=r"adversarial\.eps is missing; give it, or eps"):
        PwoAConfig(sparsity=0.5, train_loader=images, adversarial={})
    with pytest.raises(InputError, match=r"adversarial\.eps is missing; give it, or eps"):
        PwoALoss(trained, adversarial={})
    assert PwoAConfig(sparsity=0.5, train_loader=images, adversarial={"eps": "8/255"}).adversarial is not None


class Rounded(TinyNet):
    """Takes 8-bit images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((255 * x).round() / 255)


class Detached(TinyNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


@pytest.mark.parametrize("network", [Rounded, Detached])
def test_a_network_without_input_gradients_is_refused(network: type[TinyNet], images: Pair) -> None:
    config = PwoAConfig(sparsity=0.5, train_loader=images, eps=EPS, epochs=1, adversarial={}, progress=False)
    with pytest.raises(InputError, match=r"adversarial\.attack='n-fgsm' follows the gradient at the images"):
        PwoAPruner(network(), config).compress()


def test_shares_of_the_steps_keep_the_weight(trained: TinyNet, images: Pair) -> None:
    """HSIC and features in a share of the steps: there they count so much more."""
    x, y = images[0][:32], images[1][:32]
    student = TinyNet().train()
    whole = PwoALoss(trained, eps=EPS, perturbation={"kind": "none"}, **EVERY_STEP)
    whole(student, x, y)
    shared = PwoALoss(
        trained, eps=EPS, perturbation={"kind": "none"}, hsic={"share": 0.25}, distillation={"feature_share": 0.5}
    )
    seen: dict[str, list[float]] = {}
    for _ in range(400):
        shared(student, x, y)
        assert shared.terms.keys() == whole.terms.keys()
        for name, term in shared.terms.items():
            seen.setdefault(name, []).append(term.item())
    for name, share in (("features", 0.5), ("hsic_x", 0.25), ("hsic_y", 0.25)):
        drawn = [term for term in seen[name] if term]
        assert len(drawn) / 400 == pytest.approx(share, abs=0.08)
        assert [share * term for term in drawn] == pytest.approx([whole.terms[name].item()] * len(drawn), rel=1e-4)
    assert all(seen["distillation"])
