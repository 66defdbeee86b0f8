"""Processes on this machine that share one command's work, started by torch's own launcher."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import secrets
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ._ranks import is_main, several, size, told_by_main
from ._text import named
from .errors import InputError, PwoAError, RunError, require

_T = TypeVar("_T")

_GIVEN, _RESULT = "given.pt", "result.pt"
_OURS = "pwoa-"  # what the launcher calls runs that are started here


def is_launched_here() -> bool:
    """Whether this is one of the processes that `launch_line` or `launch` started."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(_OURS)


def needs_launching(processes: int | None) -> bool:
    """Whether processes are to be started.

    Raises:
        InputError: there can be no such number, or a launcher has started processes already.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a script that runs itself as it is imported
        raise InputError(f"processes={processes}: begin the script's work with if __name__ == '__main__':")
    if processes is None or is_launched_here():
        return False
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise InputError(f"processes={processes}: give 1 or more")
    if several():
        raise told_by_main(InputError(f"processes={processes}: torchrun has started {size()}; leave processes out"))
    return processes > 1


def launch_line(line: Sequence[str], processes: int) -> int:
    """Run a command line of ``pwoa`` in several processes.

    Returns:
        The exit status; a process that did not end by itself is told on stderr.
    """
    again = f"finished batches are kept; go on with: {shlex.join(line)}"
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        _launch(processes, sys.executable, "-m", "pwoa_plugin", *line[1:])
    except SignalException as stopped:
        sys.stderr.write(f"stopped; {again}\n")
        return 128 + int(stopped.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        sys.stderr.write(f"pwoa: error: {name} ended process {rank} of {processes}; {again}\n")
        return 1
    return 0


def launch(processes: int, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """What ``function`` returns in rank 0 of several processes, which call it with the same arguments.

    Arguments and result are pickled; tensors among the arguments are in the memory of all processes once.

    Raises:
        InputError: the arguments cannot be pickled.
        RunError: a process did not end by itself.
        PwoAError: what the function raises in rank 0.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="pwoa-") as folder:
        try:
            torch.save((function, args, kwargs), Path(folder) / _GIVEN)
        except Exception as error:
            raise _unsendable(processes, error) from error
        try:
            _launch(processes, _call, folder, processes)
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            ended = (
                signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit status {failure.exitcode}"
            )
            raise RunError(f"process {rank} of {processes} has ended ({ended}); finished batches are kept") from None
        result: Any = torch.load(Path(folder) / _RESULT, weights_only=False)
    if isinstance(result, PwoAError):
        raise result
    found: _T = result
    return found


def _call(folder: str, processes: int) -> None:
    """Call what the parent has written, in one of the processes; rank 0 writes the result."""
    import torch

    try:
        path = Path(folder) / _GIVEN
        try:
            function, args, kwargs = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
        except Exception as error:
            raise _unsendable(processes, error) from error
        result = function(*args, **kwargs)
    except PwoAError as error:
        result = error
    if is_main():
        torch.save(result, Path(folder) / _RESULT)


def _unsendable(processes: int, error: Exception) -> InputError:
    cure = "define classes and functions in a module of their own, or start the script with torchrun"
    return InputError(f"processes={processes}: what is given cannot be sent to others ({named(error)}); {cure}")


def _launch(processes: int, entry: Callable[..., Any] | str, *args: Any) -> None:
    """Start the processes and wait for them; threads are divided among them, unless OMP_NUM_THREADS says how many."""
    import torch
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    require("processes", ("accelerate",), "ranks")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=_OURS + secrets.token_hex(4),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // processes))
    with _quiet(), _environment(OMP_NUM_THREADS=threads):
        elastic_launch(config, entry)(*args)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the launcher's own log of processes that fail, who tell it themselves."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("torch.distrib")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
