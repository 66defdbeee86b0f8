"""What commands write: lines, JSON lines, the log."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TextIO

from .._text import visible
from ..errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str, to: TextIO | None = None) -> None:
    """Lines of ours, to stdout by default. Names in them come from files, and may hold what a terminal would obey."""
    (to or sys.stdout).write(visible(text) + "\n")


def write_json(event: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")


def set_up_logging(quiet: bool, as_json: bool) -> Console:
    """Log to stderr.

    Returns:
        The console of stderr, for progress bars: they and the log must share it.
    """
    import logging
    import warnings

    from rich.console import Console
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler

    if quiet and as_json:
        raise InputError("--quiet and --json do not go together; give one")
    console = Console(stderr=True)
    if quiet:
        warnings.simplefilter("ignore")
    handler: logging.Handler = logging.StreamHandler()
    if console.is_terminal:
        handler = RichHandler(
            console=console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
        )

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return visible(super().format(record))

    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pwoa_plugin").setLevel(logging.ERROR if quiet else logging.INFO)
    return console
