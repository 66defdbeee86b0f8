"""Which of a run's evaluations the headline is about."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pwoa_plugin.runs.evaluate import judge
from pwoa_plugin.runs.evaluations import Evaluation, alike, for_headline
from pwoa_plugin.runs.files import read_report
from pwoa_plugin.runs.headline import headline
from pwoa_plugin.runs.rendering import to_html, to_markdown
from pwoa_plugin.runs.report import RunReport

from .a_run import content

pytestmark = pytest.mark.usefixtures("undrawn")


def evaluation(network: str, **config: Any) -> Evaluation:
    report = copy.deepcopy(content()["robustness"][network])
    report["config"] |= config
    return Evaluation(network=network, report=report)  # type: ignore[arg-type]


L2, LARGE, OTHER_SEED = {"norm": "L2"}, {"eps": 0.3}, {"seed": 7}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([("pruned", {}), ("dense", {}), ("pruned", L2)], [("pruned", {}), ("dense", {})]),
        ([("pruned", {}), ("dense", L2)], [("pruned", {})]),
        ([("pruned", L2), ("dense", L2), ("pruned", LARGE)], [("pruned", L2), ("dense", L2)]),
        ([("pruned", L2), ("dense", L2), ("dense", {}), ("pruned", {})], [("pruned", {}), ("dense", {})]),
        ([("pruned", LARGE), ("dense", LARGE), ("pruned", {}), ("dense", {})], [("pruned", {}), ("dense", {})]),
        ([("dense", L2), ("dense", LARGE)], [("dense", LARGE)]),
        ([("pruned", {}), ("dense", OTHER_SEED)], [("pruned", {})]),
        ([], []),
    ],
)
def test_the_headline_is_the_strongest_like_for_like_pair(given: list[Any], expected: list[Any]) -> None:
    evaluations = [evaluation(network, **config) for network, config in given]
    chosen, rest = for_headline(evaluations, 0.15)
    assert chosen == [evaluation(network, **config) for network, config in expected]
    assert len(chosen) + len(rest) == len(given)
    assert for_headline(chosen + rest, 0.15) == (chosen, rest)  # reading what was written changes nothing


def test_more_steps_and_more_images_are_stronger() -> None:
    weak, strong = evaluation("pruned"), evaluation("pruned", seed=1)
    for column in strong.report["attacks"].values():  # type: ignore[union-attr]
        column["forwards"] *= 2  # type: ignore[call-overload, index]
    assert for_headline([strong, weak], 0.15)[0] == [strong]
    assert len(alike([weak, strong, evaluation("dense"), evaluation("pruned")])) == 3


def test_all_evaluations_are_listed_and_unlike_ones_have_lines_of_their_own(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    judge(run, attacks="PGD-3", sample=12, dense=True, progress=False)
    judge(run, attacks="PGD-3", sample=5, norm="L2", eps=1.5, progress=False)
    report = RunReport.from_dict(json.loads((run / "report.json").read_text()))
    assert report == read_report(run)
    assert {name: it.config.n_images for name, it in report.judged.items()} == {"pruned": 12, "dense": 12}
    assert [it.judged.config.norm for it in report.other_evaluations] == ["L2"]
    assert "of 12 images in the worst case at Linf eps = 0.3; the dense network" in headline(report)[1]
    for text in (to_markdown(report), to_html(report)):
        assert "All evaluations of this run" in text
        assert "L2 eps = 1.5" in text
    row = next(line for line in to_markdown(report).splitlines() if line.startswith("| L2 eps = 1.5"))
    assert row.endswith("| - | - |")  # the dense network was not judged so


def test_a_stronger_evaluation_of_the_pruned_network_alone_is_a_warning() -> None:
    made = content()
    assert not any("stronger" in said for said in RunReport.from_dict(made).warnings)
    alone = evaluation("pruned", seed=3)
    for column in alone.report["attacks"].values():  # type: ignore[union-attr]
        column["forwards"] *= 3  # type: ignore[call-overload, index]
    report = RunReport.from_dict(made | {"other_evaluations": [alone.to_dict()]})
    assert any(said.startswith("A stronger evaluation, of the pruned network alone") for said in report.warnings)
    assert report.dense_alike is not None
