"""Model cards: their lines load the file, and they speak of the file that they lie beside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONFIG

from pwoa_plugin import PwoAConfig
from pwoa_plugin._yaml import parse_yaml
from pwoa_plugin.export import Agreement, make_format
from pwoa_plugin.export.judging import Shipped
from pwoa_plugin.models import LeNet
from pwoa_plugin.runs.card import Card
from pwoa_plugin.runs.evaluate import pruned_network
from pwoa_plugin.runs.export import export
from pwoa_plugin.runs.prune import prune
from pwoa_plugin.runs.report import RunReport
from pwoa_plugin.runs.size import size_report

from .a_run import content


@pytest.fixture(scope="module")
def structured(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """The folder of a run that removes channels of a network for normalised images."""
    folder = tmp_path_factory.mktemp("structured")
    text = CONFIG.replace("ROOT", str(mnist_root)).replace("arch: lenet", "arch: lenet, mean: [0.13], std: [0.31]")
    (folder / "prune.yaml").write_text(text)
    config = PwoAConfig.from_yaml(folder / "prune.yaml", changes={"granularity": "structured", "sparsity": 0.75})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pwoa_plugin.runs.cost._SECONDS", 0.0)
        prune(config, folder / "run", callbacks=[])
    return folder / "run"


def code_of(card: Path) -> str:
    """The lines that load the file."""
    found = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("run", ["finished", "structured"])
@pytest.mark.parametrize("file", ["it's.sparse.safetensors", "net.onnx", "net.pt2"])
def test_its_lines_load_the_file_as_they_stand(
    run: str, file: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(run)
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pruned_network(folder).eval()(images)
    done = export(str(folder), tmp_path / file, progress=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"images": images.numpy() if file.endswith("onnx") else images}
    exec(code_of(done.card), names)
    logits = names["logits"]
    found = torch.from_numpy(logits) if isinstance(logits, np.ndarray) else logits.detach()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_sparse_file_of_fewer_channels_is_told_where_a_whole_network_is_wanted(
    structured: Path, tmp_path: Path, pwoa: Any, mnist_root: Path
) -> None:
    file = tmp_path / "net.sparse.safetensors"
    export(str(structured), file, values="bfloat16", progress=False)
    how = ["--arch", "lenet", "--data", "mnist", "--data-root", mnist_root, "--eps", "0.3", "--attacks", "FGSM"]
    status, _, err = pwoa("evaluate", file, *how)
    assert (status, err.count("\n")) == (2, 1)
    assert "channels were removed; give its run's folder, or load it with" in err


@pytest.mark.parametrize("run", ["finished", "structured"])
def test_its_first_lines_are_not_of_the_runs_own_file(run: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    card = export(str(request.getfixturevalue(run)), tmp_path / "net.pt2", progress=False).card.read_text()
    first = card.partition("\n# ")[2].partition("|")[0]
    assert "are left" in first
    assert "Training made no adversarial example" in first
    assert " file has " not in first
    assert "Its file" not in first


def card_of(tmp_path: Path, kind: str = "onnx", **fields: Any) -> str:
    (tmp_path / "net").write_bytes(b"1234")
    given: dict[str, Any] = {
        "file": tmp_path / "net",
        "format": make_format(kind),
        "kind": kind,
        "arch": "lenet",
        "checkpoint": "a.pt",
        "data": "mnist",
        "shape": (1, 28, 28),
        "size": size_report(LeNet(10, 1)),
        "new": "make_network('lenet', classes=10, channels=1, data='mnist')",
        "report": RunReport.from_dict(content()),
    }
    return Card(**given | fields).to_markdown()


def shipped(same: int) -> Shipped:
    agreement = Agreement(images=50, same=same, difference=0.0)
    judged = content()["robustness"]["pruned"]
    return Shipped(how="same answers", clean=agreement, attacked=agreement, network=judged)


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({}, True),
        ({"quantize": "int8"}, False),
        ({"kind": "sparse", "values": "float32"}, True),
        ({"kind": "sparse", "values": "bfloat16"}, False),
        ({"kind": "semi-structured"}, False),
        ({"shipped": shipped(50)}, True),
        ({"shipped": shipped(49)}, False),
    ],
)
def test_figures_of_the_network_are_the_files_where_its_answers_are(
    fields: dict[str, Any], own: bool, tmp_path: Path
) -> None:
    card = card_of(tmp_path, **fields)
    front = parse_yaml(card.split("---\n", 2)[1])
    assert isinstance(front, dict)
    assert ("model-index" in front) is own
    assert ("Robust on " in card.partition("\n# ")[2].partition("|")[0]) is own


def test_it_says_which_part_has_the_logits(tmp_path: Path) -> None:
    assert "in [0, 1]. Of what is returned, `1` has the logits." in card_of(tmp_path, output=1)
    assert "has the logits" not in card_of(tmp_path)
