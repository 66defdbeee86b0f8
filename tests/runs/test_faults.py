"""Hundreds of faults, each told in one line or mended: kills inside writes and at random, and damaged files of runs.

``pytest -m slow -s tests/runs/test_faults.py`` prints how many were made.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import processes
import pytest
import torch
from interrupted import same_end
from safetensors.torch import save_file

from pwoa_plugin import PwoAConfig
from pwoa_plugin.cli import main
from pwoa_plugin.errors import RunError
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.robustness import Comparison, Report
from pwoa_plugin.runs.files import read_report
from pwoa_plugin.runs.folder import RunFolder
from pwoa_plugin.runs.prune import prune

from .a_run import with_real_images

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]


def say(count: int, what: str) -> None:
    print(f"\n{count} {what}: nothing lost")  # noqa: T201 (the counts are asked for)


def kill(target: Callable[..., Any], *args: Any, at: float | tuple[int, bool], **kwargs: Any) -> bool:
    """Whether ``target`` was killed: after some seconds, or at a write (its number, and whether it is done)."""
    if isinstance(at, tuple):
        process = processes.start(faults.killed_at_write, *at, target, *args, **kwargs)
    else:
        process = processes.start(target, *args, **kwargs)
        process.join(at)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_prune_killed_at_every_write(config: PwoAConfig, finished: Path, tmp_path: Path) -> None:
    kills = 0
    while True:
        out = tmp_path / f"run-{kills}"
        if not kill(prune, config, out, at=(kills + 1, kills % 2 == 0), callbacks=[]):
            break
        kills += 1
        prune(config, out, resume=True, callbacks=[])
        folder = RunFolder(out)
        assert folder.read_facts().status == "finished"
        assert folder.has_report()
        assert json.loads(folder.report.read_text())["status"] == "finished"
        assert not faults.scratch_files(out)
        same_end(finished, out)
        shutil.rmtree(out)
    assert kills > 15
    say(kills, "kills of prune inside a write")


def verdicts(run: Path) -> dict[str, list[torch.Tensor]]:
    return {
        file.name: [column.robust for column in Report.from_json(file).columns.values()]
        for file in (run / "robustness").glob("*.json")
    }


def test_evaluate_killed_at_every_write_and_at_random(finished: Path, tmp_path: Path) -> None:
    how = ["--attacks", "PGD-2", "--dense", "--images", "4", "--batch-size", "2", "--quiet"]
    judged = with_real_images(finished, tmp_path / "judged")
    shutil.copytree(judged, tmp_path / "whole")
    started = time.perf_counter()
    assert processes_end(main, ["evaluate", str(tmp_path / "whole"), *how]) == 0
    length = time.perf_counter() - started
    expected = verdicts(tmp_path / "whole")
    draws, kills = random.Random(0), 0
    writes = 16  # steps of two attacks, two judgements, run.json twice, plots, reports
    moments: list[float | tuple[int, bool]] = [(number, number % 2 == 0) for number in range(1, writes + 1)]
    for at in moments + [draws.uniform(0, length) for _ in range(4)]:
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(judged, run)
        kills += kill(main, ["evaluate", str(run), *how], at=at)
        assert main(["evaluate", str(run), *how]) == 0
        again = verdicts(run)
        assert again.keys() == expected.keys()
        assert all(torch.equal(a, b) for name in again for a, b in zip(again[name], expected[name], strict=True))
        assert read_report(run).judged.keys() == {"pruned", "dense"}
        assert not faults.scratch_files(run)
        assert not (run / "robustness" / "state").exists()
    assert kills >= writes
    say(kills, "kills of evaluate")


def processes_end(target: Callable[..., Any], *args: Any) -> int | None:
    process = processes.start(target, *args)
    process.join()
    return process.exitcode


def test_compare_killed_at_every_write_and_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(robust_lenet().state_dict(), "dense.safetensors")
    command = ["compare", "dense.safetensors", "other=shipped:robust_lenet_mnist", "--arch", "lenet", "--data"]
    command += ["mnist-sample", "--eps", "0.3", "--attacks", "PGD-5", "--sample", "8", "--quiet"]
    command += ["--batch-size", "4", "--out"]
    started = time.perf_counter()
    assert processes_end(main, [*command, "whole"]) == 0
    length = time.perf_counter() - started
    whole = Comparison.from_json("whole/comparison.json")
    draws, kills = random.Random(0), 0
    moments: list[float | tuple[int, bool]] = [(number, number % 2 == 0) for number in range(1, 16)]
    for at in moments + [draws.uniform(0, length) for _ in range(6)]:
        shutil.rmtree("out", ignore_errors=True)
        kills += kill(main, [*command, "out"], at=at)
        assert main([*command, "out"]) == 0
        again = Comparison.from_json("out/comparison.json")
        for name, report in whole.reports.items():
            assert torch.equal(report.worst_case.robust, again.reports[name].worst_case.robust)
        assert Path("out/comparison.html").exists()
        assert not faults.scratch_files(Path("out"))
        assert not Path("out/state").exists()
    assert kills >= 10
    say(kills, "kills of compare")


def test_damaged_states(config: PwoAConfig, finished: Path, tmp_path: Path) -> None:
    draws, counts = random.Random(0), {"resumed": 0, "told": 0}
    before, out = tmp_path / "before", tmp_path / "run"
    assert kill(prune, config, before, at=(11, True), callbacks=[], save_every=0.0)
    assert len(RunFolder(before).states()) > 1
    for i in range(20):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(before, out)
        for path in RunFolder(out).states()[: 1 if i % 4 else None]:
            path.write_bytes(faults.damaged(path.read_bytes(), draws))
        said = ""
        try:
            prune(config, out, resume=True, callbacks=[])
            same_end(finished, out)
        except RunError as error:
            said = str(error)
        counts["told" if said else "resumed"] += 1
        assert "\n" not in said
        assert not said or "no state can be read" in said
    assert min(counts.values()) > 0
    say(sum(counts.values()), f"damaged states ({counts})")


def is_told_or_done(result: tuple[int, str, str]) -> bool:
    """Whether a command was refused, in one line; another failure is none that is told."""
    status, _, err = result
    assert status in (0, 1, 2), err
    assert "Traceback" not in err
    if status:
        assert err.count(": error: ") == 1, err
        assert len(err.splitlines()[-1]) < 2000
    return status != 0


def test_damaged_files_of_a_run(finished: Path, config_file: Path, pwoa: Run, tmp_path: Path) -> None:
    judged, run = tmp_path / "judged", tmp_path / "run"
    shutil.copytree(finished, judged)
    how = ["--attacks", "FGSM", "--images", 5, "--quiet"]
    assert pwoa("evaluate", judged, *how)[0] == 0
    draws, told = random.Random(0), 0
    files = ["run.json", "run.json", "run.json", "metrics.jsonl", "config.yaml", "robustness/*.json"]
    for i in range(300):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(judged, run)
        (path,) = run.glob(files[i % len(files)])
        if path.suffix == ".json" and i % 12 < 9:
            path.write_text(faults.edited(path.read_text(), draws))
        else:
            path.write_bytes(faults.damaged(path.read_bytes(), draws))
        refused = is_told_or_done(pwoa("show", run))
        if i % 4 == 0:
            refused |= is_told_or_done(pwoa("evaluate", run, *how))
        if i % 6 == 1:
            refused |= is_told_or_done(pwoa("prune", config_file, "--out", run, "--resume", "--quiet"))
        told += refused
    assert told > 100
    say(300, f"damaged files of a run ({told} told in one line)")


def test_damaged_files_of_a_comparison(pwoa: Run, tmp_path: Path, mnist_root: Path) -> None:
    command = ["evaluate", "shipped:robust_lenet_mnist", "--data", "mnist", "--data-root", mnist_root, "--eps", "0.3"]
    command += ["--arch", "lenet", "--attacks", "FGSM", "--sample", 5, "--quiet", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert pwoa(*command, whole)[0] == 0
    draws, told = random.Random(0), 0
    for i in range(80):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        path = out / ("asked.json", "comparison.json")[i % 2]
        if i % 4 < 3:
            path.write_text(faults.edited(path.read_text(), draws))
        else:
            path.write_bytes(faults.damaged(path.read_bytes(), draws))
        told += is_told_or_done(pwoa(*command, out))
    assert told > 20
    say(80, f"damaged files of a comparison ({told} told in one line)")
