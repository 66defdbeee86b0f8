"""Every configuration of the paper's cells that we ship, run for two steps on data in its own file format."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from data.files import write_cifar10, write_cifar100, write_mnist
from safetensors.torch import load_file, save_file

from pwoa_plugin.models import WideResNet, make_model
from pwoa_plugin.models.make import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(
    ("preset", "write", "arch", "classes", "channels"),
    [
        ("paper-mnist", write_mnist, "lenet3", 10, 1),
        ("paper-cifar10", write_cifar10, "wrn-34-10", 10, 3),
        ("paper-cifar100", write_cifar100, "wrn-34-10", 100, 3),
    ],
)
def test_two_steps(
    preset: str,
    write: Callable[..., None],
    arch: str,
    classes: int,
    channels: int,
    pwoa: Callable[..., tuple[int, str, str]],
    known_cifar: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / "data", 5, 5)
    known_cifar(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    # The same network with fewer and narrower layers: the published one takes 15 seconds a run.
    monkeypatch.setitem(ARCHITECTURES, "wrn-34-10", partial(WideResNet, 10, 4))
    torch.manual_seed(0)
    save_file(make_model(arch, num_classes=classes, in_channels=channels).state_dict(), "robust.safetensors")
    status, _, err = pwoa("init", "prune.yaml", "--preset", preset)
    assert status == 0, err
    # One step of ADMM, one of fine-tuning, two images each.
    changes = {"epochs": 2, "admm.epochs": 1, "batch_size": 2, "data.images": 3, "data.validation": 0.34}
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    status, _, err = pwoa("prune", "prune.yaml", "--out", "run", "--checkpoint", "robust.safetensors", "--quiet", *sets)
    assert status == 0, err
    report = json.loads(Path("run/report.json").read_text())
    assert [epoch["phase"] for epoch in report["epochs"]] == ["admm", "fine-tune"]
    assert report["size"]["compression"] == pytest.approx(16, rel=0.01)
    assert report["allocation"] == "uniform"
    masks = load_file("run/masks.safetensors")
    weights = load_file("run/pruned.safetensors")
    assert masks
    assert all((weights[name] != 0).equal(mask.bool()) for name, mask in masks.items())
