"""What is typed, and what it means."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.exceptions import TyperException

from pwoa_plugin.cli.commands import Command
from pwoa_plugin.cli.parser import parse

Run = Callable[..., tuple[int, str, str]]


def fields(line: str) -> dict[str, Any]:
    command = parse(line.split())
    assert isinstance(command, Command)
    return vars(command)


@pytest.mark.parametrize(
    "line",
    [
        "compare a b --attacks FGSM PGD-20 --seed 3",
        "compare --attacks FGSM PGD-20 --seed 3 a b",
        "compare a b --attacks FGSM --seed 3 --attacks PGD-20",
        "compare a --attacks=FGSM b --attacks=PGD-20 --seed=3",
        "compare --attacks FGSM PGD-20 --seed 3 -- a b",
    ],
)
def test_an_option_takes_several_values_or_is_repeated(line: str) -> None:
    got = fields(line)
    assert (got["networks"], got["attacks"], got["seed"]) == (["a", "b"], ["FGSM", "PGD-20"], 3)


def test_several_values_of_every_option_that_takes_them() -> None:
    got = fields("evaluate net --arch lenet vgg16 --mean -.1 -2e-1 --std 1 2 --curve 0.1 8/255 --quiet")
    assert (got["arch"], got["mean"], got["std"], got["curve"]) == (
        ["lenet", "vgg16"], [-0.1, -0.2], [1.0, 2.0], ["0.1", "8/255"],
    )  # fmt: skip
    assert (got["network"], got["quiet"], got["attacks"]) == ("net", True, None)


def test_options_of_one_value_take_one() -> None:
    got = fields("prune --set a=1 --set b=2 config.yaml --arch lenet --out run --seed -1")
    assert (got["set"], str(got["config"]), got["arch"], got["seed"]) == (["a=1", "b=2"], "config.yaml", "lenet", -1)
    with pytest.raises(TyperException, match="unexpected extra argument"):
        parse(["prune", "config.yaml", "--out", "run", "--set", "a=1", "b=2"])


def test_two_names_of_one_option() -> None:
    assert fields("evaluate a --images 7")["sample"] == fields("evaluate a --sample 7")["sample"] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prun"], "pwoa: error: no such command 'prun'. Did you mean 'prune'? (see pwoa --help)\n"),
        (["prune", "--sed", "3"], "pwoa prune: error: no such option: --sed; did you mean --seed? (see pwoa prune"),
        (["compare", "a", "--attack=FGSM"], "no such option: --attack; did you mean --attacks?"),
        (["show", "a", "-q"], "pwoa show: error: no such option: -q (see pwoa show --help)\n"),
        (["--versoin"], "pwoa: error: no such option: --versoin (Possible options: --version)"),
        (["prune", "a", "--out", "--quiet"], "--out: expected a value, got --quiet"),
        (["evaluate", "a", "--attacks", "--quiet"], "--attacks: expected a value, got --quiet"),
        (["prune", "a", "--out", ""], "--out: expected a value, got an empty one"),
        (["prune", "a", "--out="], "--out=: expected a value, got an empty one"),
        (["evaluate", ""], "an argument: expected a value, got an empty one"),
        (["evaluate", "a", "--eps"], "'--eps' requires an argument"),
        (["evaluate", "a", "--seed", "x"], "'--seed'"),
        (["evaluate", "a", "--mean", "x"], "'--mean'"),
    ],
)
def test_a_wrong_line_is_told_in_one_line_with_a_suggestion(pwoa: Run, arguments: list[str], said: str) -> None:
    status, out, err = pwoa(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_pwoa_alone_prints_the_help(pwoa: Run) -> None:
    status, out, err = pwoa()
    assert (status, err) == (0, "")
    assert out == pwoa("--help")[1]


@pytest.mark.parametrize("command", ["init", "prune", "evaluate", "compare", "show", "export"])
def test_help_shows_defaults_that_say_something(pwoa: Run, command: str) -> None:
    status, out, _ = pwoa(command, "--help")
    assert status == 0
    assert "None" not in out


# -- completion ----


def completed(shell: str, words: list[str], incomplete: str) -> str:
    """What the shell's script gets when it asks ``pwoa``."""
    line = " ".join([*words, incomplete])
    if shell == "bash":
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    else:
        asked = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = os.environ | {"_PWOA_COMPLETE": f"complete_{shell}"} | asked
    done = subprocess.run([sys.executable, "-m", "pwoa_plugin"], env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(pwoa: Run, shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    monkeypatch.setenv("HOME", str(tmp_path))
    status, script, _ = pwoa("--show-completion")
    assert status == 0
    assert "_PWOA_COMPLETE=complete_" + shell in script
    assert pwoa("--install-completion")[0] == 0
    assert any(script.strip() in file.read_text() for file in tmp_path.rglob("*") if file.is_file())

    assert "prune" in completed(shell, ["pwoa"], "pr")
    assert "evaluate" not in completed(shell, ["pwoa"], "pr")
    assert "--save-every" in completed(shell, ["pwoa", "prune", "a.yaml"], "--s")
    assert "paper-mnist" in completed(shell, ["pwoa", "init", "a.yaml", "--preset"], "paper")
    assert "--device" in completed(shell, ["pwoa", "compare", "a", "--attacks", "FGSM", "PGD-20"], "--dev")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_completion_in_bash_itself(pwoa: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    (tmp_path / "pwoa").write_text(f'#!/bin/sh\nexec {sys.executable} -m pwoa_plugin "$@"\n')
    (tmp_path / "pwoa").chmod(0o755)
    asking = "COMP_WORDS=(pwoa ev); COMP_CWORD=1; _pwoa_completion pwoa; echo ${COMPREPLY[@]}"
    script = f"{pwoa('--show-completion')[1]}\n{asking}\n"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["evaluate"]
