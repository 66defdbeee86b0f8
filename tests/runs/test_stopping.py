"""Ctrl-C in `pwoa evaluate` and `pwoa compare`, and disks that are full meanwhile."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faults
import pytest

from pwoa_plugin.runs.callbacks import Stopped
from pwoa_plugin.runs.stopping import stopping_at_once

from .a_run import with_real_images

pytestmark = pytest.mark.usefixtures("undrawn")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def commands(finished: Path, tmp_path: Path) -> dict[str, list[str]]:
    """Ways to judge a run, in its own folder and in another one."""
    run = str(with_real_images(finished, tmp_path / "run"))
    compare = ["compare", run, "dense=shipped:robust_lenet_mnist", "--arch", "lenet", "--out", str(tmp_path / "out")]
    return {"evaluate": ["evaluate", run, "--dense"], "compare": compare}


def states_in(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):  # a folder that was made to try the place is removed meanwhile
        return list(folder.glob("*/**/state/**/*.safetensors"))
    return []


@pytest.mark.parametrize("name", ["evaluate", "compare"])
def test_ctrl_c_gives_the_command_to_go_on(commands: dict[str, list[str]], name: str, tmp_path: Path) -> None:
    command = [*commands[name], "--attacks", "PGD-400", "--sample", "20", "--batch-size", "1"]
    process = subprocess.Popen([sys.executable, "-m", "pwoa_plugin", *command], stderr=subprocess.PIPE, text=True)
    while not states_in(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130
    assert err.endswith(f"stopped; finished batches are kept; go on with: {shlex.join(['pwoa', *command])}\n")
    assert "Traceback" not in err
    assert states_in(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def stopped() -> None:
        with stopping_at_once():
            try:
                signal.raise_signal(number)
            finally:
                assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    with pytest.raises(Stopped) as error:
        stopped()
    assert error.value.signal == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("evaluate", ".safetensors"),
        ("evaluate", "report.html"),
        ("evaluate", "run.json"),
        ("compare", ".safetensors"),
        ("compare", "asked.json"),
        ("compare", "comparison.html"),
        ("compare", "attacks.png"),
    ],
)
def test_a_full_disk_is_status_1_and_the_same_command_goes_on(
    commands: dict[str, list[str]], name: str, file: str, pwoa: Run
) -> None:
    command = [*commands[name], "--attacks", "PGD-2", "--sample", "5", "--quiet"]
    with faults.full_disk(file):
        status, out, err = pwoa(*command)
    assert (status, out) == (1, "")
    assert f"{file}: cannot be written (the disk is full); free some space, and run the same again" in err
    assert len(err.splitlines()) == 1
    assert pwoa(*command)[0] == 0


def test_the_report_of_an_evaluation_is_named(commands: dict[str, list[str]], pwoa: Run, tmp_path: Path) -> None:
    err = pwoa(*commands["evaluate"], "--attacks", "FGSM", "--sample", "5")[2]
    assert err.splitlines()[-1] == f"Its report is {tmp_path / 'run' / 'report.html'}"
