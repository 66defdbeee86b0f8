"""``benchmarks/gpu.py``: what it would run. Nothing runs."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def benchmarks() -> Iterator[None]:
    """The folder is not installed."""
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


def test_the_plan_has_every_part_and_what_is_there_is_done(tmp_path: Path) -> None:
    from benchmarks.gpu import EPOCHS, plan

    times, training, cells, checks = plan(tmp_path / "data", tmp_path, jobs=3)
    assert [part.arguments[2] for part in times.parts] == ["lenet", "lenet3", "cifar10", "resnet18-cifar"]
    assert all("--compile" in part.arguments for part in times.parts)
    assert (times.at_once, training.needed, cells.at_once) == (1, True, 3)
    assert len(cells.parts) == 1 + 6 * 3
    for part in cells.parts:
        assert ("--deep 1000" in part.command, "--device cuda" in part.command) == (True, True)
    assert "test_cuda_graphs_train_alike" in checks.parts[0].command
    assert not any(part.done for stage in (times, cells, checks) for part in stage.parts)
    cells.parts[1].file.parent.mkdir()
    cells.parts[1].file.touch()
    assert [part.done for part in cells.parts[:3]] == [False, True, False]
    assert shlex.split(cells.parts[1].command)[:2] == ["python", "-m"]
    assert training.parts[0].epochs == EPOCHS


def test_a_checkpoint_of_too_few_epochs_is_not_done(tmp_path: Path) -> None:
    from benchmarks.gpu import Part

    part = Part("training", (), tmp_path / "a.safetensors", is_log=False, epochs=2)
    assert not part.done
    part.file.touch()
    assert part.done  # made elsewhere: nothing tells its epochs
    for epochs, done in ((1, False), (2, True)):
        part.file.with_suffix(".json").write_text(json.dumps([{}] * epochs))
        assert part.done is done


def test_cells_are_named_as_robustness_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import robustness
    from benchmarks.gpu import plan

    for small in (False, True):
        cells = plan(tmp_path / "data", tmp_path / str(small), small=small)[2].parts
        for part in cells:
            part.file.parent.mkdir(parents=True, exist_ok=True)
            part.file.touch()
            monkeypatch.setattr(sys, "argv", list(part.arguments))
            robustness.main()  # takes the options, finds the file, and so runs nothing
    assert capsys.readouterr().out == ""


def test_nothing_begins_when_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gpu import Part, run

    part = Part("a", ("os",), tmp_path / "a.log")
    assert not run(part, tmp_path, deadline=0.0)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_what_runs_when_time_is_up_is_stopped_and_what_fails_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.gpu import Part, run

    (logs := tmp_path / "logs").mkdir()
    for code, seconds, done, said in (
        ("print('time')", 60, True, "1 min left: a: python -m timeit"),
        ("raise SystemExit(3)", 60, False, "a: failed, see"),
        ("import time; time.sleep(60)", 1, False, "a: stopped, time is up; call this again"),
    ):
        part = Part("a", ("timeit", "-n", "1", "-r", "1", code), tmp_path / "a.log")
        began = time.monotonic()
        assert run(part, logs, began + seconds) is part.done is done
        assert time.monotonic() - began < 30
        assert said in capsys.readouterr().out
        if done:
            assert part.file.read_text().startswith("time")
            part.file.unlink()


def test_the_tests_that_ask_for_a_gpu_are_found() -> None:
    from benchmarks.gpu import gpu_tests

    found = gpu_tests()
    assert "tests/robustness/test_estimator.py::test_a_model_on_the_cpu_stays_there_where_there_is_a_gpu" in found
    lines = [line for path in (ROOT / "tests").rglob("test_*.py") for line in path.read_text("utf-8").splitlines()]
    asked = sum(line.startswith("@pytest.mark.skipif(not torch.cuda.is_available()") for line in lines)
    assert len(found) == asked
