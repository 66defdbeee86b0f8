"""`LightningEvaluator` in real trainings, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nni
import pytest
import pytorch_lightning as pl
import tiny_lightning
import torch
from tiny_lightning import Images, TinyModule, evaluator, pruned_by
from torch import Tensor, nn

import pwoa_plugin
from pwoa_plugin import LightningEvaluator, PwoAPruner

pytestmark = pytest.mark.filterwarnings("ignore")


def module(state: dict[str, Tensor], **options: Any) -> TinyModule:
    made = TinyModule(**options)
    made.net.load_state_dict(state)
    return made


def zeros(model: nn.Module) -> float:
    weights = [p for p in model.parameters() if p.dim() > 1]
    return sum(int(w.eq(0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("how", ["pruner", "distiller"])
@pytest.mark.parametrize(("steps", "epochs", "done"), [(20, None, 20), (None, 4, 24)])
def test_lightning_prunes_for_steps_and_for_epochs(
    trained_state: dict[str, Tensor], images: Any, how: str, steps: int | None, epochs: int | None, done: int
) -> None:
    model, made = module(trained_state), evaluator()
    assert made.steps_per_epoch == 6
    pruned_by(how, model, made, steps, epochs)
    assert model.steps == done
    assert zeros(model) == pytest.approx(0.75, abs=0.01)
    for name, weight in model.net.named_parameters():  # trained, and not masked only
        assert ((weight - trained_state[name]) * (weight != 0)).abs().sum() > 0
    assert (model(images[0]).argmax(1) == images[1]).float().mean() > 0.9


@pytest.mark.parametrize("scheduler", ["plain", "lists"])
def test_forms_of_configure_optimizers(trained_state: dict[str, Tensor], scheduler: str) -> None:
    model = module(trained_state, scheduler=scheduler)
    pruned_by("pruner", model, evaluator(), 12, None)
    assert zeros(model) == pytest.approx(0.75, abs=0.01)
    assert "configure_optimizers" in type(model).__dict__


def test_tasks_before_a_step_see_its_own_gradients(trained_state: dict[str, Tensor]) -> None:
    model, made = module(trained_state), evaluator()
    made._init_optimizer_helpers(model)
    made.bind_model(model, {name: name for name, _ in model.named_parameters()})
    seen: list[bool] = []
    losses: list[float] = []

    def before() -> None:
        loss = losses[-1]  # there is one loss for each step, computed before this task
        seen.append(len(losses) == len(seen) + 1 and model.net.fc2.bias.grad is not None and loss > 0)

    made.patch_loss(lambda loss, batch: losses.append(loss.item()) or loss)
    after: list[int] = []
    made.patch_optimizer_step([before], [lambda: after.append(1)])
    made.train(5, None)
    made.unbind_model()
    assert seen == [True] * 5
    assert len(after) == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"accumulate_grad_batches": 4}, 2),
        ({"limit_train_batches": 0.5}, 3),
        ({"limit_train_batches": 2}, 2),
        ({"batch_size": 50}, 4),
    ],
)
def test_steps_per_epoch_are_those_that_lightning_makes(
    trained_state: dict[str, Tensor], options: dict[str, Any], expected: int
) -> None:
    model, made = module(trained_state), evaluator(**options)
    assert made.steps_per_epoch == expected
    made._init_optimizer_helpers(model)
    made.bind_model(model, {name: name for name, _ in model.named_parameters()})
    steps: list[int] = []
    made.patch_optimizer_step([], [lambda: steps.append(1)])
    made.train(None, 2)
    assert len(steps) == 2 * expected


def test_what_cannot_be_used_is_refused(trained_state: dict[str, Tensor]) -> None:
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}

    class Untraced(TinyModule):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Named(TinyModule):
        def configure_optimizers(self) -> Any:
            return nni.trace(torch.optim.SGD)(self.named_parameters(), lr=0.1)

    spawned = nni.trace(pl.Trainer)(**options, strategy="ddp_spawn", devices=2)
    pruned = tiny_lightning.PRUNED
    refusals = {
        "use strategy='ddp'": lambda: LightningEvaluator(spawned, Images()),
        "this SGD is not traced": lambda: PwoAPruner(Untraced(), pruned, evaluator()),
        r"built from named_parameters\(\)": lambda: PwoAPruner(Named(), pruned, evaluator()),
        "model is not a pytorch_lightning.LightningModule": lambda: PwoAPruner(TinyModule().net, pruned, evaluator()),
    }
    for said, refused in refusals.items():
        with pytest.raises(ValueError, match=said) as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_without_lightning_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "pwoa_plugin.nni.evaluators.lightning")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "pwoa-plugin\[lightning\]"'):
        _ = pwoa_plugin.LightningEvaluator


def test_two_processes_end_with_the_same_weights_and_masks(trained_state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(trained_state, tmp_path / "start.pt")
    tests = Path(tiny_lightning.__file__).parent
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, tiny_lightning.__file__, tmp_path / "start.pt", tmp_path, "--steps", "18"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for how in ("pruner", "distiller"):
        first, second = (torch.load(tmp_path / f"{how}-{rank}.pt", weights_only=True) for rank in (0, 1))
        for name, weights in first.items():
            assert torch.equal(weights, second[name]), (how, name)
            assert not torch.equal(weights, trained_state[name])
        weights = [tensor for name, tensor in first.items() if name.endswith("weight")]
        pruned = sum(int(w.eq(0).sum()) for w in weights) / sum(w.numel() for w in weights)
        assert pruned == pytest.approx(0.75, abs=0.01)
        facts = [json.loads((tmp_path / f"{how}-{rank}.json").read_text()) for rank in (0, 1)]
        assert [f["world"] for f in facts] == [2, 2]
        assert [f["steps"] for f in facts] == [18, 18]
        assert [f["steps_per_epoch"] for f in facts] == [6, 6]
        assert facts[0]["seen"] != facts[1]["seen"]  # each had images of its own
