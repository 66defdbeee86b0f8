"""Ctrl-C while packages are imported."""

from __future__ import annotations

import os
import signal


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process where it is, with one line and status 130.

    A package whose import is broken off raises errors of its own. Where Ctrl-C means something else already, or in
    another than the main thread, nothing changes.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        try:
            signal.signal(signal.SIGINT, _leave)
        except ValueError:  # not the main thread
            return


def leave_in_order() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os.write(2, b"pwoa: stopped\n")
    os._exit(130)
