from __future__ import annotations

import signal
import sys
from pathlib import Path

import in_ranks
import pytest
from launched import launch, start

from pwoa_plugin import _ranks
from pwoa_plugin.errors import InputError, MissingPackageError


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for names in _ranks._NAMES:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "rank", "size"),
    [
        ({}, 0, 1),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1, 2),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, 3, 4),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, 1),
        ({"WORLD_SIZE": "2"}, 0, 1),  # no launcher's
        ({"RANK": "one", "WORLD_SIZE": "2"}, 0, 1),
    ],
)
def test_launchers_are_recognised(
    environment: pytest.MonkeyPatch, variables: dict[str, str], rank: int, size: int
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert (_ranks.rank(), _ranks.size(), _ranks.several()) == (rank, size, size > 1)


def test_one_process_asks_nobody(environment: pytest.MonkeyPatch) -> None:
    environment.setitem(sys.modules, "accelerate", None)
    assert not _ranks.begin()
    assert (_ranks.gathered(3), _ranks.from_main(3), _ranks.number_from_main(3)) == ([3], 3, 3)
    assert _ranks.on_main(lambda: 4) == 4
    with pytest.raises(InputError, match="mine"), _ranks.together():
        raise InputError("mine")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PWOA_BACKEND", "telepathy", "PWOA_BACKEND=telepathy: cannot be used here; use gloo"),
        ("PWOA_RANKS_TIMEOUT", "soon", "PWOA_RANKS_TIMEOUT=soon: give seconds"),
        ("PWOA_RANKS_TIMEOUT", "-1", "PWOA_RANKS_TIMEOUT=-1: give seconds"),
    ],
)
def test_settings_are_checked_before_any_waiting(
    environment: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    for each, number in {"RANK": "0", "WORLD_SIZE": "2", name: value}.items():
        environment.setenv(each, number)
    with pytest.raises(InputError, match=said):
        _ranks.begin()


def test_accelerate_is_named_where_it_is_missing(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "0")
    environment.setenv("WORLD_SIZE", "2")
    environment.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackageError, match=r'pip install "pwoa-plugin\[ranks\]"'):
        _ranks.begin()


def test_processes_tell_each_other() -> None:
    first, second = launch(in_ranks.ask_each_other)
    assert first == second
    assert first == {
        "ranks": [(0, 2, True), (1, 2, False)],
        "from_main": "of 0",
        "number": 10,
        "tensor": [0, 0],
        "parts": [[1, 2, 3], [4, 5]],
        "on_main": "0",
        "main_fails": "rank 0: rank 0 refuses",
        "one_fails": "rank 1: eps=9: too much",
        "none_fails": "nothing",
        "agree": "lr of rank 1 is not that of rank 0; start alike",
        "alike": "nothing",
    }


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_waiting_ends_with_one_line(tmp_path: Path, how: str) -> None:
    context = start(in_ranks.wait_for_the_other, tmp_path, how)
    first, second = context.processes
    first.join(120)  # long before the other, if it is there, ends
    assert first.exitcode == 0
    said = (tmp_path / "told").read_text()
    assert said.startswith("another process of the 2 has ended, or did not answer within 10 s; ")
    second.kill()
    second.join()
    assert second.exitcode == -signal.SIGKILL
