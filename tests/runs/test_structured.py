"""Runs that remove channels: `pwoa prune` with `granularity: structured`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIG
from interrupted import InterruptAt, same_end

from pwoa_plugin import PwoAConfig
from pwoa_plugin.models import LeNet
from pwoa_plugin.runs.files import read_report, write_report
from pwoa_plugin.runs.folder import RunFolder
from pwoa_plugin.runs.prune import prune
from pwoa_plugin.torch_pruning import load_pruned

pytestmark = pytest.mark.usefixtures("undrawn")

STRUCTURED = {"granularity": "structured", "sparsity": 0.75, "allocation": "uniform"}


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies by three pairs of forwards, and not by seconds of them."""
    monkeypatch.setattr("pwoa_plugin.runs.cost._SECONDS", 0.0)


@pytest.fixture
def structured(config: PwoAConfig) -> PwoAConfig:
    return PwoAConfig(**(dict(config) | STRUCTURED))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """The folder of a run without an interruption; not to be changed."""
    folder = tmp_path_factory.mktemp("structured")
    (folder / "prune.yaml").write_text(CONFIG.replace("ROOT", str(mnist_root)))
    config = PwoAConfig.from_yaml(folder / "prune.yaml")
    prune(PwoAConfig(**(dict(config) | STRUCTURED)), folder / "run", save_every=0, callbacks=[])
    return folder / "run"


def test_from_the_command_line(config_file: Path, tmp_path: Path, pwoa: Any) -> None:
    out = tmp_path / "run"
    fields = ["--set", "granularity=structured", "--set", "sparsity=0.75"]
    status, _, said = pwoa("prune", config_file, "--out", out, *fields, "--quiet")
    assert (status, said) == (0, "")
    assert not (out / "masks.safetensors").exists()

    small = load_pruned(LeNet().eval(), out / "pruned.safetensors")
    assert (small.conv1.out_channels, small.conv2.out_channels, small.fc1.out_features) == (4, 8, 64)
    x = torch.rand(2, 1, 28, 28)
    assert small(x).shape == (2, 10)
    assert json.loads((out / "run.json").read_text())["status"] == "finished"

    report = read_report(out)
    assert report.granularity == "structured"
    assert report.allocation == "uniform"
    cost = report.cost
    assert cost is not None
    assert cost.dense.parameters == 417_482
    assert cost.pruned.parameters == sum(parameter.numel() for parameter in small.parameters())
    kept = {layer.name: layer.kept for layer in report.layers}
    assert kept == {name: small.get_submodule(name).weight.numel() for name in ("conv1", "conv2", "fc1", "fc2")}
    assert report.epochs[0].sparsity == 0
    assert report.epochs[-1].sparsity == pytest.approx(report.sparsity)

    status, shown, _ = pwoa("evaluate", out, "--attacks", "FGSM", "--images", 20, "--dense", "--quiet")
    assert status == 0
    status, shown, _ = pwoa("show", out)
    assert status == 0
    for line in ("Before and after", "MACs, one image", "latency, batch 128", "robust, worst case", "fewer MACs"):
        assert line in shown
    for file in ("report.md", "report.html"):
        assert "latency, batch 1" in (out / file).read_text()

    status, _, said = pwoa("prune", config_file, "--out", out, *fields, "--resume", "--quiet")
    assert (status, said) == (0, "")


@pytest.mark.parametrize("step", [2, 3, 4, 8])
def test_resumed_it_ends_with_the_same_bits(structured: PwoAConfig, straight: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        prune(structured, tmp_path / "killed", save_every=0, callbacks=[InterruptAt(step)])
    prune(structured, tmp_path / "killed", resume=True, save_every=0, callbacks=[])
    same_end(straight, tmp_path / "killed", files=["pruned.safetensors"])


def test_a_damaged_network_is_told_of(straight: Path, tmp_path: Path, pwoa: Any) -> None:
    out = shutil.copytree(straight, tmp_path / "run")
    content = (out / "pruned.safetensors").read_bytes()
    (out / "pruned.safetensors").write_bytes(content[:-100])
    status, _, said = pwoa("evaluate", out, "--attacks", "FGSM", "--images", 20, "--quiet")
    assert status == 2
    assert "no usable file of a pruned network" in said


def test_a_report_without_a_latency(straight: Path, tmp_path: Path, pwoa: Any) -> None:
    out = shutil.copytree(straight, tmp_path / "run")
    facts = json.loads((out / "run.json").read_text())
    for times in (
        facts["cost"]["dense"]["latency_ms"],
        facts["cost"]["pruned"]["latency_ms"],
        facts["cost"]["speedup"],
    ):
        times["128"] = None
    (out / "run.json").write_text(json.dumps(facts))
    write_report(RunFolder(out))
    status, shown, _ = pwoa("show", out)
    assert status == 0
    row = next(line for line in shown.splitlines() if "latency, batch 128" in line)
    assert row.count("-") >= 3
    assert "ms" not in row
    cost = read_report(out).cost
    assert cost is not None
    assert cost.speedup["128"] is None
    for file in ("report.md", "report.html"):
        assert "latency, batch 128" in (out / file).read_text()
