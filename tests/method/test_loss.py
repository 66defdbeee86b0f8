"""`PwoALoss` in loops of one's own."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from conftest import TinyNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pwoa_plugin import PwoALoss
from pwoa_plugin.config import DistillationConfig, HSICConfig, PerturbationConfig
from pwoa_plugin.method.compression import build_objective
from pwoa_plugin.method.distillation import frozen_copy

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


def test_it_is_the_objective_that_a_run_would_build(trained: TinyNet, images: Pair) -> None:
    x, y = images[0][:32], images[1][:32]
    student = copy.deepcopy(trained)
    with torch.no_grad():
        student.fc1.weight.mul_(0.5)
    loss = PwoALoss(trained, eps=0.1)
    objective, radius = build_objective(
        frozen_copy(trained),
        x,
        distillation=DistillationConfig(),
        perturbation=PerturbationConfig(),
        hsic=HSICConfig(),
        eps=0.1,
        pixel_range=(0.0, 1.0),
    )
    torch.manual_seed(3)
    value = loss(student, x, y)
    torch.manual_seed(3)
    torch.testing.assert_close(value, objective(student, x, y))
    assert set(loss.terms) == TERMS
    torch.testing.assert_close(torch.stack(list(loss.terms.values())).sum(), value.detach())
    assert loss.hidden_layers == objective.hidden_layers == ["fc1", "fc2"]
    assert loss.radius == radius == pytest.approx(0.15)


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
    loss = PwoALoss(trained, eps=0.1)
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
    only_narrow = PwoALoss(trained, eps=0.1, hsic={"layers": "fc2"})
    only_narrow(student, *images)
    assert set(only_narrow.terms) == TERMS - {"features"}
    only_narrow.kept = {"fc2": (-1, torch.arange(10))}  # the teacher's first ten, which are the student's too
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
    assert not again._seen
    del student, students
    assert not loss._seen
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
                loss = PwoALoss(around(trained), eps=0.1)
                values.append(loss(student, *images))
                values[-1].backward()
                assert loss.hidden_layers == ["fc1", "fc2"]
            torch.testing.assert_close(values[0], values[1])
            torch.testing.assert_close(plain.fc1.weight.grad, wrapped.module.fc1.weight.grad)
        static = DistributedDataParallel(copy.deepcopy(trained), static_graph=True)
        PwoALoss(trained, eps=0.1)(static, *images).backward()
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

    plain, wrapped = PwoALoss(trained), PwoALoss(Wrapped(trained))
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


def test_a_student_without_hidden_layers(trained: TinyNet, images: Pair) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    loss = PwoALoss(trained, eps=0.1, hsic={"lambda_x": 0, "lambda_y": 0})
    assert loss(linear, *images).isfinite()
    assert [*loss.terms] == ["distillation"]
    with pytest.raises(ValueError, match="found no hidden layer"):
        PwoALoss(trained, eps=0.1)(linear, *images)


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
        "teacher is a str": lambda: PwoALoss("teacher"),  # type: ignore[arg-type]
        r"distillation.temperature=0: input should be": lambda: PwoALoss(trained, distillation={"temperature": 0}),
        r"hsic.sgma: unknown key": lambda: PwoALoss(trained, hsic={"sgma": 1}),
        "hsic is a int": lambda: PwoALoss(trained, hsic=3),  # type: ignore[arg-type]
        r"hsic.layers: the model has no module 'fc7'": lambda: PwoALoss(trained, hsic={"layers": "fc7"})(trained, x, y),
        r"student's logits are \(192, 3\), the teacher's \(192, 4\)": lambda: PwoALoss(Other(4))(trained, x, y),
        r"eps=8 is outside \(0, 1\)": lambda: PwoALoss(trained, eps=8),
        "pixel_range=.* is empty": lambda: PwoALoss(trained, pixel_range=(1, 0)),
        "x: pixels reach from": lambda: PwoALoss(trained)(trained, x * 255, y),
        "y: labels reach from 0 to 9": lambda: PwoALoss(trained)(trained, x, y.where(y < 2, 9)),
        "y is missing": lambda: PwoALoss(trained)(trained, x),
    }
    for said, refused in refusals.items():
        with pytest.raises(ValueError, match=said) as caught:
            refused()
        assert "\n" not in str(caught.value)
