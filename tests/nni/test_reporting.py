"""What a training by an evaluator says while it runs."""

from __future__ import annotations

from typing import Any

import pytest
from nni.compression.pruning import AGPPruner, LevelPruner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoADistiller, PwoAPruner, make_evaluator
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.nni.training import Training

Pair = tuple[Tensor, Tensor]
HALF = [{"op_types": ["Linear"], "target_names": ["weight"], "sparse_ratio": 0.5}]


def trained_by(door: str, model: nn.Module, images: Pair, **options: Any) -> None:
    evaluator = make_evaluator(model, DataLoader(TensorDataset(*images), batch_size=len(images[0]) // 4))
    if door == "AGP":
        agp = AGPPruner(LevelPruner(model, HALF), 1, 2, evaluator=evaluator)
        PwoADistiller.from_compressor(agp, [], model, eps=0.1, **options).compress(max_steps=12)
    else:
        PwoAPruner(model, HALF, evaluator, eps=0.1, **options).compress(max_epochs=3)


@pytest.mark.parametrize(("door", "said"), [("AGP", "train 1/1 step 12/12"), ("list", "fine-tune 3/3 step 12/12")])
def test_progress_and_the_time_left(
    door: str, said: str, trained: nn.Module, images: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_by(door, trained, images)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "step" in line]
    assert line.startswith(said)
    assert "distillation" in line
    assert line.endswith("0 s left")


def test_terms_are_means_over_the_steps_since_the_last_report(
    trained: nn.Module, images: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, float]] = []
    reports: list[dict[str, float]] = []

    class Noted(Callback):
        def on_report(self, status: Status) -> None:
            reports.append(dict(status.terms))

    after_step = Training.after_step

    def recorded(training: Training) -> None:
        steps.append({name: float(term) for name, term in training.terms.items()})
        after_step(training)

    monkeypatch.setattr(Training, "after_step", recorded)
    monkeypatch.setattr("pwoa_plugin.nni.compressor.callbacks_for", lambda *_: [Noted()])
    trained_by("list", trained, images)
    assert len(steps) == 12
    first, tenth = reports
    assert first == pytest.approx(steps[0])
    assert tenth == pytest.approx({name: sum(step[name] for step in steps[1:10]) / 9 for name in steps[0]})
    assert 0 < tenth["hsic_x"] != steps[9]["hsic_x"]


@pytest.mark.parametrize("door", ["AGP", "list"])
def test_no_progress(door: str, trained: nn.Module, images: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    trained_by(door, trained, images, progress=False)
    assert "step" not in capsys.readouterr().err
