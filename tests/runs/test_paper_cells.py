"""Every configuration of the paper's cells that we ship, run for two steps on data in its own file format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from data.files import python_knowing_cifar, write_cifar10, write_cifar100, write_mnist
from safetensors.torch import load_file, save_file

from pwoa_plugin.models import make_model


@pytest.mark.parametrize(
    ("preset", "write", "arch", "classes", "channels"),
    [
        ("paper-mnist", write_mnist, "lenet3", 10, 1),
        ("paper-cifar10", write_cifar10, "wrn-34-10", 10, 3),
        ("paper-cifar100", write_cifar100, "wrn-34-10", 100, 3),
    ],
)
def test_two_steps(
    preset: str, write: Callable[..., None], arch: str, classes: int, channels: int, tmp_path: Path
) -> None:
    write(tmp_path / "data", 5, 5)
    torch.manual_seed(0)
    save_file(make_model(arch, num_classes=classes, in_channels=channels).state_dict(), tmp_path / "robust.safetensors")
    python: Sequence[str] = python_knowing_cifar(tmp_path / "data") if "cifar" in preset else [sys.executable]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def pwoa(*arguments: object) -> None:
        command = [*python, "-m", "pwoa_plugin", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    pwoa("init", "prune.yaml", "--preset", preset)
    # One step of ADMM, one of fine-tuning, two images each.
    changes = {"epochs": 2, "admm.epochs": 1, "batch_size": 2, "data.images": 3, "data.validation": 0.34}
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    pwoa("prune", "prune.yaml", "--out", "run", "--checkpoint", "robust.safetensors", "--quiet", *sets)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [epoch["phase"] for epoch in report["epochs"]] == ["admm", "fine-tune"]
    assert report["size"]["compression"] == pytest.approx(16, rel=0.01)
    assert report["allocation"] == "uniform"
    masks = load_file(tmp_path / "run" / "masks.safetensors")
    weights = load_file(tmp_path / "run" / "pruned.safetensors")
    assert masks
    assert all((weights[name] != 0).equal(mask.bool()) for name, mask in masks.items())
