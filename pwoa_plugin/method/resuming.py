"""Epochs of batches that a resumed run can enter in the middle."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from torch import Tensor

from .. import _ranks
from .._random import seed_all
from .batches import Batches
from .snapshot import Snapshot


class ResumableEpochs:
    """Epochs of batches. A resumed epoch starts from its first random state again, so that its order is the same.

    Attributes:
        done: batches of this epoch so far.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.done = 0
        self._skip = 0
        self._at_start: dict[str, Tensor] = {}
        self._at_resume: dict[str, Tensor] = {}

    def epoch(self, *, check: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The remaining batches of an epoch; ``check`` as in `Batches.epoch`."""
        skip, self._skip = self._skip, 0
        if skip:
            self.batches.set_random_state(self._at_start)
        else:
            self._at_start = self.batches.random_state()
        for batch in self.batches.epoch(check=check, start=skip, random_state=self._at_resume):
            self.done += 1
            yield batch

    def end(self) -> None:
        """Call after the last batch."""
        self.done = 0

    def state(self) -> Snapshot:
        """For `load_state`; between two steps."""
        facts = {"done": self.done, "read": self.batches.read if self.done else 0}
        return Snapshot.of(facts, now=Snapshot(self.batches.random_state()), at_start=Snapshot(self._at_start))

    def load_state(self, saved: Snapshot) -> None:
        """Continue where `state` was called."""
        self.done, self._skip = int(saved.facts["done"]), int(saved.facts["read"])
        self._at_start, self._at_resume = saved.part("at_start").tensors, saved.part("now").tensors
        if not self.done:
            self.batches.set_random_state(self._at_resume)

    def use_own_states(self, seed: int, step: int) -> None:
        """After `load_state` in another process than rank 0, whose random states were saved: its own (`seed_step`)."""
        seed_step(seed, step - self.done)
        self._at_start = self.batches.random_state()
        seed_step(seed, step)
        self._at_resume = self.batches.random_state()


def seed_step(seed: int, step: int) -> None:
    """Give each process but the first random numbers of its own for a step; they follow from its rank and the step.

    So a state needs the random state of rank 0 alone.
    """
    if rank := _ranks.rank():
        seed_all(zlib.crc32(f"{seed} {step} {rank}".encode()))
