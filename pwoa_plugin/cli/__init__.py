"""The command line: ``pwoa init``, ``prune``, ``evaluate``, ``compare``, ``show``, ``export``.

Exit status: 0 done; 1 the run cannot go on (the loss is NaN, the disk or the memory is full); 2 bad input, in one line;
70 a fault of the package, with its traceback; 130 and 143 stopped by Ctrl-C and SIGTERM. Slow packages are imported by
the command that needs them, and all but the standard library where Ctrl-C is told in one line.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import __version__, _ranks
from .._interrupt import leave_at_once, leave_in_order
from .._text import one_line
from ..errors import InputError, PwoAError, RunError, TrainingError, is_out_of_memory

if TYPE_CHECKING:
    from .commands import Command

__all__ = ["main"]

_MOST_CHARACTERS = 1500  # of an error; what was given may be longer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    leave_at_once()
    try:
        command = _ready(arguments)
    finally:
        leave_in_order()
    if isinstance(command, int):
        return command

    program = f"pwoa {type(command).__name__.lower()}"
    try:
        status = command.run(["pwoa", *arguments])
        sys.stdout.flush()  # here, where a reader that has gone away is noticed
        return status
    except KeyboardInterrupt:
        if not _ranks.is_main():
            return 130
        again = [*arguments, "--resume"] if command.resumes and "--resume" not in arguments else arguments
        sys.stderr.write(f"stopped; {_ranks.go_on()}: {one_line(shlex.join(['pwoa', *again]))}\n")
        return 130
    except BrokenPipeError:  # `pwoa show | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("PWOA_DEBUG"):
            raise
        if _ranks.is_told_elsewhere(error):
            return 2 if isinstance(error, InputError) else 1
        if not _ranks.is_main():
            program = f"{program}: rank {_ranks.rank()}"
        if isinstance(error, (TrainingError, RunError)):
            return _fail(program, str(error), 1)
        if isinstance(error, PwoAError):
            return _fail(program, str(error), 2)
        if is_out_of_memory(error):
            cure = "lower batch_size (--batch-size), the number of images or data.image_size"
            return _fail(program, f"the memory is full ({str(error)[:300]}); {cure}", 1)
        traceback.print_exc()
        sys.stderr.write(
            f"{program}: this is a fault of pwoa-plugin {__version__}, not yours; please report it to its issue "
            "tracker, with the lines above\n"
        )
        return 70


def _ready(arguments: list[str]) -> Command | int:
    """The command, with all that it needs imported; or an exit status."""
    from typer.exceptions import TyperException

    from .parser import parse

    try:
        command = parse(arguments)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        program = context.command_path if context else "pwoa"
        message = error.format_message().rstrip(".")
        return _fail(program, f"{message[:1].lower()}{message[1:]} (see {program} --help)", 2)
    if not isinstance(command, int):
        warnings.filterwarnings("ignore", category=FutureWarning)  # for the authors of the packages that are imported
        importlib.import_module(f"..{command.needs}", __package__)
    return command


def _fail(program: str, message: str, status: int) -> int:
    said = one_line(message)
    if len(said) > _MOST_CHARACTERS:
        said = f"{said[: _MOST_CHARACTERS // 2]} ... {said[-_MOST_CHARACTERS // 2 :]}"
    sys.stderr.write(f"{program}: error: {said}\n")
    return status
