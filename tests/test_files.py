from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pwoa_plugin._files import read_json, read_tensors, replaced_whole, write_tensors, write_text
from pwoa_plugin.errors import FileError, InputError, MissingFileError


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
