"""Finished batches of an evaluation on disk, from which a killed one resumes."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from .._files import read_tensors, write_tensors
from .._random import random_state, set_random_state
from .._text import one_line

logger = logging.getLogger(__name__)

_RANDOM = "random."


class Journal:
    """What one attack has found so far, step by step.

    A step is a batch, or a batch of one stage of an ensemble. Each is one safetensors file, whole or missing, with the
    random state after it and its cost. A step on disk is read instead of computed, and leaves the same random state.

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

    def step(self, name: str, compute: Callable[[], Tensor], notes: list[str] | None = None) -> Tensor:
        """The tensor of a step: read if the step is done; else computed, and written before it is returned.

        Args:
            name: unique among the steps.
            compute: returns the tensor; may draw from the global random generators.
            notes: the attack's; those that it had after the step are restored when the step is read.
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.safetensors"
        if (found := self._read(path, notes)) is not None:
            return found
        started, forwards = time.perf_counter(), self._count()
        found = compute()
        cost = {"seconds": time.perf_counter() - started, "forwards": self._count() - forwards}
        state = {_RANDOM + key: value for key, value in random_state().items()}
        write_tensors(path, {"found": found, **state}, {"cost": json.dumps(cost), "notes": json.dumps(notes or [])})
        return found

    def _read(self, path: Path, notes: list[str] | None) -> Tensor | None:
        if not path.exists():
            return None
        before = random_state()
        try:
            tensors, metadata = read_tensors(path, "finished batch")
            cost, said = json.loads(metadata["cost"]), [str(note) for note in json.loads(metadata["notes"])]
            seconds, forwards = float(cost["seconds"]), int(cost["forwards"])
            found = tensors.pop("found")
            set_random_state({key.removeprefix(_RANDOM): value for key, value in tensors.items()})
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            logger.warning("%s is damaged (%s); computed again", path, one_line(error))
            set_random_state(before)
            return None
        if notes is not None:
            notes += [note for note in said if note not in notes]
        self.seconds += seconds
        self.forwards += forwards
        return found
