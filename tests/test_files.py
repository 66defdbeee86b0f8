from __future__ import annotations

import os
from pathlib import Path

import pytest

from pwoa_plugin._files import replaced_whole, write_text


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
