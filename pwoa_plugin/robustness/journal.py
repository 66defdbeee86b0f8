"""Finished batches of an evaluation on disk, from which a killed one resumes."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .._random import random_state, set_random_state
from .._sealed import read_sealed, write_sealed
from .._text import one_line
from ..errors import InputError

logger = logging.getLogger(__name__)

_FORMAT = "pwoa-step-1"
_SLACK = 1.001  # of the radius
_RANDOM = "random."


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


class Journal:
    """What one attack has found so far, step by step.

    A step is a batch, or a batch of one stage of an ensemble. Each is one safetensors file, whole or missing, with the
    random state after it, its cost and a checksum of each. A step on disk is read instead of computed, and leaves the
    same random state.

    Args:
        folder: of the files; made when the first is written. None keeps nothing.
        forwards: returns how many images have gone through the model until now.

    Attributes:
        seconds, forwards: time and images through the model that the steps read here cost when they were computed.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, forwards: Callable[[], int] = lambda: 0) -> None:
        self.folder = None if folder is None else Path(folder)
        self.seconds = 0.0
        self.forwards = 0
        self._count = forwards

    def of(self, name: str) -> Journal:
        """The journal of a part, in a folder below this one's."""
        part = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
        return Journal(self.folder and self.folder / part, self._count)

    def step(
        self, name: str, compute: Callable[[], Tensor], notes: list[str] | None = None, ball: Ball | None = None
    ) -> Tensor:
        """The tensor of a step: read if the step is done; else computed, and written before it is returned.

        A file that is damaged, of another step, or not what ``ball`` says is computed again.

        Args:
            name: unique among the steps.
            compute: returns the tensor; may draw from the global random generators.
            notes: the attack's; those that it had after the step are restored when the step is read.
            ball: in which the tensor is to be.
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.safetensors"
        if (found := self._read(path, notes, ball)) is not None:
            return found
        started, forwards = time.perf_counter(), self._count()
        found = compute()
        facts = {
            "step": self._place(path),
            "seconds": time.perf_counter() - started,
            "forwards": self._count() - forwards,
            "notes": notes or [],
            "inside": ball is not None and ball.holds(found),
        }
        state = {_RANDOM + key: value for key, value in random_state().items()}
        write_sealed(path, {"found": found, **state}, facts, _FORMAT)
        return found

    def _read(self, path: Path, notes: list[str] | None, ball: Ball | None) -> Tensor | None:
        if not path.exists():
            return None
        before = random_state()
        try:
            tensors, facts = read_sealed(path, _FORMAT, "finished batch")
            found: Tensor = tensors.pop("found")
            if facts["step"] != self._place(path):
                raise InputError(f"is of the step {facts['step']}")
            if ball is not None and not ball.fits(found):
                raise InputError(f"holds {found.dtype} {tuple(found.shape)} for {tuple(ball.centres.shape)}")
            if ball is not None and facts["inside"] and not ball.holds(found):
                raise InputError("has left the ball")
            said, seconds, forwards = [str(note) for note in facts["notes"]], facts["seconds"], facts["forwards"]
            set_random_state({key.removeprefix(_RANDOM): value for key, value in tensors.items()})
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
            logger.warning("%s is damaged (%s); computed again", path, one_line(error))
            set_random_state(before)
            return None
        if notes is not None:
            notes += [note for note in said if note not in notes]
        self.seconds += seconds
        self.forwards += forwards
        return found

    @staticmethod
    def _place(path: Path) -> str:
        """Where in a journal a step is, which a file that was moved does not say."""
        return f"{path.parent.name}/{path.stem}"
