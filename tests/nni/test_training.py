"""When a training updates and prunes, and what it takes out of a batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoADistiller, PwoAPruner, make_evaluator
from pwoa_plugin.config import ADMMConfig, GradualConfig
from pwoa_plugin.errors import TrainingError
from pwoa_plugin.nni.training import FiniteCheck, Plan, plan_alone, plan_scheduled


@pytest.mark.parametrize(
    ("admm", "gradual", "steps", "per_epoch", "plan"),
    [
        ({}, {}, 1000, None, Plan(10, 499, 500, gradual=True)),  # half of the steps
        ({}, {}, 40, None, Plan(1, 19, 20, gradual=True)),
        ({}, {}, 3, None, None),  # which leaves a single step: prune at once
        ({}, {"epochs": 3, "interval": 1}, 40, 6, Plan(1, 17, 18, gradual=True)),
        ({"rho": 0.2}, {}, 40, None, Plan(0, 9, 10)),  # whoever sets ADMM wants it: a quarter
        ({}, {"epochs": 0}, 40, None, Plan(0, 9, 10)),
        ({"rho": 0.2}, {}, 7, None, None),
        ({"epochs": 0}, {}, 40, 6, None),
        ({"epochs": 3}, {}, 40, 6, Plan(0, 17, 18)),
    ],
)
def test_alone(
    admm: dict[str, Any], gradual: dict[str, Any], steps: int, per_epoch: int | None, plan: Plan | None
) -> None:
    assert plan_alone(ADMMConfig(**admm), GradualConfig(**gradual), steps, per_epoch) == plan


def test_where_there_is_no_way_but_one_cut_admm_goes_before_it() -> None:
    assert plan_alone(ADMMConfig(), GradualConfig(), 40, None, one_cut=True) == Plan(0, 9, 10)


@pytest.mark.parametrize(
    ("steps", "prune"),
    [(50, 50), (51, 50), (54, 52), (200, 60), (30, 50), (None, 60)],
)
def test_in_a_scheduler_the_weights_get_time_to_follow_the_last_update(steps: int | None, prune: int) -> None:
    plan = plan_scheduled(interval=10, times=5, steps=steps)
    assert plan == Plan(10, 50, prune, scheduled=True)
    assert steps is None or steps < 50 or steps - plan.prune >= plan.prune - plan.last_update


@pytest.mark.parametrize("kind", ["pruner", "distiller"])
@pytest.mark.parametrize("steps", [1, 9, 24])  # none, or some, of the losses are looked at while it trains
def test_weights_that_are_no_numbers_are_never_returned(
    trained: nn.Module, images: tuple[Tensor, Tensor], kind: str, steps: int
) -> None:
    loader = DataLoader(TensorDataset(*images), batch_size=32)
    evaluator = make_evaluator(trained, loader, lr=1e38 if steps == 1 else 1e20)
    teacher = copy.deepcopy(trained)
    with torch.no_grad():
        teacher.fc2.weight.mul_(-20)  # a student equal to its teacher has no gradient
    entries = [{"op_types": ["Linear"], "sparse_ratio": 0.5}]
    compressor: Any = (
        PwoAPruner(trained, entries, evaluator, teacher_model=teacher, eps=0.1, origin_loss_lambda=1e3)
        if kind == "pruner"
        else PwoADistiller(trained, [], evaluator, teacher, eps=0.1, origin_loss_lambda=1e3)
    )
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(TrainingError, match=r"not finite.*lower the learning rate"):
        compressor.compress(steps)
    assert evaluator.model is None
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_is_remembered_until_it_is_looked_at(bad: float) -> None:
    finite, model = FiniteCheck(), nn.Linear(2, 1)
    for step, loss in enumerate([1.0, bad, 1.0]):
        finite.see(torch.tensor(loss), step)
    with pytest.raises(TrainingError, match="the loss is not finite at step 11"):
        finite.see(torch.tensor(1.0), 10)
    with pytest.raises(TrainingError, match="the loss is not finite"):
        finite.check(model, 11)
    FiniteCheck().check(model, 3)
    with torch.no_grad():
        model.bias.fill_(bad)
    with pytest.raises(TrainingError, match="bias is not finite after step 3"):
        FiniteCheck().check(model, 3)
    norm = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False))
    FiniteCheck().check(norm, 3)
    norm[0].running_var.fill_(bad)  # in training the output does not tell
    with pytest.raises(TrainingError, match=r"0\.running_var is not finite after step 3"):
        FiniteCheck().check(norm, 3)


@pytest.mark.parametrize("kind", ["pruner", "distiller"])
@pytest.mark.parametrize("field", ["max_steps", "max_epochs"])
def test_lengths_that_are_none(trained: nn.Module, images: tuple[Tensor, Tensor], kind: str, field: str) -> None:
    evaluator = make_evaluator(trained, DataLoader(TensorDataset(*images), batch_size=32))
    compressor: Any = (
        PwoAPruner(trained, [{"op_types": ["Linear"], "sparse_ratio": 0.5}], evaluator)
        if kind == "pruner"
        else PwoADistiller(trained, [], evaluator, trained)
    )
    compressor.unwrap_model()
    for length in (0, -3, "30", 1.5, True):
        with pytest.raises(ValueError, match=rf"^compress: {field}={length!r}; give an int of at least 1$"):
            compressor.compress(**{field: length})
    with pytest.raises(ValueError, match="give max_steps or max_epochs"):
        compressor.compress(3, 3)
    assert not compressor._is_wrapped


@pytest.mark.parametrize(("length", "told"), [(40, True), (10, False)])
def test_a_training_that_ends_before_its_plan_is_told(
    trained: nn.Module, images: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture, length: int, told: bool
) -> None:
    evaluator = make_evaluator(trained, DataLoader(TensorDataset(*images), batch_size=32))
    train = evaluator.training_func
    # One that stops when it likes.
    evaluator.training_func = lambda *args: train(*args[:4], 4, None)
    pruner = PwoAPruner(trained, [{"op_types": ["Linear"], "sparse_ratio": 0.5}], evaluator, eps=0.1)
    _, masks = pruner.compress(length)
    said = "training ended at step 4, before the end of gradual pruning at 20; pruned to the whole ratio"
    assert (said in caplog.text) == told
    assert masks["fc1"]["weight"].mean() == pytest.approx(0.5, abs=0.01)
