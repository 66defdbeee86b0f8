"""`PwoALoss`, in a loop of your own and term by term."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import EVERY_STEP, TinyNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pwoa_plugin import PwoALoss
from pwoa_plugin.config import PwoAConfig
from pwoa_plugin.method.distillation import distillation_loss, feature_loss, frozen_copy
from pwoa_plugin.method.hidden import read_hidden
from pwoa_plugin.method.hsic import gaussian_kernel, hsic, linear_kernel, one_hot
from pwoa_plugin.method.trainer import Trainer

Pair = tuple[Tensor, Tensor]
TERMS = {"distillation", "features", "hsic_x", "hsic_y"}


def narrower(model: TinyNet) -> TinyNet:
    """`fc1` with 10 of its 16 outputs, as a structural pruner leaves it."""
    student = copy.deepcopy(model)
    with torch.no_grad():
        student.fc1.weight, student.fc1.bias = nn.Parameter(model.fc1.weight[:10]), nn.Parameter(model.fc1.bias[:10])
        student.fc2.weight = nn.Parameter(model.fc2.weight[:, :10])
    student.fc1.out_features = student.fc2.in_features = 10
    return student


def test_it_is_the_loss_of_a_run(trained: TinyNet, images: Pair) -> None:
    x, y = images[0][:32], images[1][:32]
    student = copy.deepcopy(trained)
    with torch.no_grad():
        student.fc1.weight.mul_(0.5)
    loss = PwoALoss(trained, eps=0.1, **EVERY_STEP)
    of_a_run = Trainer(trained, PwoAConfig(sparsity=0.5, train_loader=images, eps=0.1, epochs=12, **EVERY_STEP)).loss
    of_a_run.prepare(student, x)
    torch.manual_seed(3)
    value = loss(student, x, y)
    torch.manual_seed(3)
    torch.testing.assert_close(value, of_a_run.of_checked(student, x, y))
    assert set(loss.terms) == TERMS
    torch.testing.assert_close(torch.stack(list(loss.terms.values())).sum(), value.detach())
    assert loss.hidden_layers == of_a_run.hidden_layers == ["fc1", "fc2"]
    assert loss.radius == of_a_run.radius == pytest.approx(0.15)


def test_the_old_name_of_student_channels(trained: TinyNet) -> None:
    channels = {"fc2": (-1, torch.arange(10))}
    with pytest.warns(DeprecationWarning, match="kept= is now student_channels="):
        assert PwoALoss(trained, kept=channels).student_channels is channels


def test_a_loop_of_ones_own_brings_a_damaged_student_back(trained: TinyNet, images: Pair) -> None:
    student = copy.deepcopy(trained)
    with torch.no_grad():
        student.fc1.weight.mul_(torch.rand_like(student.fc1.weight) < 0.3)
    loss = PwoALoss(trained, eps=0.1)
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    torch.manual_seed(0)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(student, *images)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]
    assert (student(images[0]).argmax(1) == images[1]).float().mean() > 0.95


def test_the_teacher_is_a_frozen_copy_that_no_optimizer_or_checkpoint_sees(trained: TinyNet, images: Pair) -> None:
    loss = PwoALoss(trained, eps=0.1).train()
    before = loss(copy.deepcopy(trained), *images)
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert not loss.teacher.training
    with torch.no_grad():
        trained.fc2.weight.zero_()
    assert loss.teacher.fc2.weight.abs().sum() > 0
    assert before.isfinite()
    assert copy.deepcopy(loss)(trained, *images).isfinite()


def test_it_moves_with_to(trained: TinyNet, images: Pair) -> None:
    loss = PwoALoss(trained, eps=0.1).to(torch.float64)
    assert loss.teacher.fc1.weight.dtype == torch.float64
    student = copy.deepcopy(trained).double()
    assert loss(student, images[0].double(), images[1]).isfinite()
    loss.to("meta")
    assert loss.device.type == "meta"
    with pytest.raises(ValueError, match=r"student is on cpu, the teacher on meta; call loss.to\('cpu'\)"):
        loss(student, *images)


def test_a_narrower_student(trained: TinyNet, images: Pair, caplog: pytest.LogCaptureFixture) -> None:
    student = narrower(trained)
    loss = PwoALoss(trained, eps=0.1, **EVERY_STEP)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            value = loss(student, *images)
    value.backward()
    assert set(loss.terms) == TERMS  # fc1's input is as wide as the teacher's, fc2's is not
    assert [record.message for record in caplog.records] == [
        "no feature distillation of fc2: the teacher has no such layer of that width"
    ]
    assert student.fc1.weight.grad is not None
    assert student.fc1.weight.grad.abs().sum() > 0
    only_narrow = PwoALoss(trained, eps=0.1, hsic={"layers": "fc2"}, distillation={"feature_share": 1})
    only_narrow(student, *images)
    assert set(only_narrow.terms) == TERMS - {"features"}
    only_narrow.student_channels = {
        "fc2": (-1, torch.arange(10))
    }  # the teacher's first ten, which are the student's too
    only_narrow(student, *images)
    assert float(only_narrow.terms["features"]) == pytest.approx(0, abs=1e-10)


class Shorter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1 = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(96, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))


class Other(nn.Module):
    """Of another architecture than `TinyNet`, and with other names."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8 * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(F.relu(self.stem(x)))).flatten(1))


@pytest.mark.parametrize("bigger", ["teacher", "student"])
def test_networks_of_two_architectures(
    trained: TinyNet, images: Pair, bigger: str, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, student = (Other(), copy.deepcopy(trained)) if bigger == "teacher" else (trained, Other())
    hidden = ["fc1", "fc2"] if bigger == "teacher" else ["body", "head"]
    loss = PwoALoss(teacher, eps=0.1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss(student, *images).backward()
    assert set(loss.terms) == TERMS - {"features"}
    assert loss.hidden_layers == hidden
    said = f"no feature distillation of {', '.join(hidden)}: the teacher has no such layer of that width"
    assert [record.message for record in caplog.records] == [said]
    named = PwoALoss(teacher, eps=0.1, hsic={"layers": hidden[1]})
    assert named(student, *images).isfinite()
    assert named.hidden_layers == [hidden[1]]


def test_each_student_has_hidden_layers_of_its_own(trained: TinyNet, images: Pair) -> None:
    loss = PwoALoss(trained, eps=0.1)
    students: list[tuple[nn.Module, list[str], set[str]]] = [
        (Shorter(), ["fc1"], TERMS),
        (copy.deepcopy(trained), ["fc1", "fc2"], TERMS),
        (Other(), ["body", "head"], TERMS - {"features"}),
    ]
    for student, hidden, terms in students * 2:
        assert loss(student, *images).isfinite()
        assert loss.hidden_layers == hidden
        assert set(loss.terms) == terms
    assert pickle.dumps(loss)
    again = copy.deepcopy(loss)
    assert not again._students
    del student, students
    assert not loss._students
    assert again(copy.deepcopy(trained), *images).isfinite()


def test_inside_distributed_data_parallel(trained: TinyNet, images: Pair, tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    try:
        for around in (DistributedDataParallel, DataParallel):
            plain, wrapped = copy.deepcopy(trained), around(copy.deepcopy(trained))
            values = []
            for student in (plain, wrapped):
                torch.manual_seed(0)
                loss = PwoALoss(around(trained), eps=0.1, **EVERY_STEP)
                values.append(loss(student, *images))
                values[-1].backward()
                assert loss.hidden_layers == ["fc1", "fc2"]
            torch.testing.assert_close(values[0], values[1])
            torch.testing.assert_close(plain.fc1.weight.grad, wrapped.module.fc1.weight.grad)
        static = DistributedDataParallel(copy.deepcopy(trained), static_graph=True)
        PwoALoss(trained, eps=0.1, **EVERY_STEP)(static, *images).backward()
        with pytest.raises(
            ValueError, match=r"^distillation.gradient_weight=1 does not go with .*leave static_graph out"
        ):
            PwoALoss(trained, eps=0.1, distillation={"gradient_weight": 1})(static, *images)
    finally:
        torch.distributed.destroy_process_group()


def test_models_that_return_more_than_logits(trained: TinyNet, images: Pair) -> None:
    class Output(dict[str, Tensor]):
        pass

    class Wrapped(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Output:
            return Output(logits=self.net(x), extra=x)

    plain, wrapped = PwoALoss(trained, **EVERY_STEP), PwoALoss(Wrapped(trained), **EVERY_STEP)
    student = copy.deepcopy(trained)
    values = []
    for loss, model in ((plain, student), (wrapped, Wrapped(student))):
        torch.manual_seed(0)
        values.append(loss(model, *images))
    torch.testing.assert_close(*values)
    assert plain.radius == wrapped.radius > 0


def test_unlabelled_images(trained: TinyNet, images: Pair) -> None:
    loss = PwoALoss(trained, eps=0.1, hsic={"lambda_y": 0})
    assert loss(copy.deepcopy(trained), images[0]).isfinite()
    assert "hsic_y" not in loss.terms


@pytest.mark.parametrize("labelled", [True, False])
def test_all_terms_are_in_every_call_with_0_where_one_is_not_drawn(
    trained: TinyNet, images: Pair, labelled: bool
) -> None:
    wanted = TERMS if labelled else TERMS - {"hsic_y"}
    hsic = {"share": 0.5, "lambda_y": 5e-5 if labelled else 0}
    loss = PwoALoss(trained, eps=0.1, hsic=hsic, distillation={"feature_share": 0.5})
    student, found = perturbed_student(trained), []
    for _ in range(8):
        value = loss(student, images[0][:32], images[1][:32] if labelled else None)
        assert loss.terms.keys() == wanted
        torch.testing.assert_close(torch.stack(list(loss.terms.values())).sum(), value.detach())
        found.append({name: bool(term) for name, term in loss.terms.items()})
    assert all(terms["distillation"] for terms in found)
    for name in wanted - {"distillation"}:
        assert {terms[name] for terms in found} == {True, False}, name
    assert len({len({terms[name] for name in wanted if name.startswith("hsic")}) for terms in found}) == 1
    with torch.no_grad():  # as it is compared: all terms
        for _ in range(4):
            loss(student, *images)
            assert all(loss.terms.values())
    assert loss.step == 8


def test_draws_are_by_seed_and_step(trained: TinyNet, images: Pair) -> None:
    def drawn(seed: int, start: int) -> list[dict[str, bool]]:
        loss, found = PwoALoss(trained, eps=0.1, seed=seed, distillation={"gradient_weight": 1}), []
        student, loss.step = perturbed_student(trained), start
        for _ in range(10):
            torch.rand(start + 1)  # what else is drawn does not matter
            loss(student, images[0][:8], images[1][:8])
            found.append({name: bool(term) for name, term in loss.terms.items()})
        return found

    assert drawn(0, 0)[4:] == drawn(0, 4)[:6]
    assert drawn(0, 0) != drawn(1, 0)


def test_a_student_without_hidden_layers(trained: TinyNet, images: Pair) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    loss = PwoALoss(trained, eps=0.1, hsic={"lambda_x": 0, "lambda_y": 0})
    assert loss(linear, *images).isfinite()
    assert [*loss.terms] == ["distillation"]
    loss = PwoALoss(trained, eps=0.1)
    assert loss(linear, *images).isfinite()
    assert [*loss.terms] == ["distillation"]


def test_precisions_are_told(trained: TinyNet, images: Pair) -> None:
    x, y = images[0][:8], images[1][:8]
    loss = PwoALoss(trained, eps=0.1)
    assert torch.equal(
        loss(copy.deepcopy(trained), x.double(), y), loss.terms["distillation"] * 0 + sum(loss.terms.values())
    )
    with pytest.raises(ValueError, match="the student is float64, the teacher float32; give both alike"):
        loss(copy.deepcopy(trained).double(), x, y)


def test_bad_input_is_one_line(trained: TinyNet, images: Pair) -> None:
    x, y = images
    refusals = {
        r"distillation.temperature=0: input should be": lambda: PwoALoss(trained, distillation={"temperature": 0}),
        r"hsic.sgma: unknown key": lambda: PwoALoss(trained, hsic={"sgma": 1}),
        "hsic is a int": lambda: PwoALoss(trained, hsic=3),  # type: ignore[arg-type]
        r"hsic.layers: the model has no module 'fc7'": lambda: PwoALoss(trained, hsic={"layers": "fc7"})(trained, x, y),
        "student has 3 classes, the teacher 4": lambda: PwoALoss(Other(4))(trained, x, y),
        r"eps=8 is outside \(0, 1\)": lambda: PwoALoss(trained, eps=8),
        "eps='8/0' is not a positive number": lambda: PwoALoss(trained, eps="8/0"),
        "pixel_range=.* is empty": lambda: PwoALoss(trained, pixel_range=(1, 0)),
        "perturbation.radius=12 is wider than pixel_range": lambda: PwoALoss(trained, perturbation={"radius": 12}),
        "x: pixels reach from": lambda: PwoALoss(trained)(trained, x * 255, y),
        "y: labels reach from 0 to 9": lambda: PwoALoss(trained)(trained, x, y.where(y < 2, 9)),
        "y is missing": lambda: PwoALoss(trained)(trained, x),
    }
    for said, refused in refusals.items():
        with pytest.raises(ValueError, match=said) as caught:
            refused()
        assert "\n" not in str(caught.value)


# -- term by term ----

LAYERS = ["fc1", "fc2"]


def made(
    teacher: nn.Module,
    layers: Sequence[str] = (),
    *,
    lambda_x: float = 0.0,
    lambda_y: float = 0.0,
    perturbation: Any = None,
    feature_weight: float = 0.0,
    **distillation: float,
) -> PwoALoss:
    """A loss without perturbation and with the terms that are named only, those in every step."""
    hsic: dict[str, Any] = {"lambda_x": lambda_x, "lambda_y": lambda_y, "share": 1}
    return PwoALoss(
        teacher,
        distillation={"feature_weight": feature_weight, "feature_share": 1, **distillation},
        perturbation=perturbation or {"kind": "none"},
        hsic=hsic | ({"layers": tuple(layers)} if layers else {}),
    )


def perturbed_student(model: nn.Module) -> nn.Module:
    student = frozen_copy(model).requires_grad_(True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return student


def test_terms_are_the_parts_and_sum_to_the_loss(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images[0][:32], images[1][:32]
    student, teacher = perturbed_student(trained), trained
    objective = made(teacher, LAYERS, alpha=7.0, temperature=20.0, feature_weight=0.5, lambda_x=0.02, lambda_y=0.03)
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
    student = Counting(perturbed_student(trained))
    layers = [f"model.{name}" for name in LAYERS]
    perturbation = {"kind": "sign", "radius": 0.2}
    objective = made(
        Counting(trained), layers, feature_weight=1.0, lambda_x=1e-3, lambda_y=1e-3, perturbation=perturbation
    )
    teacher = objective.teacher
    objective.prepare(student, images[0][:2])
    student.seen.clear(), teacher.seen.clear()
    objective(student, images[0][:8], images[1][:8]).backward()
    assert len(student.seen) == len(teacher.seen) == 1
    assert torch.equal(student.seen[0], teacher.seen[0])
    assert 0.1 < (student.seen[0] - images[0][:8]).abs().max() <= 0.2 + 1e-6
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_labels_are_needed_only_for_their_term(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x = images[0][:8]
    unlabelled = made(trained, LAYERS, lambda_x=1e-3)
    assert not unlabelled.needs_labels
    assert "hsic_x" in (unlabelled(trained, x), unlabelled.terms)[1]
    labelled = made(trained, LAYERS, lambda_y=1e-3)
    with pytest.raises(ValueError, match=r"y is missing, and hsic\.lambda_y"):
        labelled(trained, x)
    labelled.use_hsic = False
    assert labelled(trained, x).item() == pytest.approx(0, abs=1e-5)


def test_a_last_batch_of_one_has_no_hsic(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    objective = made(trained, LAYERS, lambda_x=1.0, lambda_y=1.0)
    assert objective(trained, images[0][:1], images[1][:1]).isfinite()
    assert "hsic_x" not in objective.terms


def test_the_teacher_is_not_part_of_the_loss(trained: nn.Module) -> None:
    objective = made(trained, LAYERS)
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
    objective = made(trained, LAYERS, feature_weight=1.0)
    objective(student, images[0][:8])
    assert objective.terms["features"].item() == 0  # fc1's inputs alone, which are the same
    objective.student_channels = {"fc2": (-1, left)}
    objective(student, images[0][:8])
    # Activations 1.5 times as large: |s - t|^2 / |t|^2 is .25 in one layer, 0 in the other.
    assert objective.terms["features"].item() == pytest.approx(0.125, rel=1e-4)
    one_layer = made(trained, ["fc2"], feature_weight=1.0)
    one_layer(student, images[0][:8])
    assert "features" not in one_layer.terms


def test_input_gradients_are_one_more_term(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images[0][:8], images[1][:8]
    student = Counting(perturbed_student(trained))
    layers = [f"model.{name}" for name in LAYERS]
    terms = {"feature_weight": 1.0, "lambda_x": 1e-3, "lambda_y": 1e-3}
    without, objective = (
        made(Counting(trained), layers, **terms, gradient_weight=weight, gradient_share=1.0) for weight in (0.0, 3.0)
    )
    teacher = objective.teacher
    expected = without(student, x, y)
    objective.prepare(student, x[:2])
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
    objective = made(trained, gradient_weight=1.0, gradient_share=0.3)
    drawn = sum((objective(student, images[0][:4]), objective.terms["gradients"].item() > 0)[1] for _ in range(200))
    assert 40 <= drawn <= 80


def test_no_input_gradients_where_none_are_enabled(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    objective = made(trained, gradient_weight=1.0, gradient_share=1.0)
    with torch.no_grad():
        objective(perturbed_student(trained), images[0][:4])
    assert objective.terms["gradients"] == 0


def test_input_gradients_under_autocast(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    student = perturbed_student(trained)
    objective = made(trained, LAYERS, feature_weight=1.0, gradient_weight=1.0, gradient_share=1.0)
    torch.manual_seed(0)
    objective(student, images[0][:8])
    exact = objective.terms
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(student, images[0][:8])
    loss.backward()
    torch.testing.assert_close(objective.terms, exact)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in student.parameters())


def test_a_step_without_a_drawn_term_has_gradients_of_0(trained: TinyNet, images: Pair) -> None:
    x, student = images[0][:16], copy.deepcopy(trained).train()
    rarely: dict[str, Any] = {
        "hsic": {"lambda_y": 0, "share": 1e-9},
        "distillation": {"alpha": 0, "feature_share": 1e-9},
    }
    loss = PwoALoss(trained, eps=0.1, **rarely)
    for _ in range(2):  # the first reads the hidden layers of both
        loss(student, x).backward()
        gradients = [parameter.grad for parameter in student.parameters()]
        assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_radius_may_be_set_before_the_first_call(trained: TinyNet, images: Pair) -> None:
    loss = PwoALoss(trained)
    loss.set_radius(0.05)
    loss(copy.deepcopy(trained).train(), *images)
    assert (loss.classes, loss.radius) == (3, 0.05)
