from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pwoa_plugin._files import (
    is_scratch,
    named_path,
    near_name,
    read_bytes,
    read_json,
    read_tensors,
    replaced_whole,
    unwritable,
    write_tensors,
    write_text,
)
from pwoa_plugin.errors import DiskFullError, FileError, InputError, MissingFileError, RunError


def test_a_body_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with replaced_whole(path) as scratch:
            scratch.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]


def test_others_may_read_what_a_writer_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    before = os.umask(0o022)
    try:
        with replaced_whole(path) as scratch:
            scratch.write_text("text")
            scratch.chmod(0o600)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_tensors_come_back_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weight = torch.rand(3, 2)
    write_tensors(path, {"weight": weight, "tied": weight}, {"epoch": "3"})
    tensors, metadata = read_tensors(path, "file of weights")
    assert (sorted(tensors), metadata) == (["tied", "weight"], {"epoch": "3"})
    assert all(torch.equal(tensor, weight) for tensor in tensors.values())

    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-1], whole[:20]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^.*a\.safetensors: is no usable file of weights \(") as refused:
            read_tensors(path, "file of weights")
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="is no usable file of weights"):
        read_tensors(tmp_path, "file of weights")
    with pytest.raises(MissingFileError, match=r"b\.safetensors: no such file of weights"):
        read_tensors(tmp_path / "b.safetensors", "file of weights")


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"{", b"", b"\xff\xfe\x00", b"1" * 10_000, b"nothing"], ids=range(7)
)
def test_what_is_no_json_is_named_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"a\.json: is no usable JSON \(") as refused:
        read_json(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(FileError, match=r"a\.json: has .* bytes, more than"):
        read_json(path, most=len(content) - 1)
    with pytest.raises(MissingFileError):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, DiskFullError, r"a\.txt: cannot be written \(the disk is full\); free some space"),
        (errno.EDQUOT, DiskFullError, r"a\.txt: cannot be written \(the quota is used up\); free some space"),
        (errno.EACCES, FileError, r"a\.txt: cannot be written \(Permission denied\); give a place"),
        (errno.EROFS, FileError, r"a\.txt: cannot be written \(Read-only file system\); give a place"),
    ],
)
def test_a_failed_write_names_the_file_and_the_cure(
    number: int, kind: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    for write in (lambda path: write_text(path, "text"), lambda path: write_tensors(path, {}, {})):
        with pytest.raises(kind, match=said) as refused:
            write(tmp_path / "a.txt")
        assert isinstance(refused.value, RunError) == (kind is DiskFullError)
        assert "tmp" not in str(refused.value).replace(str(tmp_path), "")
    assert os.listdir(tmp_path) == []


def test_what_safetensors_makes_of_a_full_disk_is_known() -> None:
    error = unwritable("a", ValueError("I/O error: No space left on device (os error 28)"))
    assert str(error) == "a: cannot be written (the disk is full); free some space, and run the same again"
    assert str(unwritable("a", ValueError("odd"))).startswith("a: cannot be written (odd);")


def test_scratch_files_of_ended_processes_go_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    with replaced_whole(path) as mine:
        left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
        others = [left.with_name(left.name.replace("a.html", "b.html")), tmp_path / ".a.html.tmp", tmp_path / "a.tmp"]
        elsewhere = left.with_name(f".a.html.00000000-{ended.pid}-00000000.tmp")  # another machine's
        for file in (left, elsewhere, *others):
            file.touch()
        write_text(path, "first")
        assert mine.exists()
        assert not left.exists()
    assert sorted(tmp_path.iterdir()) == sorted([path, elsewhere, *others])
    assert is_scratch(left)
    assert not is_scratch(tmp_path / ".a.html.tmp")


@pytest.mark.parametrize("path", ["", " ", None, 3])
def test_a_path_that_names_nothing_is_refused_in_one_line(path: Any) -> None:
    for use in (
        lambda: named_path("state", path),
        lambda: write_text(path, "text"),
        lambda: read_bytes(path, most=1),
        lambda: read_tensors(path, "file of masks"),
    ):
        with pytest.raises(InputError, match=r"names no file or folder; give its path"):
            use()
    assert named_path("state", ".") == Path()


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FileError, match=r"is no usable file \(it is a pipe or a device\)"):
            read_bytes(path, most=10)
        with pytest.raises(FileError, match=r"is no usable file of masks \(it is a pipe or a device\)"):
            read_tensors(path, "file of masks")


@pytest.mark.parametrize(
    ("missing", "cure"),
    [
        ("mask.safetensors", "masks.safetensors"),
        ("run/masks.safetensors", "runs"),
        ("runs/x/y.pt", ""),
        ("a" * 5000, ""),
    ],
)
def test_the_near_name(tmp_path: Path, missing: str, cure: str) -> None:
    (tmp_path / "masks.safetensors").touch()
    (tmp_path / "runs").mkdir()
    assert near_name(tmp_path / missing) == (f"; did you mean {cure}?" if cure else "")
    with pytest.raises(MissingFileError, match="no such file of masks"):
        read_tensors(tmp_path / missing, "file of masks")
