"""Finished batches of an evaluation on disk, from which a killed one resumes."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .._random import seeded
from .._sealed import read_sealed, write_sealed
from .._text import one_line
from ..errors import InputError
from .sharing import Counted, dealt

logger = logging.getLogger(__name__)

FORMAT = "pwoa-step-2"
"""Of the files: 2 seeds each step by itself, so that it holds no random state."""
_SLACK = 1.001  # of the radius


class Ball(NamedTuple):
    """The images ``(N, C, H, W)`` that a step began with, and how far from them it may end; ``norm``: Linf or L2."""

    centres: Tensor
    eps: float
    norm: str

    def fits(self, found: Tensor) -> bool:
        """Whether these can be what the step made of the images."""
        return found.shape == self.centres.shape and found.dtype == self.centres.dtype

    def holds(self, found: Tensor) -> bool:
        """Whether they fit, and none is farther away, up to rounding."""
        if not self.fits(found):
            return False
        moved = (found.cpu() - self.centres.cpu()).flatten(1).double()
        farthest = moved.norm(p=2 if self.norm == "L2" else float("inf"), dim=1)
        return bool((farthest <= _SLACK * self.eps).all())


class Step(NamedTuple):
    """A batch of an attack, or of one stage of an ensemble.

    Attributes:
        name: unique among the steps of a journal.
        compute: returns the step's tensor; may draw from the global random generators.
        seed: of these draws, so that no other step changes them.
        ball: in which the tensor is to be.
    """

    name: str
    compute: Callable[[], Tensor]
    seed: int
    ball: Ball | None = None


class _Done(NamedTuple):
    """A finished step; ``seconds`` and ``forwards`` are what it cost, if it was read."""

    found: Tensor
    notes: list[str]
    seconds: float = 0.0
    forwards: int = 0


class Journal:
    """What one attack has found so far, step by step.

    Steps are dealt out to the processes that share an evaluation (`sharing`). Each is one safetensors file, whole or
    missing, with its cost and a checksum of each. A step on disk is read instead of computed.

    Args:
        folder: of the files; made when the first is written. None keeps nothing.
        model: counts the images that have gone through it.

    Attributes:
        model: as given.
        seconds, forwards: time and images through the model that the steps read here cost when they were computed.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, model: Counted | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.seconds = 0.0
        self.forwards = 0
        self.model = model

    def of(self, name: str) -> Journal:
        """The journal of a part, in a folder below this one's."""
        part = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
        return Journal(self.folder and self.folder / part, self.model)

    def run(
        self,
        steps: Sequence[Step],
        notes: list[str] | None = None,
        on_done: Callable[[int], None] = lambda done: None,
    ) -> list[Tensor]:
        """The tensors of the steps, on the CPU: read if a step is done; else computed, and written before it counts.

        A file that is damaged, of another step, or not what ``ball`` says is computed again.

        Args:
            steps: none of which depends on another.
            notes: the attack's, to which computing adds; those of all steps are in it afterwards.
            on_done: called with the number of steps that are done.
        """
        said = [] if notes is None else notes
        before = [*said]
        done = dealt([partial(self._done, step, said) for step in steps], self.model, on_done)
        said[:] = before  # and in the order of the steps, whoever did them
        for each in done:
            said += [note for note in each.notes if note not in said]
            self.seconds += each.seconds
            self.forwards += each.forwards
        return [each.found for each in done]

    def _done(self, step: Step, notes: list[str]) -> _Done:
        path = None if self.folder is None else self.folder / f"{step.name}.safetensors"
        if path is not None and (read := self._read(path, step.ball)) is not None:
            return read
        started, forwards = time.perf_counter(), self._count()
        with seeded(step.seed):
            found = step.compute().cpu()
        if path is not None:
            facts = {
                "step": self._place(path),
                "seconds": time.perf_counter() - started,
                "forwards": self._count() - forwards,
                "notes": notes,
                "inside": step.ball is not None and step.ball.holds(found),
            }
            write_sealed(path, {"found": found}, facts, FORMAT)
        return _Done(found, [*notes])

    def _count(self) -> int:
        return 0 if self.model is None else self.model.n_forwards

    def _read(self, path: Path, ball: Ball | None) -> _Done | None:
        if not path.exists():
            return None
        try:
            tensors, facts = read_sealed(path, FORMAT, "finished batch")
            found: Tensor = tensors.pop("found")
            if facts["step"] != self._place(path):
                raise InputError(f"is of the step {facts['step']}")
            if ball is not None and not ball.fits(found):
                raise InputError(f"holds {found.dtype} {tuple(found.shape)} for {tuple(ball.centres.shape)}")
            if ball is not None and facts["inside"] and not ball.holds(found):
                raise InputError("has left the ball")
            return _Done(found, [str(note) for note in facts["notes"]], facts["seconds"], facts["forwards"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
            logger.warning("%s is damaged (%s); computed again", path, one_line(error))
            return None

    @staticmethod
    def _place(path: Path) -> str:
        """Where in a journal a step is, which a file that was moved does not say."""
        return f"{path.parent.name}/{path.stem}"
