"""Finished batches of an evaluation on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._files import write_tensors
from .._random import random_state, set_random_state
from .._text import one_line

__all__ = ["Journal"]

logger = logging.getLogger(__name__)

_RANDOM = "random."


class Journal:
    """What one attack has found so far, step by step.

    A step is a batch, or a batch of one stage of an ensemble. Each is one safetensors file, there whole or not at all,
    with the random state after it and what it cost. A step that is there is read instead of computed, and leaves the
    same state behind.

    Args:
        folder: of the files; made when the first is written. None keeps nothing.
        forwards: tells how many images have gone through the model until now.

    Attributes:
        seconds: what steps that were read here had taken when they were computed.
        forwards: what they had cost, in images through the model.
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
        """The tensor of a step: read where the step is done, else computed, and kept before it is returned.

        Args:
            name: of the step; what comes later has another.
            compute: gives the tensor; may draw from the global random generators.
            notes: that the attack gathers; those that were there after the step are there again when it is read.

        Raises:
            OSError: the file cannot be written (a full disk, say).
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
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                cost, said = json.loads(metadata["cost"]), [str(note) for note in json.loads(metadata["notes"])]
                seconds, forwards = float(cost["seconds"]), int(cost["forwards"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            found: Tensor = tensors.pop("found")
            set_random_state({key.removeprefix(_RANDOM): value for key, value in tensors.items()})
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s); computed again", path, one_line(error))
            return None
        if notes is not None:
            notes += [note for note in said if note not in notes]
        self.seconds += seconds
        self.forwards += forwards
        return found
