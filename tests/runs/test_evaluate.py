"""Judging a run from Python; its command line is in test_compare.py and tests/cli."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
import torch

from pwoa_plugin.data.config import DataConfig
from pwoa_plugin.robustness import JudgeSettings, Report
from pwoa_plugin.runs.evaluate import bind_test_images, judge, pruned_network
from pwoa_plugin.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_run_is_judged_by_its_own_config(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    reports = judge(run, attacks="PGD-3", sample=10, seed=2, dense=True, progress=False)
    assert list(reports) == ["pruned", "dense"]
    for name, report in reports.items():
        assert (report.config.eps, report.config.n_images, report.config.seed) == (0.3, 10, 2)
        (file,) = (run / "robustness").glob(f"{name}-*.json")
        assert torch.equal(Report.from_json(file).worst_case.robust, report.worst_case.robust)
    assert not (run / "robustness" / "state").exists()
    assert "PGD-3" in RunFolder(run).report.read_text()


def test_a_pruned_network_is_sparse(finished: Path) -> None:
    weight = pruned_network(finished).get_submodule("fc1").get_parameter("weight")
    assert 0.5 < float((weight == 0).double().mean()) < 1


@pytest.mark.parametrize(
    ("sample", "at_most", "expected"), [(0, 5, 30), (12, 5, 12), (None, 5, 5), (None, None, 30), (None, 99, 30)]
)
def test_test_images_are_bound(mnist_root: Path, sample: int | None, at_most: int | None, expected: int) -> None:
    data = DataConfig(name="mnist", root=str(mnist_root), download=False)
    settings = JudgeSettings.of({"attacks": "FGSM", "eps": 0.3})
    assert len(bind_test_images(settings, data, sample, at_most).images.labels) == expected


SHARED = """
import os
os.environ.update(ENVIRONMENT)
import sys
from pwoa_plugin.cli import main

sys.stdout = open(f"{OUT}-{os.environ['RANK']}", "w")
sys.exit(main(LINE))
"""


def test_processes_share_a_judgement_and_one_writes_it(
    finished: Path, tmp_path: Path, pwoa: Callable[..., tuple[int, str, str]]
) -> None:
    line = ["--attacks", "PGD-2", "--batch-size", "4", "--eps", "0.1"]
    found = []
    for name in ("one", "two"):
        shutil.copytree(finished, tmp_path / name)
        asked = ["evaluate", str(tmp_path / name), *line]
        if name == "one":
            status, _, _ = pwoa(*asked)
            assert status == 0
        else:
            script = tmp_path / "judge.py"
            script.write_text(SHARED)
            started = ranks.start(script, 2, {"LINE": asked, "OUT": str(tmp_path / "said")})
            for process in started:
                process.join(180)
            assert [process.exitcode for process in started] == [0, 0]
            assert (tmp_path / "said-0").read_text().startswith("pruned: ")
            assert (tmp_path / "said-1").read_text() == ""
        (file,) = (tmp_path / name / "robustness").glob("*.json")
        found.append(Report.from_json(file))
        assert not (tmp_path / name / "robustness" / "state").exists()
    assert torch.equal(found[0].worst_case.robust, found[1].worst_case.robust)
    assert found[0].config == found[1].config
