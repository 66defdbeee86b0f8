"""The report of a real run on a small network, as its JSON is."""

from __future__ import annotations

import copy
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from conftest import TinyNet, make_images
from torch import nn

from pwoa_plugin import PwoAConfig, PwoAPruner, evaluate
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.runs.size import size_report


def with_real_images(finished: Path, to: Path) -> Path:
    """A copy of a finished run that is judged on images that its dense network classifies well."""
    shutil.copytree(finished, to)
    config = to / "config.yaml"
    config.write_text(config.read_text().replace("name: mnist,", "name: mnist-sample,"))
    assert "mnist-sample" in config.read_text()
    return to


class Accuracy(Callback):
    """Clean accuracy by epoch."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.images, self.values = model, make_images(40, seed=9), list[float]()

    @torch.no_grad()
    def on_epoch_end(self, status: Status) -> None:
        x, y = self.images
        self.values.append(float((self.model(x).argmax(1) == y).float().mean()))


@cache
def _made() -> str:
    torch.manual_seed(0)
    model = TinyNet()
    for x, y in [make_images(256, seed=5)] * 12:  # enough to be right on some, attacked
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.3 * parameter.grad
                parameter.grad = None
    dense = copy.deepcopy(model)
    config = PwoAConfig(
        sparsity=0.75,
        train_loader=make_images(96, seed=1),
        epochs=4,
        eps=0.15,
        admm={"epochs": 1},
        batch_size=48,
        progress=False,
    )
    watch = Accuracy(model)
    pruner = PwoAPruner(model, config, callbacks=[watch])
    pruner.compress()
    layers = [
        {
            "name": name,
            "shape": list(layer.shape),
            "weights": layer.weights,
            "kept": layer.keep,
            "density": layer.density,
            "dense_because": layer.dense_because,
        }
        for name, layer in pruner.allocation.items()
    ]
    epochs = [
        {**epoch, "sparsity": 0.75 if epoch["phase"] == "fine-tune" else 0.0, "clean": clean, "agreement": clean / 2}
        for epoch, clean in zip(pruner.history, watch.values, strict=True)
    ]
    judge = make_images(50, seed=3)
    robustness = {
        name: evaluate(net, judge, eps=0.15, attacks=("FGSM", "PGD-3"), progress=False).to_dict()
        for name, net in (("pruned", model), ("dense", dense))
    }
    content = {
        "format": 4,
        "name": "a run",
        "status": "finished",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 75.25,
        "seed": 0,
        "config": config.model_dump(mode="json"),
        "versions": {"python": "3.11.7", "torch": torch.__version__},
        "command": ["pwoa", "prune", "my config.yaml"],
        "device": "cpu",
        "model": {
            "arch": "tiny",
            "checkpoint": "robust.safetensors",
            "sha256": "0" * 64,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "notes": ["the prefix module. was taken off 6 names"],
        },
        "layers": layers,
        "allocation": "lamp",
        "granularity": "unstructured",
        "sparsity": 0.75,
        "size": size_report(model).to_dict(),
        "cost": None,
        "radius": pruner.radius,
        "residual": pruner.residual,
        "hidden_layers": ["fc1", "fc2"],
        "chosen": {},
        "epochs": epochs,
        "validation": {"images": 40, "dense_clean": 0.35},
        "best": {"epoch": 3, "agreement": epochs[2]["agreement"], "clean": epochs[2]["clean"]},
        "robustness": robustness,
        "other_evaluations": [],
        "folder": "runs/a run",
        "file_bytes": 7_000,
        "sparse_file_bytes": None,
    }
    return json.dumps(content)


def content() -> dict[str, Any]:
    """A copy of one's own, to change."""
    made: dict[str, Any] = json.loads(_made())
    return made


def unfinished() -> dict[str, Any]:
    """The same before the first epoch has ended."""
    nothing = {"size": None, "residual": None, "validation": None, "best": None, "epochs": [], "robustness": {}}
    return content() | nothing | {"status": "interrupted"}
