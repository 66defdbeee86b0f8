from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from pwoa_plugin import save_sparse
from pwoa_plugin.errors import InputError
from pwoa_plugin.models import load_checkpoint
from pwoa_plugin.models.lenet import LeNet
from pwoa_plugin.runs.files import read_report, write_report
from pwoa_plugin.runs.folder import RunFolder
from pwoa_plugin.runs.report import RunReport

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> RunFolder:
    """A copy of a finished run, to change."""
    shutil.copytree(finished, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_the_report_is_that_of_the_files(folder: RunFolder) -> None:
    report = read_report(folder.path)
    written = RunReport.from_dict(json.loads(folder.report.read_text()))
    assert report == written.model_copy(update={"folder": str(folder)})  # the run was copied
    assert (report.name, report.status, report.granularity) == ("run", "finished", "unstructured")
    kept, weights = sum(layer.kept for layer in report.layers), sum(layer.weights for layer in report.layers)
    assert report.sparsity == pytest.approx(1 - kept / weights)
    assert report.seconds == report.epochs[-1].seconds > 0

    folder.page.unlink()
    shutil.rmtree(folder.plots)
    assert write_report(folder) == report
    assert folder.page.exists()
    assert len(list(folder.plots.iterdir())) == 4


def test_a_sparse_file_in_the_folder_is_in_the_report(folder: RunFolder) -> None:
    assert read_report(folder.path).sparse_file_bytes is None
    model = LeNet()
    load_checkpoint(model, folder.pruned)
    save_sparse(model, folder.sparse)
    size = folder.sparse.stat().st_size
    assert size < folder.pruned.stat().st_size / 3
    assert write_report(folder).sparse_file_bytes == size
    assert f"its sparse file has {size:,} bytes" in folder.markdown.read_text()
    other = LeNet()
    load_checkpoint(other, folder.sparse)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_run_before_its_first_step_has_no_report(folder: RunFolder) -> None:
    folder.write_facts(radius=None)
    with pytest.raises(InputError, match="has not made its first step; resume it with"):
        read_report(folder.path)


def test_what_is_damaged_is_named(folder: RunFolder) -> None:
    lines = folder.metrics.read_text().splitlines()
    broken = [re.sub(r'"sparsity": [0-9.e-]+', '"sparsity": 2', line) for line in lines]
    folder.metrics.write_text("\n".join(broken))
    with pytest.raises(InputError, match=r"metrics\.jsonl: is damaged \(report\.epochs\.0\.sparsity: 2"):
        read_report(folder.path)
    folder.metrics.write_text("\n".join(lines))
    folder.robustness.mkdir()
    for text, said in (
        ("", r"is no usable JSON \(Expecting value"),
        ("{}", "report has format=None"),
        ("[1]", "holds a list, no object"),
    ):
        (folder.robustness / "pruned-eps0.3.json").write_text(text)
        with pytest.raises(InputError, match=rf"pruned-eps0\.3\.json: is damaged \({said}"):
            read_report(folder.path)


def test_the_hint_to_judge_names_the_folder_and_the_network_of_ones_own(folder: RunFolder) -> None:
    assert read_report(folder.path).not_judged == f"Not judged yet: pwoa evaluate {folder} --eps 0.3"
    facts = json.loads(folder.facts.read_text())
    folder.write_facts(model=facts["model"] | {"arch": "mynet:Tiny"})
    assert f"pwoa evaluate {folder} --arch mynet:Tiny --eps 0.3" in read_report(folder.path).not_judged


def test_lines_of_the_metrics_that_are_damaged_are_left_out(folder: RunFolder) -> None:
    whole = read_report(folder.path)
    with folder.metrics.open("a") as file:
        file.write('null\n[1]\n3\n{}\n{"event": "epoch"}\n{"event": "epoch", "step": true, "epoch": 1}\n{"event": "st')
    assert read_report(folder.path) == whole
