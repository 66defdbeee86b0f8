"""The command line: ``pwoa init``, ``prune``, ``evaluate``, ``compare``, ``show``.

Exit status: 0 done; 1 the run cannot go on (the loss is NaN, the disk is full); 2 bad input, in one line; 70 a fault of
the package, with its traceback; 130 and 143 stopped by Ctrl-C and SIGTERM, with the state saved. Slow packages are
imported by the command that needs them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from typer.exceptions import TyperException

from .. import __version__
from .._text import one_line
from ..errors import PwoAError, RunError, TrainingError
from .parser import parse

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = parse(arguments)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        program = context.command_path if context else "pwoa"
        message = error.format_message().rstrip(".")
        return _fail(program, f"{message[:1].lower()}{message[1:]} (see {program} --help)", 2)
    if isinstance(command, int):
        return command

    program = f"pwoa {type(command).__name__.lower()}"
    try:
        status = command.run(["pwoa", *arguments])
        sys.stdout.flush()  # here, where a reader that has gone away is noticed
        return status
    except KeyboardInterrupt:
        return _fail(program, "stopped at once; work since the last saved state is lost", 130)
    except BrokenPipeError:  # `pwoa show | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("PWOA_DEBUG"):
            raise
        if _cannot_go_on(error):
            return _fail(program, str(error), 1)
        if isinstance(error, PwoAError):
            return _fail(program, str(error), 2)
        traceback.print_exc()
        sys.stderr.write(
            f"{program}: this is a fault of pwoa-plugin {__version__}, not yours; please report it to its issue "
            "tracker, with the lines above\n"
        )
        return 70


def _cannot_go_on(error: Exception) -> bool:
    import torch

    return isinstance(error, (TrainingError, RunError, torch.OutOfMemoryError))


def _fail(program: str, message: str, status: int) -> int:
    sys.stderr.write(f"{program}: error: {one_line(message)}\n")
    return status
