from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pwoa_plugin.errors import DiskFullError, FileError, InputError, RunError
from pwoa_plugin.runs.folder import RunFolder

FACTS: dict[str, Any] = {
    "format": 1,
    "started": "2026-01-02T03:04:05+00:00",
    "seed": 0,
    "config": {"sparsity": 0.9},
    "versions": {},
    "command": [],
    "device": "cpu",
    "threads": 1,
    "model": {"arch": "lenet", "checkpoint": "a.pt", "sha256": "0", "parameters": 9, "notes": []},
    "layers": [],
    "images": {},
}


def test_facts_grow_and_come_back_checked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.exists()
    folder.write_facts(**FACTS)
    facts = folder.read_facts()
    assert (facts.status, facts.radius, facts.model.arch) == ("running", None, "lenet")
    folder.write_facts(status="finished", radius=0.2)
    assert (folder.read_facts().status, folder.read_facts().radius) == ("finished", 0.2)
    assert json.loads(folder.facts.read_text()).keys() == FACTS.keys() | {"status", "radius"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"status": "done"}, r"is damaged \(run\.status: 'done': "),
        ({"model": {}}, r"is damaged \(run\.model\.arch: is missing"),
        ({"robustness": {"pruned": 3}}, r"is damaged \(run\.robustness\.pruned: 3: "),
        ({"epochs": []}, r"is damaged \(run\.epochs: "),
        ({"images": {"classes": -1, "channels": 1}}, r"is damaged \(run\.images\.classes: -1: "),
        ({"images": {"classes": True, "channels": 1}}, r"is damaged \(run\.images\.classes: True: "),
        ({"images": {"classes": 10**12, "channels": 1}}, r"is damaged \(run: images\.classes: 1000000000000 is more"),
        ({"images": {"classes": 10, "channels": -2}}, r"is damaged \(run\.images\.channels: -2: "),
        ({"images": {"classes": 10, "channels": 10**400}}, r"is damaged \(run"),
        ({"images": {"classes": 10}}, r"is damaged \(run: images\.channels is missing"),
        ({"model": {"arch": "a", "checkpoint": "b", "parameters": 3}}, r"is damaged \(run\.model\.sha256: is missing"),
        ({"model": {"arch": "a", "checkpoint": "b", "parameters": 1e308, "sha256": ""}}, r"is damaged \(run\.model\.p"),
        ({"seed": 2**64}, r"is damaged \(run\.seed: "),
        ({"residual": 1e200}, r"is damaged \(run\.residual: "),
        ({"config": None}, r"is damaged \(run\.config: "),
    ],
)
def test_damaged_facts_are_named_in_one_line(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_facts(**FACTS | changed)
    with pytest.raises(InputError, match=rf"^{folder.facts}: {said}") as refused:
        folder.read_facts()
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_run_and_a_file_that_is_no_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError, match=r"holds no run \(no run.json\)"):
        folder.read_facts()
    for text in ("", "[", "[" * 10**5):
        folder.facts.write_text(text)
        with pytest.raises(InputError, match=r"run\.json: is damaged"):
            folder.read_facts()


def test_states_are_newest_first_and_scratch_files_go(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.states_folder.mkdir()
    for step in (9, 100, 20):
        folder.state_at(step).touch()
    (folder.states_folder / ".a.0123abcd.tmp").touch()
    (folder.states_folder / ".a.0123abcd-17-0123abcd.tmp").touch()
    assert folder.states() == [folder.state_at(step) for step in (100, 20, 9)]
    with folder.locked():
        pass
    assert len(list(folder.states_folder.iterdir())) == 3


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new")
    with folder.locked(), pytest.raises(RunError, match="another process is running here"), folder.locked():
        raise AssertionError("two at once")
    with folder.locked():
        assert folder.path.is_dir()


def test_a_failed_write_says_how_to_go_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(RunError, match=r"cannot be written \(denied\); no state is saved yet"), folder.writing():
        raise OSError("denied")
    folder.states_folder.mkdir()
    folder.state_at(7).touch()
    said = r"metrics\.jsonl: cannot be written \(the disk is full\); the last good state is step-000000007"
    with pytest.raises(RunError, match=said), folder.writing(folder.metrics):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_output_folder_is_tried_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    folder.check_out(but=folder.config)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file/c: cannot be written to \(.*\); give another --out"):
        RunFolder(tmp_path / "file" / "c").check_out(but=folder.config)
    for number, kind, said in (
        (errno.EACCES, FileError, r"b: cannot be written to \(Permission denied\); give another --out"),
        (errno.ENOSPC, DiskFullError, r"b: cannot be written \(the disk is full\); free some space"),
    ):

        def fail(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(kind, match=said):
            folder.check_out(but=folder.config)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "notes.tmp", ".notes.tmp"])
def test_files_of_others_are_kept_and_our_scratch_files_are_not_in_the_way(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    scratch = tmp_path / ".config.yaml.0123abcd.tmp"
    scratch.touch()
    folder.check_out(but=folder.config)
    (tmp_path / name).touch()
    if name != "config.yaml":
        with pytest.raises(InputError, match=rf"holds other files \({name}\)"):
            folder.check_out(but=folder.config)
    with folder.locked():
        assert not scratch.exists()
    assert (tmp_path / name).exists()
