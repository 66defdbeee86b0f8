"""Evaluations that are killed and go on."""

from __future__ import annotations

import random
import runpy
import signal
import textwrap
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import processes
import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin._files import write_tensors
from pwoa_plugin._sealed import write_sealed
from pwoa_plugin.robustness import Report, evaluate
from pwoa_plugin.robustness.journal import FORMAT, Ball, Journal, Step

Pair = tuple[Tensor, Tensor]


class Counting(nn.Identity):
    n_forwards = 0


def step(folder: Path | None, compute: Callable[[], Tensor], ball: Ball | None = None) -> Tensor:
    return Journal(folder).run([Step("a", compute, 0, ball)])[0]


def test_a_step_is_computed_once_and_costs_what_it_did(tmp_path: Path) -> None:
    ends, calls = [], []

    def compute(number: int) -> Tensor:
        calls.append(number)
        model.n_forwards += 5
        notes.append(f"said {number}")
        return torch.rand(3)

    for _ in range(2):
        model, notes = Counting(), ["first"]
        journal = Journal(tmp_path, model).of("a|b")
        state = torch.get_rng_state()
        found = journal.run([Step(str(seed), partial(compute, seed), seed) for seed in (3, 4)], notes)
        assert torch.equal(torch.get_rng_state(), state)
        ends.append((torch.stack(found).tolist(), notes, model.n_forwards + journal.forwards))
    assert calls == [3, 4]
    assert journal.seconds > 0
    assert ends[0] == ends[1]
    assert ends[0][1:] == (["first", "said 3", "said 4"], 10)
    torch.manual_seed(4)
    assert ends[0][0][1] == torch.rand(3).tolist()  # its own seed's, whatever was drawn before


def test_a_damaged_step_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    step(tmp_path, lambda: torch.ones(2))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert step(tmp_path, lambda: torch.zeros(2)).tolist() == [0, 0]
    assert "is damaged" in caplog.text
    assert step(tmp_path, lambda: torch.ones(2)).tolist() == [0, 0]


def test_a_journal_of_nowhere_keeps_nothing() -> None:
    assert [step(None, lambda i=i: torch.tensor(i)).item() for i in (1, 2)] == [1, 2]


def same(one: Report, other: Report) -> bool:
    return (
        one.config == other.config
        and one.notes == other.notes
        and one.alarms == other.alarms
        and torch.equal(one.adversarial, other.adversarial)
        and one.attacks.keys() == other.attacks.keys()
        and all(
            torch.equal(column.robust, other.attacks[name].robust)
            and column.forwards == other.attacks[name].forwards
            and column.felled == other.attacks[name].felled
            for name, column in one.attacks.items()
        )
    )


ATTACKS = ["PGD-10", "PGD-3-T", "AutoAttack"]


def test_from_every_step_it_ends_with_the_same_numbers(model: nn.Module, held_out: Pair, tmp_path: Path) -> None:
    data = held_out[0][:24], held_out[1][:24]
    arguments = {"eps": 0.3, "attacks": ATTACKS, "batch_size": 8, "progress": False, "alarms": False}
    whole = evaluate(model, data, **arguments)
    kept = evaluate(model, data, **arguments, state=tmp_path)
    assert same(whole, kept)
    files = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) > 8
    for left in range(0, len(files), 3):
        for file in files[left:]:
            file.unlink(missing_ok=True)
        before = {file.stat().st_mtime_ns for file in files[:left]}
        again = evaluate(model, data, **arguments, state=tmp_path)
        assert same(whole, again)
        assert before <= {file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}  # not computed again


def test_another_evaluation_leaves_the_state_alone(model: nn.Module, held_out: Pair, tmp_path: Path) -> None:
    arguments = {"attacks": "PGD-3", "progress": False, "alarms": False, "state": tmp_path, "eps": 0.1}
    evaluate(model, held_out, **arguments)
    for change in ({"seed": 1}, {"eps": 0.2}, {"sample": 100}, {"batch_size": 50}, {"norm": "L2"}):
        evaluate(model, held_out, **(arguments | change))
    with torch.no_grad():
        model[-1].bias[0] += 1  # type: ignore[index,operator]
    evaluate(model, held_out, **arguments)
    assert len(list(tmp_path.iterdir())) == 7


SCRIPT = """
import torch
from torch import nn
from pwoa_plugin.robustness import evaluate
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
x = torch.rand(20, 1, 8, 8)
report = evaluate(
    model, (x, model(x).argmax(1)), eps=0.08, attacks=["PGD-10", "AutoAttack"], batch_size=5,
    state=STATE, progress=False, alarms=False,
)
report.to_json(REPORT)
"""


def test_killed_again_and_again_it_ends_with_the_same_numbers(tmp_path: Path) -> None:
    script = tmp_path / "judge.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def start(name: str) -> BaseProcess:
        folders = {"STATE": str(tmp_path / f"{name}-state"), "REPORT": str(tmp_path / f"{name}.json")}
        return processes.start(runpy.run_path, str(script), folders)

    whole_run = start("whole")
    whole_run.join()
    assert whole_run.exitcode == 0
    n_steps = len(list((tmp_path / "whole-state").rglob("*.safetensors")))
    killed = 0
    while True:
        process = start("killed")
        done = len(list((tmp_path / "killed-state").rglob("*.safetensors")))
        while process.is_alive():  # after a few more steps, in the middle of one
            if len(list((tmp_path / "killed-state").rglob("*.safetensors"))) >= done + n_steps // 3 and killed < 2:
                process.kill()
                killed += 1
                process.join()
            time.sleep(0.001)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert killed >= 2
    whole, again = (Report.from_json(tmp_path / f"{name}.json") for name in ("whole", "killed"))
    assert 0 < whole.worst_case.n_robust < 20
    assert whole.config == again.config
    for name, column in whole.attacks.items():
        assert torch.equal(column.robust, again.attacks[name].robust)
        assert column.forwards == again.attacks[name].forwards


class Masked(nn.Module):
    """A model whose gradients are blocked, or not: weights and answers are the same."""

    def __init__(self, model: nn.Module, *, blocked: bool) -> None:
        super().__init__()
        self.model, self.blocked = model, blocked

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach() + 0 * x if self.blocked else x)


def test_a_mended_gradient_is_judged_anew(model: nn.Module, held_out: Pair, tmp_path: Path) -> None:
    images = held_out[0][:20], held_out[1][:20]
    how = {"attacks": ["PGD-5"], "eps": 0.3, "alarms": False, "progress": False, "state": tmp_path}
    blocked = evaluate(Masked(model, blocked=True), images, **how)
    mended = evaluate(Masked(model, blocked=False), images, **how)
    assert torch.equal(blocked.clean_correct, mended.clean_correct)
    assert mended.worst_case.accuracy < blocked.worst_case.accuracy


BALL = Ball(torch.zeros(2, 1, 2, 2), 0.1, "Linf")


def _write(path: Path, found: Tensor, **changed: object) -> None:
    facts = {"step": f"{path.parent.name}/{path.stem}", "seconds": 1.0, "forwards": 2, "notes": [], "inside": True}
    write_sealed(path, {"found": found}, facts | changed, FORMAT)


DAMAGED: dict[str, Callable[[Path], None]] = {
    "the shape": lambda path: _write(path, BALL.centres[:1]),
    "the dtype": lambda path: _write(path, BALL.centres.double()),
    "the ball": lambda path: _write(path, BALL.centres + 0.2),
    "NaN": lambda path: _write(path, BALL.centres * torch.nan),
    "another step": lambda path: _write(path, BALL.centres, step="elsewhere/b"),
    "a fact": lambda path: _write(path, BALL.centres, notes=None),
    "no checksum": lambda path: write_tensors(path, {"found": BALL.centres}, {"cost": "{}"}),
    "no file of tensors": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_step_that_is_not_what_was_written_is_computed_again(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.safetensors"
    _write(path, BALL.centres)
    assert step(tmp_path, lambda: BALL.centres + 0.05, BALL).sum() == 0
    DAMAGED[what](path)
    assert step(tmp_path, lambda: BALL.centres + 0.05, BALL).amax() == 0.05
    assert "is damaged" in caplog.text
    assert step(tmp_path, lambda: BALL.centres, BALL).amax() == 0.05


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_byte_changes_no_verdict(model: nn.Module, held_out: Pair, tmp_path: Path, seed: int) -> None:
    how = {"attacks": ["PGD-3"], "eps": 0.3, "alarms": False, "progress": False, "batch_size": 4}
    data = held_out[0][:8], held_out[1][:8]
    whole = evaluate(model, data, **how, state=tmp_path)
    draw = random.Random(seed)
    file = draw.choice(sorted(tmp_path.rglob("*.safetensors")))
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    file.write_bytes(content)
    assert same(whole, evaluate(model, data, **how, state=tmp_path))
