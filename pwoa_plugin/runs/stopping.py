"""A run that Ctrl-C or a scheduler asks to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

from .. import _ranks
from ..errors import RunError, TrainingError
from .callbacks import SaveStates, Stopped

_logger = logging.getLogger(__name__)


_SIGNALS = signal.SIGINT, signal.SIGTERM


@contextlib.contextmanager
def _handled(stop: Callable[[int, object], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call ``stop``; in another thread than the main one, which gets no signals, they do not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped`, where what is finished is kept; the second signal ends the process."""

    def stop(number: int, frame: object) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() == here:
            raise Stopped(number)
        os.kill(os.getpid(), number)  # a worker, which inherits this

    here = os.getpid()
    with _handled(stop):
        yield


@contextlib.contextmanager
def stopping(saver: SaveStates) -> Iterator[None]:
    """SIGINT and SIGTERM save after the step and raise `Stopped`; the second signal raises KeyboardInterrupt.

    Of several processes, each gets the signal more than once: from the terminal and from ``torchrun``, which kills them
    if they take too long.
    """

    def stop(number: int, frame: object) -> None:
        if os.getpid() != here:  # a loader's worker, which inherits this
            return
        if saver.stop_signal is not None:
            if _ranks.several():
                return
            raise KeyboardInterrupt
        saver.stop_signal = number
        _logger.warning("stopping after this step; a second signal stops at once, without saving")

    here = os.getpid()
    try:
        with _handled(stop):
            yield
    except RuntimeError as error:
        if saver.stop_signal is None or isinstance(error, (RunError, TrainingError)):
            raise
        # A signal to the process group also ends the workers of the user's own loader.
        raise Stopped(saver.stop_signal) from error
