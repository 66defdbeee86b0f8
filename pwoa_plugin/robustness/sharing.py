"""Work that several processes share: each piece is done by one of them, and all of them know what came out.

A piece, such as a batch of an attack, depends on nothing but itself, so that results do not depend on who does it. The
processes take pieces from a counter in the process group's store, one after another; what they found travels by gloo.
The store also tells each process of an error elsewhere, and that the others are still alive.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .._launch import launch, needs_launching
from .._ranks import agree_on, barrier, begin, device_here, from_main, from_rank, gathered, rank, told_by_main
from .._ranks import on_main as on_rank_0
from .._ranks import size as n_ranks
from .._text import named
from ..errors import InputError, PwoAError, RunError

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

_T = TypeVar("_T")

_POLL = 0.05  # seconds between two looks at how far the others are
_LOOK = 1.0  # seconds between two looks at whether they live
_SILENT = 30.0  # seconds without a sign after which a process counts as dead
_KINDS = RunError, InputError, PwoAError  # of errors that all processes raise; a fault of ours is a RunError there
_numbers = itertools.count()  # the same in every process, as all open the same doors


class Counted(Protocol):
    """A model that counts the images that go through it."""

    n_forwards: int


class ElsewhereError(PwoAError):
    """Another process has failed or ended; `shared` raises ``error`` instead.

    No work's own handler takes it for an error of the model.
    """

    def __init__(self, error: PwoAError) -> None:
        super().__init__(str(error))
        self.error = error


class _Team:
    """The processes that share one evaluation's work."""

    def __init__(self) -> None:
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

        self._rank = rank()
        self._store: Store = PrefixStore(f"pwoa-shared-{next(_numbers)}", _get_default_store())
        self._sections = itertools.count()
        self._section = -1
        self._count: Callable[[], int] = lambda: 0
        self._looked = time.monotonic()
        self._signs = {other: ("", 0.0) for other in range(n_ranks()) if other != self._rank}
        self._closed = threading.Event()
        self.busy = False
        self.heard = 0
        self._sign(0)
        barrier()
        threading.Thread(target=self._live, daemon=True).start()

    def deal(
        self, works: Sequence[Callable[[], _T]], model: Counted | None, on_done: Callable[[int], None]
    ) -> list[_T]:
        """See `dealt`."""
        self._section = next(self._sections)
        taken, done = f"{self._section}/taken", f"{self._section}/done"
        began = getattr(model, "n_forwards", 0)
        self._count = lambda: getattr(model, "n_forwards", 0) - began
        mine: dict[int, tuple[_T, int]] = {}
        while (number := self._add(taken, 1) - 1) < len(works):
            before = self._count()
            self.busy = True
            try:
                found = works[number]()
            finally:
                self.busy = False
            mine[number] = found, self._count() - before
            on_done(self._add(done, 1))
            self.look()
        while (n_done := self._add(done, 0)) < len(works):
            on_done(n_done)
            self.look()
            time.sleep(_POLL)
        results = []
        for number, (found, forwards) in enumerate(self._exchanged(mine, len(works))):
            results.append(found)
            if number not in mine and model is not None:
                model.n_forwards += forwards
        self.heard, self._count = 0, lambda: 0
        on_done(len(works))
        return results

    @staticmethod
    def _exchanged(mine: dict[int, Any], n: int) -> list[Any]:
        """What each of ``n`` works has given, wherever."""
        try:
            owners = {number: owner for owner, numbers in enumerate(gathered([*mine])) for number in numbers}
            return [from_rank(owners[number], mine.get(number)) for number in range(n)]
        except RunError as error:
            raise ElsewhereError(error) from error

    def look(self) -> None:
        """Raise an ElsewhereError where another process has failed or is silent; at most once a second."""
        now = time.monotonic()
        if (elapsed := now - self._looked) < _LOOK:
            return
        self._looked = now
        with self._reached():
            if (first := self.failure()) is not None:
                raise ElsewhereError(_told(*first))
            signs = self._store.multi_get([f"sign/{other}" for other in self._signs])
        self.heard = 0
        for (other, (last, silent)), sign in zip([*self._signs.items()], signs, strict=True):
            text = sign.decode()
            # No more than two looks' time at once: this process may itself have been stopped for a while.
            silent = 0.0 if text != last else silent + min(elapsed, 2 * _LOOK)
            self._signs[other] = text, silent
            if silent > _SILENT:
                raise self._lost(other)
            _, section, forwards = map(int, text.split())
            self.heard += forwards if section == self._section else 0

    def _add(self, key: str, number: int) -> int:
        with self._reached():
            return self._store.add(key, number)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise a RunError where the store is gone, which rank 0 or its launcher keeps."""
        from torch.distributed import DistError

        try:
            yield
        except DistError as error:
            raise self._lost(0) from error

    def _lost(self, other: int) -> ElsewhereError:
        error = RunError(f"rank {other} has ended, or has given no sign for {_SILENT:g} s; finished batches are kept")
        teller = 1 if other == 0 else 0
        return ElsewhereError(error if self._rank == teller else told_by_main(error))

    def failure(self) -> tuple[int, type[PwoAError], str] | None:
        """Which process failed first, and its error; None if none has."""
        if not self._store.check(["failed"]):
            return None
        number, name, text = json.loads(self._store.get("failed"))
        return number, next(kind for kind in _KINDS if kind.__name__ == name), text

    def fail(self, error: BaseException) -> None:
        """Tell the others, unless another process has already."""
        kind = next((kind for kind in _KINDS if isinstance(error, kind)), RunError)
        text = str(error) if isinstance(error, PwoAError) else named(error)
        self._store.compare_set("failed", "", json.dumps([self._rank, kind.__name__, text]))

    def close(self) -> None:
        self._closed.set()

    def _live(self) -> None:
        for number in itertools.count(1):
            if self._closed.wait(_LOOK):
                return
            try:
                self._sign(number)
            except RuntimeError:  # the store is gone: the main thread will notice
                return

    def _sign(self, number: int) -> None:
        self._store.set(f"sign/{self._rank}", f"{number} {self._section} {self._count()}")


_team: ContextVar[_Team | None] = ContextVar("team", default=None)


@contextmanager
def shared(*, alone: bool = False) -> Iterator[None]:
    """What `dealt` gets inside is shared by all processes that a launcher started; each of them must come here.

    An error in one process is raised in all, and told by one. Inside of another `shared`, nothing changes.

    Args:
        alone: whether this process does everything by itself.

    Raises:
        RunError: the others have not come within the time that processes wait for each other.
    """
    if alone or _team.get() is not None or not begin():
        yield
        return
    team = _Team()
    token = _team.set(team)
    try:
        yield
        barrier()
    except BaseException as error:
        told = _of_all(team, error)
        if told is error:
            raise
        raise told from error
    finally:
        _team.reset(token)
        team.close()


def _of_all(team: _Team, error: BaseException) -> BaseException:
    """What this process raises after an error of its own or of another; rank 0 tells it."""
    elsewhere = isinstance(error, ElsewhereError)
    if isinstance(error, ElsewhereError):
        error = error.error
    in_all = elsewhere or getattr(error, "in_all_ranks", False)
    from torch.distributed import DistError

    try:
        if isinstance(error, Exception) and not in_all:
            team.fail(error)
        first = team.failure()
    except DistError:  # the store is gone
        return error
    if first is None:
        return error
    if isinstance(error, Exception) and (first[0] == rank() or str(error) == first[2]):
        return told_by_main(error) if isinstance(error, PwoAError) else error
    return _told(*first)


def _told(number: int, kind: type[PwoAError], text: str) -> PwoAError:
    """The error that process ``number`` has failed with, for the others."""
    return told_by_main(kind(f"rank {number}: {text}"))


def in_processes(processes: int | None, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """What ``function`` returns where several processes share its work, in each of them.

    Args:
        processes: how many to start on this machine; 1: this process alone; None: those that a launcher started.
    """
    alone = processes == 1 and not isinstance(processes, bool)
    if not alone and needs_launching(processes):
        found: _T = launch(processes or 1, _in_shared, function, *args, **kwargs)
        return found
    return _in_shared(function, *args, alone=alone, **kwargs)


def _in_shared(function: Callable[..., _T], *args: Any, alone: bool = False, **kwargs: Any) -> _T:
    with shared(alone=alone):
        return function(*args, **kwargs)


def dealt(
    works: Sequence[Callable[[], _T]],
    model: Counted | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[_T]:
    """What each of the works returns, in their order, in every process; each is called in one of them.

    Args:
        works: without arguments; what they return is pickled, with tensors on the CPU. Work that a work deals out is
            done where it is.
        model: whose ``n_forwards`` are to be those of all works, whoever did them.
        on_done: called with the number of works that are done, from the first on.
    """
    team = _team.get()
    if team is not None and not team.busy:
        return team.deal(works, model, on_done)
    results = []
    for work in works:
        results.append(work())
        on_done(len(results))
    return results


def known(work: Callable[[], _T]) -> _T:
    """What the work returns, in every process; one of them does it."""
    return dealt([work])[0]


def forwards_elsewhere() -> int:
    """How many images other processes have put through the model for the works that are being done, as last heard."""
    team = _team.get()
    if team is None:
        return 0
    team.look()
    return team.heard


def agree(facts: Mapping[str, Any], cure: str) -> None:
    """InputError in every process, naming a fact that differs, unless all that share the work give equal facts."""
    if size() > 1:
        agree_on(facts, cure)


def of_main(value: _T) -> _T:
    """The value that rank 0 has, in every process that shares the work."""
    return value if size() == 1 else from_main(value)


def of_all(value: _T) -> list[_T]:
    """The values of all processes that share the work, by rank."""
    return [value] if size() == 1 else gathered(value)


def on_main(function: Callable[[], _T]) -> _T:
    """What the function returns in rank 0, which alone calls it, in every process that shares the work."""
    return function() if size() == 1 else on_rank_0(function)


@contextmanager
def main_first() -> Iterator[None]:
    """One process of each machine goes through first, as what it downloads is then there for the others."""
    if size() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().local_main_process_first():
        yield


def own_device(device: torch.device | None) -> torch.device | None:
    """A device of this process's own: of several GPUs the one that the launcher gave it."""
    return device if device is None or size() == 1 else device_here(device)


def size() -> int:
    """How many processes share the work."""
    return 1 if _team.get() is None else n_ranks()


def is_main() -> bool:
    """Whether this process writes files and messages."""
    return _team.get() is None or rank() == 0
