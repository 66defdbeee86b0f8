"""A training that ends early, or in NaN."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoADistiller, PwoALoss, PwoAPruner, make_evaluator
from pwoa_plugin.errors import TrainingError
from pwoa_plugin.nni.training import Training

from .conftest import Pair, torch_evaluator


@pytest.mark.parametrize("kind", ["pruner", "distiller"])
@pytest.mark.parametrize("steps", [1, 9, 24])  # the losses are checked rarely while it trains
def test_weights_that_are_not_finite_are_never_returned(
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
    assert compressor.evaluator.model is None
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(("length", "told"), [(40, True), (10, False)])
def test_a_training_that_ends_early_is_logged(
    trained: nn.Module, images: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture, length: int, told: bool
) -> None:
    evaluator = make_evaluator(trained, DataLoader(TensorDataset(*images), batch_size=32))
    train = evaluator.training_func
    # It stops before the length that it is given.
    evaluator.training_func = lambda *args: train(*args[:4], 4, None)
    pruner = PwoAPruner(trained, [{"op_types": ["Linear"], "sparse_ratio": 0.5}], evaluator, eps=0.1)
    _, masks = pruner.compress(length)
    said = "training ended at step 4 of 20 of phase gradual; pruned to the full sparsity"
    assert (said in caplog.text) == told
    assert masks["fc1"]["weight"].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", ["pruner", "distiller"])
@pytest.mark.parametrize(("last", "wanted"), [(None, [True] * 18), (1, [False] * 12 + [True] * 6)])
def test_adversarial_examples_in_the_last_epochs(
    trained: nn.Module,
    images: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    last: int | None,
    wanted: list[bool],
) -> None:
    made: list[bool] = []
    after_step = Training.after_step

    def recorded(training: Training) -> None:
        made.append("adversarial" in training.terms)
        after_step(training)

    monkeypatch.setattr(Training, "after_step", recorded)
    evaluator = make_evaluator(trained, DataLoader(TensorDataset(*images), batch_size=32))
    section: dict[str, Any] = {"attack": "fgsm-rs", "epochs": last}
    entries = [{"op_types": ["Linear"], "sparse_ratio": 0.5}]
    compressor: Any = (
        PwoAPruner(trained, entries, evaluator, eps=0.1, adversarial=section)
        if kind == "pruner"
        else PwoADistiller(trained, [], evaluator, copy.deepcopy(trained), eps=0.1, adversarial=section)
    )
    compressor.compress(max_epochs=3)
    assert made == wanted


def test_batches_of_one_optimizer_step_draw_alike(trained: nn.Module, images: Pair, monkeypatch: Any) -> None:
    """Batches that are accumulated, and the calls of a closure, are one step; the next training counts on."""
    steps: list[int] = []
    of_checked = PwoALoss.of_checked

    def recorded(loss: PwoALoss, *args: Any) -> Tensor:
        steps.append(loss.step)
        return of_checked(loss, *args)

    def train(
        model: nn.Module, optimizer: torch.optim.Optimizer, step: Any, _: Any, max_steps: int | None, __: Any
    ) -> None:
        for _ in range(max_steps or 0):

            def closure() -> Tensor:
                optimizer.zero_grad()
                for batch in (images[0][:32], images[1][:32]), (images[0][32:64], images[1][32:64]):
                    loss: Tensor = step(batch, model)
                    loss.backward()
                return loss.detach()

            closure()
            optimizer.step(closure)

    monkeypatch.setattr(PwoALoss, "of_checked", recorded)
    evaluator = make_evaluator(trained, DataLoader(TensorDataset(*images), batch_size=32))
    evaluator.training_func = train
    distiller = PwoADistiller(trained, [], evaluator, copy.deepcopy(trained), eps=0.1)
    distiller.compress(2)
    distiller.compress(1)
    assert steps == [0] * 4 + [1] * 4 + [2] * 4


def test_last_epochs_need_the_steps_of_one(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    entries = [{"op_types": ["Linear"], "sparse_ratio": 0.5}]
    unknown = torch_evaluator(trained, images)
    pruner = PwoAPruner(trained, entries, unknown, eps=0.1, adversarial={"epochs": 1})
    with pytest.raises(ValueError, match=r"adversarial\.epochs=1 needs the steps of an epoch.*steps_per_epoch="):
        pruner.compress(12)
    pruner.unwrap_model()
    pruner = PwoAPruner(trained, entries, unknown, eps=0.1, adversarial={"epochs": 4}, steps_per_epoch=6)
    with pytest.raises(ValueError, match=r"adversarial\.epochs=4: more than the run's 2"):
        pruner.compress(12)
