"""Faults that are made on purpose: a kill inside a write, bytes that are changed, values that are replaced."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_VALUES: tuple[Any, ...] = (None, True, -1, 0, 10**12, 10**400, 1e308, -0.5, "", "x", "\x1b[31m", [], [1], {}, {"a": 1})


def killed_at_write(number: int, done: bool, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``target`` in a process that is killed when a file takes its place for the ``number``-th time, from 1.

    ``done``: just after it has taken its place, not just before.
    """
    replace, calls = os.replace, 0

    def killing(source: Any, to: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number and not done:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, to)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = killing
    return target(*args, **kwargs)


def killed_when_writing(name: str, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``target`` in a process that is killed when the file ``name`` is about to take its place."""
    replace = os.replace

    def killing(source: Any, to: Any) -> None:
        if Path(to).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, to)

    os.replace = killing
    return target(*args, **kwargs)


@contextlib.contextmanager
def full_disk(ending: str) -> Iterator[None]:
    """No file whose name ends so can be written any more."""
    replace = os.replace

    def failing(source: Any, to: Any) -> None:
        if str(to).endswith(ending):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, to)

    os.replace = failing
    try:
        yield
    finally:
        os.replace = replace


def in_little_room(target: Callable[..., Any], *args: Any, stderr: Path) -> Any:
    """Call ``target`` in a process that cannot write a file of more than 20,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with stderr.open("w") as said, contextlib.redirect_stderr(said):
        return target(*args)


def damaged(content: bytes, draws: random.Random) -> bytes:
    """Some bytes changed, or the end cut off."""
    if draws.random() < 0.3:
        return content[: draws.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(draws.choice((1, 1, 8))):
        changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    return bytes(changed)


def edited(text: str, draws: random.Random) -> str:
    """JSON with one entry replaced, left out or nested deeply."""
    content = json.loads(text)
    place, key = draws.choice(list(_entries(content)))
    how = draws.random()
    if how < 0.2:
        del place[key]
    elif how < 0.3:
        place[key] = "DEEP"
    else:
        place[key] = draws.choice(_VALUES)
    return json.dumps(content).replace('"DEEP"', "[" * 3000 + "]" * 3000)


def _entries(content: Any) -> Iterator[tuple[Any, Any]]:
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, entry in inside:
        yield content, key
        yield from _entries(entry)


def scratch_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
