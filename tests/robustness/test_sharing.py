"""Evaluations whose images several processes share."""

from __future__ import annotations

import shutil
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor, nn

from pwoa_plugin._launch import launch, launch_line, needs_launching
from pwoa_plugin.errors import InputError, RunError
from pwoa_plugin.robustness import Report, compare, evaluate
from pwoa_plugin.robustness.sharing import dealt, shared

SCRIPT = """
import os
os.environ.update(ENVIRONMENT)
rank = int(os.environ["RANK"])
import signal, sys, time
import torch
from pwoa_plugin.errors import PwoAError
from pwoa_plugin.robustness import evaluate, sharing
from pwoa_plugin.robustness.estimator import Logits

torch.set_num_threads(1)
sharing._SILENT = 2.0
model, images = torch.load(GIVEN, weights_only=False)
asked = dict(HOW)
EXTRA
began = time.monotonic()
try:
    report = evaluate(model, images, **asked)
except PwoAError as error:
    open(f"{OUT}.error-{rank}", "w").write(f"{type(error).__name__}: {error}")
    print(f"{time.monotonic() - began:.1f} s")
    sys.exit(2)
report.to_json(f"{OUT}-{rank}.json")
torch.save(report.adversarial, f"{OUT}-{rank}.pt")
"""

ATTACKS = [
    "PGD-5",
    "PGD-2-T",
    {"attack": "AutoAttack", "queries": 30},
    "art:SquareAttack(max_iter=5)",
]
HOW = {"eps": 0.1, "attacks": ATTACKS, "batch_size": 3, "progress": False}

Given = tuple[nn.Module, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def given() -> Given:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()
    x = torch.rand(14, 1, 8, 8)
    return model, (x, model(x).argmax(1))


@pytest.fixture(scope="module")
def alone(given: Given, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """What one process finds, and its state."""
    state = tmp_path_factory.mktemp("alone")
    return evaluate(*given, **HOW, state=state), state


class Started:
    """A script in several processes."""

    def __init__(
        self, folder: Path, given: Given, n: int, how: dict[str, Any], extra: str = "", only: int | None = None
    ):
        self.out = folder / "found"
        script = folder / "judge.py"
        script.write_text(SCRIPT.replace("EXTRA", textwrap.dedent(extra)))
        torch.save(given, folder / "given.pt")
        names = {"GIVEN": str(folder / "given.pt"), "OUT": str(self.out), "HOW": how}
        self.started = time.monotonic()
        self.processes = ranks.start(script, n, names, only)

    def join(self) -> list[int | None]:
        """Exit codes; none hangs."""
        for process in self.processes:
            process.join(180)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def error(self, rank: int) -> str:
        return Path(f"{self.out}.error-{rank}").read_text()

    def reports(self, n: int) -> list[tuple[Report, Tensor]]:
        paths = [f"{self.out}-{rank}" for rank in range(n)]
        return [(Report.from_json(f"{path}.json"), torch.load(f"{path}.pt", weights_only=True)) for path in paths]


def content(report: Report) -> dict[str, Any]:
    """All but the times."""
    found = report.to_dict()
    for column in (*found["attacks"].values(), found["worst_case"]):
        column.pop("seconds")
    return found


@pytest.mark.parametrize(("n", "done"), [(2, 0.0), (3, 0.5)], ids=["two", "three that go on with one's state"])
def test_verdicts_are_those_of_one_process(
    n: int, done: float, given: Given, alone: tuple[Report, Path], tmp_path: Path
) -> None:
    whole, state = alone
    shutil.copytree(state, tmp_path / "state")
    steps = sorted((tmp_path / "state").rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    kept = steps[: int(done * len(steps))]
    for file in steps[len(kept) :]:
        file.unlink()
    times = {file: file.stat().st_mtime_ns for file in kept}
    run = Started(tmp_path, given, n, {**HOW, "state": str(tmp_path / "state")})
    assert run.join() == [0] * n
    for report, adversarial in run.reports(n):
        assert content(report) == content(whole)  # verdicts, costs, alarms, notes
        assert torch.equal(adversarial, whole.adversarial)
    assert 1 < whole.worst_case.n_robust < 13
    names = {file.relative_to(state) for file in state.rglob("*.safetensors")}
    assert names == {file.relative_to(tmp_path / "state") for file in (tmp_path / "state").rglob("*.safetensors")}
    assert times == {file: file.stat().st_mtime_ns for file in kept}  # not computed again


def test_a_killed_process_loses_its_batch_alone(given: Given, alone: tuple[Report, Path], tmp_path: Path) -> None:
    """Without a launcher that ends the others; then one process goes on."""
    dies = """
        forward = Logits.forward
        def forward_or_die(self, x):
            if rank == 1 and self.n_forwards > 2500:
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(self, x)
        Logits.forward = forward_or_die
    """
    state = tmp_path / "state"
    run = Started(tmp_path, given, 2, {**HOW, "state": str(state)}, dies)
    assert run.join() == [2, -signal.SIGKILL]
    assert "rank 1 has ended" in run.error(0)
    done = {file: file.stat().st_mtime_ns for file in state.rglob("*.safetensors")}
    assert len(done) > 4
    again = evaluate(*given, **HOW, state=state)
    assert content(again) == content(alone[0])
    assert done == {file: file.stat().st_mtime_ns for file in done}


REFUSED = {
    "settings": ("asked['seed'] = rank", "seed of rank 1 is not that of rank 0"),
    "images": ("images = images[0][: 14 - rank], images[1][: 14 - rank]", "set of images of rank 1 is not that"),
    "weights": ("model[0].weight.data += rank", "the network of rank 1 is not that of rank 0"),
    "versions": (
        "import pwoa_plugin.robustness.evaluation as e\ne.installed_versions = lambda: {'art': str(rank)}",
        "the version of art of rank 1 is not that of rank 0",
    ),
    "an error in one": (
        "def fail(*_):\n    raise RuntimeError('no such kernel')\nif rank: Logits.forward = fail",
        "no such kernel",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_differs_ends_all_in_one_line(what: str, given: Given, tmp_path: Path) -> None:
    extra, message = REFUSED[what]
    run = Started(tmp_path, given, 2, {**HOW, "attacks": "PGD-2"}, textwrap.dedent(extra))
    assert run.join() == [2, 2]
    assert all(run.error(rank).startswith("InputError: ") for rank in (0, 1))
    assert message in run.error(0)
    assert "\n" not in run.error(0)


def test_a_process_that_never_comes_is_waited_for_no_longer_than_said(given: Given, tmp_path: Path) -> None:
    run = Started(tmp_path, given, 2, HOW, "os.environ['PWOA_RANKS_TIMEOUT'] = '2'", only=0)
    assert run.join() == [2]
    assert "did not answer within 2 s" in run.error(0)


def test_alone_means_this_process_whatever_was_started(given: Given, tmp_path: Path) -> None:
    run = Started(tmp_path, given, 2, {**HOW, "attacks": "PGD-2", "processes": 1}, only=1)
    assert run.join() == [0]


def test_python_starts_processes(given: Given) -> None:
    model, images = given
    asked = {"eps": 0.1, "attacks": "PGD-2", "batch_size": 3, "progress": False, "curve": [0.05]}
    one, two = (compare({"a": model}, images, **asked, processes=n) for n in (None, 2))
    assert content(one.reports["a"]) == content(two.reports["a"])
    assert one.curves["a"].n_robust == two.curves["a"].n_robust


def test_what_cannot_be_sent_or_fails_is_told_in_one_line(given: Given) -> None:
    model, images = given
    hidden = nn.Sequential(model, type("Hidden", (nn.Identity,), {})())
    with pytest.raises(InputError, match=r"processes=2: what is given cannot be sent to others \(PicklingError"):
        evaluate(hidden, images, **HOW, processes=2)
    with pytest.raises(InputError, match="model does not take images"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), images, **HOW, processes=2)


@pytest.mark.parametrize("n", [0, -1, True, 1.5])
def test_impossible_numbers_are_refused(n: Any, given: Given) -> None:
    with pytest.raises(InputError, match=f"processes={n}: give 1 or more"):
        evaluate(*given, **HOW, processes=n)


def test_a_launcher_inside_of_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="processes=2: torchrun has started 4; leave processes out"):
        needs_launching(2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "pwoa-1")
    assert not needs_launching(2)


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [("exit 2", 2, ""), ("kill -9 $$", 1, "SIGKILL ended process"), ("test $OMP_NUM_THREADS = 1", 0, "")],
)
def test_the_command_line_says_how_its_processes_ended(
    command: str, status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{command}\n")
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))
    assert launch_line(["pwoa", "evaluate", "a run"], 2) == status
    told = capsys.readouterr().err
    assert said in told
    assert (not said and not told) or told.endswith("finished batches are kept; go on with: pwoa evaluate 'a run'\n")


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(RunError, match=r"process . of 2 has ended \(SIGKILL\)"):
        launch(2, signal.raise_signal, signal.SIGKILL)


def test_one_process_deals_to_itself() -> None:
    seen: list[int] = []
    with shared():
        assert dealt([lambda i=i: i * i for i in range(4)], on_done=seen.append) == [0, 1, 4, 9]
    assert seen == [1, 2, 3, 4]
