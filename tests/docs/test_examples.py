"""Examples in the docs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pwoa_plugin
from pwoa_plugin import PwoAConfig, PwoALoss, PwoAPruner
from pwoa_plugin.robustness import make_estimator

DOCS = Path(__file__).parents[2] / "docs"


class Writer:
    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[float, int]]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((value, step))


def examples(page: str, section: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_callbacks_history_and_terms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(48, 1, 4, 4), torch.arange(48) % 3
    config = PwoAConfig(sparsity=0.5, train_loader=(x, y), batch_size=16, epochs=2, eps=0.1, progress=False)
    writer = Writer()
    names: dict[str, Any] = {"PwoAPruner": PwoAPruner, "model": model, "config": config, "writer": writer}
    by_callback, by_loop = examples("nni.md", "Watch a training")
    exec(by_callback, names)  # the docs' own text
    assert {"loss", "lr", "distillation"} <= writer.scalars.keys()
    assert writer.scalars["loss"][-1][1] == 6
    assert [entry["epoch"] for entry in names["pruner"].history] == [1, 2]
    writer.scalars.clear()
    exec(by_loop, {"loss": PwoALoss(model, eps=0.1), "student": model, "x": x, "y": y, "writer": writer, "step": 7})
    assert {"distillation", "hsic_x", "hsic_y"} <= writer.scalars.keys()


def test_attacks_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every, own = examples("robustness.md", "Protocols")[-2:]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(3, 1, 8, 8)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "module.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    estimator = make_estimator(model, n_classes=3, input_shape=(1, 8, 8))
    names: dict[str, Any] = {"model": model, "images": x, "labels": model(x).argmax(1), "estimator": estimator}
    exec(every, names)  # the docs' own text
    columns = names["report"].attacks
    assert {"PGD-20", "HopSkipJump", "DeepFool", "DeepFool-20", "mine"} <= columns.keys()
    assert len(columns) == len(names["attacks"])


def test_files_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    images = torch.rand(24, 1, 8, 8)
    names: dict[str, Any] = {"model": model, "images": images, "test_set": (images, model(images).argmax(1))}
    (write,) = examples("shipping.md", "Writing a file")
    (judge,) = examples("shipping.md", "How robust is what ships")
    exec(write, names)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.pt2", "int8.onnx"}
    exec(judge.replace("eps=", "queries=2, attacks='FGSM', eps="), names)
    assert "Not a white-box figure" in capsys.readouterr().out


def test_every_public_name_has_an_example_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^## (\w+)\n\n```python\n(.*?)```", text, re.DOTALL | re.MULTILINE))
    assert set(found) == {*dir(pwoa_plugin)} - {"__version__"}
    setup = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert setup is not None
    names: dict[str, Any] = {"__name__": "example"}
    exec(setup[1], names)
    for name, example in found.items():
        assert f"import {name}\n" in example
        exec(example, names)


@pytest.mark.parametrize("page", ["index.md", "config.md", "trackers.md"])
def test_examples_of_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(48, 1, 4, 4), torch.arange(48) % 3
    y = model(x).argmax(1)
    config = PwoAConfig(sparsity=0.5, train_loader=(x, y), batch_size=16, epochs=1, eps=0.1, progress=False)
    names = {"model": model, "robust_model": model, "loader": (x, y), "images": x, "labels": y, "config": config}
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    for example in found:
        exec(example, names)
