"""Training through ``torch.compile``, by a backend that needs no compiler."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import EVERY_STEP
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from pwoa_plugin import PwoAGroupPruner, PwoAPruner
from pwoa_plugin._random import seeded
from pwoa_plugin.config import PwoAConfig
from pwoa_plugin.errors import InputError
from pwoa_plugin.method import compiled
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.method.compiled import CompiledForward
from pwoa_plugin.method.hidden import forward_with_hidden
from pwoa_plugin.method.snapshot import Snapshot
from pwoa_plugin.method.trainer import Trainer

Pair = tuple[Tensor, Tensor]
Counter = CompileCounterWithBackend


@pytest.fixture(autouse=True)
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """The graphs that are compiled, by a backend as fast as none."""
    found = Counter("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", found)
    return found


def config(images: Pair, **fields: Any) -> PwoAConfig:
    values: dict[str, Any] = {"sparsity": 0.8, "train_loader": images, "batch_size": 64, "epochs": 4, "eps": 0.1}
    return PwoAConfig(**values | {"optimizer": {"lr": 5e-3}, "progress": False} | fields)


def run(model: nn.Module, settings: PwoAConfig, callbacks: Sequence[Callback] = (), resume: Any = None) -> Trainer:
    trainer = Trainer(model, settings)
    with seeded(settings.seed):
        trainer.fit(callbacks, resume)
    return trainer


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        EVERY_STEP,
        {"admm": {"epochs": 2}},
        {"accumulate": 2},
        {"adversarial": {"epochs": 1}},
        {"distillation": {"gradient_weight": 1.0}},
        {"autocast": "bfloat16"},
        {"hsic": {"lambda_x": 0, "lambda_y": 0}, "distillation": {"feature_weight": 0}},
    ],
    ids=["default", "every step", "admm", "accumulate", "adversarial", "gradients", "autocast", "no hidden layers"],
)
def test_the_result_is_that_of_an_uncompiled_run(
    trained: nn.Module, images: Pair, counter: Counter, fields: dict[str, Any]
) -> None:
    plain, model = copy.deepcopy(trained), trained
    expected = run(plain, config(images, **fields))
    assert counter.frame_count == 0
    found = run(model, config(images, compile=True, **fields))
    tolerance = 1e-2 if "autocast" in fields else 1e-5
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=tolerance)
    assert found.hidden_layers == expected.hidden_layers
    for name, mask in expected.masks.items():
        if "autocast" not in fields:
            assert torch.equal(found.masks[name], mask)
        assert not model.get_parameter(f"{name}.weight")[~found.masks[name]].any()
    for one, other in zip(found.history, expected.history, strict=True):
        assert one.keys() == other.keys()
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2 if "autocast" in fields else 1e-4)
    assert 2 <= counter.frame_count <= 4


class Normed(nn.Sequential):
    """With BatchNorm, whose statistics a forward updates."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten()]
        super().__init__(*layers, nn.Linear(96, 3))


def test_the_hidden_layers_are_the_hooks_ones(counter: Counter) -> None:
    torch.manual_seed(0)
    model, forward = Normed(), CompiledForward()
    plain = copy.deepcopy(model)
    for layers in ([], ["3", "6"], ["6"], [], ["3", "6"]):
        x = torch.rand(4, 1, 8, 8)
        (found, hidden), (expected, noted) = forward(model, x, layers), forward_with_hidden(plain, x, layers)
        torch.testing.assert_close(found, expected)
        assert list(hidden) == list(noted) == layers
        for name in layers:
            torch.testing.assert_close(hidden[name], noted[name])
        sum(part.square().sum() for part in (found, *hidden.values())).backward()
        sum(part.square().sum() for part in (expected, *noted.values())).backward()
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        assert_alike(model, plain)  # BatchNorm's statistics, too
    assert counter.frame_count == 3  # one for each choice of layers
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_graphs_are_of_two_shapes_and_of_steps_without_input_gradients(trained: nn.Module, counter: Counter) -> None:
    forward = CompiledForward()
    for size in (8, 3, 8, 5, 3, 6):
        output, _ = forward(trained, torch.rand(size, 1, 8, 8), ["fc2"])
        assert len(output) == size
    assert counter.frame_count == 2
    forward(trained, torch.rand(8, 1, 8, 8, requires_grad=True), ["fc1"])
    assert counter.frame_count == 2


def test_runs_do_not_use_up_torch_s_count_of_compilations(trained: nn.Module, counter: Counter) -> None:
    for _ in range(10):  # torch takes 8
        CompiledForward()(copy.deepcopy(trained), torch.rand(4, 1, 8, 8), [])
    assert counter.frame_count == 10


def test_an_epoch_s_last_batch_has_a_graph_of_its_own(images: Pair, counter: Counter) -> None:
    torch.manual_seed(0)
    model, plain = Normed(), Normed()
    plain.load_state_dict(model.state_dict())
    fields: dict[str, Any] = {"batch_size": 50, "sparsity": 0.5} | EVERY_STEP  # 50, 50, 50 and 42 of 192
    run(plain, config(images, **fields))
    run(model, config(images, compile=True, **fields))
    assert_alike(model, plain)
    assert counter.frame_count == 4


class StateAt(Callback):
    """Keeps the state of a step, and pickles the network there, as a checkpoint would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_run(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step(self, status: Status) -> None:
        if status.step == self.step:
            saved = self.trainer.state()
            self.state = Snapshot({name: tensor.clone() for name, tensor in saved.tensors.items()}, saved.facts)
            pickle.dumps(self.trainer.network)


def test_a_resumed_run_ends_as_if_it_had_not_stopped(trained: nn.Module, images: Pair, counter: Counter) -> None:
    settings, again, kept = config(images, compile=True), copy.deepcopy(trained), StateAt(5)
    run(trained, settings, [kept])
    counter.frame_count = 0
    run(again, settings, resume=kept.state)
    assert counter.frame_count >= 2
    for name, tensor in trained.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_nothing_is_left_of_it(trained: nn.Module, images: Pair) -> None:
    before = {name: (type(module), set(vars(module))) for name, module in trained.named_modules()}
    keys = list(trained.state_dict())
    trainer = run(trained, config(images, compile=True))
    assert list(trained.state_dict()) == keys
    assert {name: (type(module), set(vars(module))) for name, module in trained.named_modules()} == before
    for module in (*trained.modules(), *trainer.teacher.modules()):
        assert not module._forward_pre_hooks
    assert trainer.loss.network_forward is forward_with_hidden
    pickle.dumps(trained)


def test_nni_s_pruner_and_the_channel_pruner_give_what_they_give_uncompiled(images: Pair, counter: Counter) -> None:
    torch.manual_seed(0)
    model = Normed()
    for pruner, fields in ((PwoAPruner, {}), (PwoAGroupPruner, {"granularity": "structured", "sparsity": 0.5})):
        ends = []
        for wanted in (False, True):
            counter.frame_count = 0
            student = copy.deepcopy(model)
            settings = config(images, compile=wanted, **fields)
            if pruner is PwoAPruner:
                PwoAPruner(student, settings).compress()
            else:
                PwoAGroupPruner(student, images[0][:2], config=settings).compress()
            ends.append(student)
        assert counter.frame_count >= 2
        assert_alike(ends[1], ends[0])


class Branching(nn.Module):
    """Its code depends on the images: not one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.last(x if x.sum() > 0 else -x)


class Counting(nn.Linear):
    """A network that counts its calls in Python, so that torch would compile every call anew."""

    def __init__(self) -> None:
        super().__init__(64, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x.flatten(1) + self.calls)


def assert_trains_alike(model: nn.Module, images: Pair, device: str, **fields: Any) -> None:
    """With torch's own code, whose rounding differs."""
    plain = copy.deepcopy(model)
    expected = run(plain, config(images, device=device, **fields))
    found = run(model, config(images, device=device, compile=True, **fields))
    assert found.history[-1]["loss"] == pytest.approx(expected.history[-1]["loss"], rel=0.05)
    for name, mask in found.masks.items():
        assert not model.get_parameter(f"{name}.weight")[~mask].any()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_by_torch_s_own_compiler(trained: nn.Module, images: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    assert_trains_alike(trained, images, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fields", [{}, EVERY_STEP, {"accumulate": 2}, {"adversarial": {}}, {"autocast": "float16"}])
def test_cuda_graphs_train_alike(images: Pair, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    torch.manual_seed(0)
    assert_trains_alike(Normed().cuda(), images, "cuda", batch_size=50, **fields)


@pytest.mark.parametrize("make", [Branching, Counting])
def test_what_cannot_be_compiled_is_refused(make: type[nn.Module], images: Pair) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"^compile: torch.compile fails here \(.+\); leave compile out$"):
        run(model, config(images, compile=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="compile: does not go with checkpoint; leave one of them out"):
        config(images, compile=True, checkpoint=True)


def test_several_processes_are_refused(trained: nn.Module, images: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwoa_plugin._ranks.begin", lambda: True)
    with pytest.raises(InputError, match="compile: does not go with several processes; leave it out"):
        Trainer(trained, config(images, compile=True))
