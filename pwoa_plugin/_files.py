"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._text import did_you_mean, one_line, short
from .errors import DiskFullError, FileError, InputError, MissingFileError

if TYPE_CHECKING:
    from torch import Tensor

_MOST_NAMES = 10_000  # of a folder, to look for a near one


# The name of a scratch file: the target's, the machine and the process that write it, and a random part.
_SCRATCH = re.compile(r"\.(?P<target>.+)\.(?:(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-)?[0-9a-f]{8}\.tmp")
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
}


def named_path(name: str, path: str | os.PathLike[str]) -> Path:
    """A path that the user gave as ``name``; InputError if it is empty, which Python takes for the working folder."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).strip():
        raise InputError(f"{name}={short(path)} names no file or folder; give its path ('.' is the working folder)")
    return Path(path)


@contextmanager
def replaced_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch file beside ``path`` to write to; on leaving it takes the place of ``path`` in one move.

    Where the body raises, ``path`` is as it was. What was written is on the disk before the move, so that a crash
    leaves the old file or the new one. Scratch files of ``path`` that a killed process left are removed. Missing
    folders are made. An OSError becomes a FileError; a `DiskFullError` where space is what is missing.
    """
    target = named_path("path", path)
    if os.path.exists(target) and not os.path.isfile(target):  # the move would take a device's place, too
        raise FileError(f"{target}: cannot be written (it is {_kind(target)})")
    owner = f"{_machine()}-{os.getpid()}"
    scratch = target.with_name(f".{target.name}.{owner}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_scratch(target.parent, target.name)
        scratch.touch(exist_ok=False)
        mode = scratch.stat().st_mode  # what the umask gives; some writers make files for their owner alone
        yield scratch
        scratch.chmod(mode)
        _sync(scratch)
        os.replace(scratch, target)
        if os.name == "posix":
            _sync(target.parent)
    except FileError:
        raise
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def unwritable(path: str | os.PathLike[str], error: Exception) -> FileError:
    """What to raise where ``path`` cannot be written, because of an OSError or of what a library made of one.

    Of a scratch file, the message names the file whose place it was to take.
    """
    path = Path(path)
    if scratch := _SCRATCH.fullmatch(path.name):
        path = path.with_name(scratch["target"])
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors' texts
        number = int(found[1])
    if number in _FULL:
        return DiskFullError(f"{path}: cannot be written ({_FULL[number]}); free some space, and run the same again")
    reason = os.strerror(number) if number else one_line(error)
    return FileError(f"{path}: cannot be written ({reason}); give a place that can be written to")


def is_scratch(path: Path) -> bool:
    """Whether a file's name is that of a scratch file of `replaced_whole`."""
    return _SCRATCH.fullmatch(path.name) is not None


def clear_scratch(folder: Path, name: str) -> None:
    """Remove the scratch files of the file ``name`` whose process has ended; others may still be written."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = _SCRATCH.fullmatch(entry.name) if entry.name.endswith(".tmp") else None
            if found and found["target"] == name and found["machine"] == _machine() and _ended(int(found["process"])):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _ended(process: int) -> bool:
    """Whether a process of this machine has ended; False where that cannot be known."""
    if os.name != "posix" or process > 2**31 - 1:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def read_bytes(path: str | os.PathLike[str], *, most: int) -> bytes:
    """The content of a file that the user named, of at most ``most`` bytes."""
    file = named_path("path", path)
    check_file(file)
    try:
        with file.open("rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror})") from None
    if len(content) > most:
        raise FileError(f"{file}: has {file.stat().st_size:,} bytes, more than {most:,}; give another file")
    return content


def parse_json(text: str | bytes) -> Any:
    """JSON of a file or of a part of one.

    Raises:
        InputError: it is none, or nested too deep; one line says so.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError("is no usable JSON (nested too deep)") from None
    except ValueError as error:
        raise InputError(f"is no usable JSON ({one_line(error)})") from None


def read_json(path: str | os.PathLike[str], *, most: int = 500_000_000) -> Any:
    """The JSON in a file of at most ``most`` bytes; a FileError names a file that holds none."""
    content = read_bytes(path, most=most)
    try:
        return parse_json(content)
    except InputError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from None


def check_file(path: str | os.PathLike[str], what: str = "file") -> None:
    """Refuse what cannot be opened and read to an end: nothing there, a folder, a pipe or a device.

    An error calls the file ``what``, as ``file of masks``, and names a file of nearly that name.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise MissingFileError(f"{name}: no such {what}{near_name(name)}")
    if not os.path.isfile(name):  # opening a pipe would wait for ever
        raise FileError(f"{name}: is no usable {what} (it is {_kind(name)})")


def _kind(path: str | os.PathLike[str]) -> str:
    return "a folder" if os.path.isdir(path) else "a pipe or a device"


def near_name(path: str | os.PathLike[str]) -> str:
    """The end of a message about a path that is not there: ``; did you mean NAME?``, of what is in its folder.

    Where folders of the path are missing, too, the first of them is looked for.
    """
    missing = Path(path)
    while missing.parent != missing and not os.path.exists(missing.parent):
        missing = missing.parent
    try:
        with os.scandir(missing.parent) as entries:
            there = [entry.name for entry in islice(entries, _MOST_NAMES) if not entry.name.startswith(".")]
    except (OSError, ValueError):
        return ""
    return did_you_mean(missing.name, there)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; one of that name is replaced whole or not at all.

    Tensors that share memory are written each for itself.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        whole[name] = copy.clone() if copy.data_ptr() in seen else copy
        seen.add(copy.data_ptr())
    try:
        with replaced_whole(path) as scratch:
            save_file(whole, scratch, metadata=dict(metadata))
    except SafetensorError as error:  # what safetensors makes of the disk's errors
        raise unwritable(path, error) from error


def read_tensors(path: str | os.PathLike[str], what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and the metadata of its header. No code in a file is ever run.

    An error calls the file ``what``, as ``file of masks``.
    """
    from safetensors import SafetensorError, safe_open

    check_file(named_path("path", path), what)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{os.fspath(path)}: is no usable {what} ({one_line(error)})") from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text; a file of that name is replaced whole or not at all."""
    with replaced_whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")
