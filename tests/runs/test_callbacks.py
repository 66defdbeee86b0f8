from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoAConfig
from pwoa_plugin._files import read_tensors
from pwoa_plugin._random import random_state
from pwoa_plugin.method.batches import Batches
from pwoa_plugin.method.callback import Status
from pwoa_plugin.method.trainer import Trainer
from pwoa_plugin.runs.callbacks import KeepBest, Metrics, Validation, best_epoch, read_metrics
from pwoa_plugin.runs.folder import RunFolder

Pair = tuple[Tensor, Tensor]


def watched(model: nn.Module, images: Pair, **fields: Any) -> tuple[Trainer, Validation]:
    values: dict[str, Any] = {"sparsity": 0.8, "train_loader": images, "epochs": 4, "eps": 0.1, "progress": False}
    run = Trainer(model, PwoAConfig(**values | fields))
    batches = Batches((images[0][:90], images[1][:90]), batch_size=32, device=torch.device("cpu"), labels_because="")
    return run, Validation(run, batches)


def test_validation_is_counted_and_leaves_training_alone(trained: nn.Module, images: Pair) -> None:
    plain = copy.deepcopy(trained)
    torch.manual_seed(0)
    watched(plain, images)[0].fit()
    torch.manual_seed(0)
    run, validation = watched(trained, images)
    run.fit([validation])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), trained.parameters(), strict=True))
    x, y = images[0][:90], images[1][:90]
    assert validation.images == 90
    assert validation.dense_clean == (run.teacher(x).argmax(1) == y).float().mean().item()
    assert run.history[-1]["clean"] == pytest.approx((trained(x).argmax(1) == y).float().mean().item())
    assert all(0 <= entry["agreement"] <= 1 for entry in run.history)


class WithLogits(nn.Module):
    """Answers as Transformers' models do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.network(x))


def test_a_network_that_answers_with_an_object_of_logits(trained: nn.Module, images: Pair) -> None:
    histories = []
    for model in (WithLogits(copy.deepcopy(trained)), trained):
        torch.manual_seed(0)
        run, validation = watched(model, images, epochs=2)
        run.fit([validation])
        histories.append([(entry["clean"], entry["agreement"]) for entry in run.history])
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    ("fields", "radius"),
    [
        ({}, 0.15),
        ({"perturbation": {"radius": 0.4}}, 0.4),
        ({"perturbation": {"kind": "none"}}, 0.15),
        ({"perturbation": {"kind": "none"}, "eps": None}, None),
    ],
)
def test_agreement_is_on_perturbed_images(trained: nn.Module, images: Pair, fields: Any, radius: float | None) -> None:
    run, validation = watched(trained, images, epochs=1, **fields)
    run.fit([validation])
    assert validation._perturbation.radius > 0
    if radius is not None:
        assert validation._perturbation.radius == pytest.approx(radius)
    before = random_state()
    answers, _ = validation._answers(run.teacher)
    assert all(torch.equal(tensor, before[name]) or name.endswith("gauss") for name, tensor in random_state().items())
    assert torch.equal(answers, validation._answers(run.teacher)[0])  # the same draws every time
    assert validation._teacher is not None
    assert torch.equal(answers, validation._teacher)
    p, q = answers.double(), validation._answers(trained)[0].double()
    assert run.history[0]["agreement"] == pytest.approx(1 - float((p - q).abs().sum(1).mean()) / 2, abs=1e-6)
    natural = run.teacher(images[0][:90]).softmax(1)
    assert not torch.allclose(answers.sort(0).values, natural.sort(0).values, atol=1e-3)


def test_a_loader_with_an_order_of_its_own_is_judged_alike_every_time(trained: nn.Module, images: Pair) -> None:
    run, _ = watched(trained, images)
    data = TensorDataset(images[0][:90], images[1][:90])
    loader = DataLoader(data, 32, shuffle=True, generator=torch.Generator().manual_seed(5))
    validation = Validation(run, Batches(loader, batch_size=32, device=torch.device("cpu"), labels_because=""))
    run.fit([validation])
    assert torch.equal(validation._answers(run.teacher)[0], validation._answers(run.teacher)[0])


class Stream:
    """A shuffled source without a length."""

    def __init__(self, images: Pair) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Pair]:
        x, y = self.images
        for index in torch.randperm(len(x)).split(30):
            yield x[index], y[index]


def test_a_source_without_a_length_is_judged_alike_every_time(trained: nn.Module, images: Pair) -> None:
    run, _ = watched(trained, images, epochs=1)
    source = Stream((images[0][:90], images[1][:90]))
    validation = Validation(run, Batches(source, batch_size=30, device=torch.device("cpu"), labels_because=""))
    run.fit([validation])
    assert validation._teacher is not None
    assert torch.equal(validation._teacher, validation._answers(run.teacher)[0])


def test_a_wide_eps_is_judged_within_the_pixel_range(trained: nn.Module, images: Pair) -> None:
    run, validation = watched(trained, images, epochs=1, eps=0.7, perturbation={"kind": "none"})
    run.fit([validation])
    assert validation._perturbation.radius == 1.0


def test_best_epoch() -> None:
    def entry(epoch: int, agreement: float | None, phase: str = "fine-tune") -> dict[str, Any]:
        return {"epoch": epoch, "agreement": agreement, "phase": phase}

    history = [entry(1, 0.99, "admm"), entry(2, 0.7), entry(3, 0.9), entry(4, 0.9), entry(5, 0.8)]
    assert best_epoch(history) == history[3]
    assert best_epoch(history[:1]) is None
    assert best_epoch([entry(1, None), entry(2, None)]) == entry(2, None)


def test_best_weights_are_those_of_the_best_epoch(trained: nn.Module, images: Pair, tmp_path: Path) -> None:
    run, validation = watched(trained, images)
    folder = RunFolder(tmp_path)
    states: dict[int, dict[str, Tensor]] = {}

    class Remember(KeepBest):
        def on_epoch_end(self, status: Status) -> None:
            states[status.epoch] = copy.deepcopy(run.model.state_dict())
            super().on_epoch_end(status)

    run.fit([validation, Remember(run, folder)])
    best = best_epoch(run.history)
    assert best is not None
    weights, facts = read_tensors(folder.best, "file of weights")
    assert facts["epoch"] == str(best["epoch"])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in states[best["epoch"]].items())


def test_metrics_cut_short_and_resumed(trained: nn.Module, images: Pair, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lines = [
        {"event": "step", "step": 1, "epoch": 1},
        {"event": "step", "step": 3, "epoch": 1},
        {"event": "epoch", "step": 3, "epoch": 1},
        {"event": "step", "step": 4, "epoch": 2},
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    run, _ = watched(trained, images)
    Metrics(run, folder, resumed_at=3, epochs_done=0)  # killed between the epoch's last step and its end
    assert read_metrics(folder.metrics) == lines[:2]
    assert Metrics(run, folder, resumed_at=3)._last_step == 3  # the line after it is ten steps later, as without a kill
    Metrics(run, folder, resumed_at=1)
    assert read_metrics(folder.metrics) == lines[:1]
    Metrics(run, folder)
    assert read_metrics(folder.metrics) == []
