"""What an evaluation costs, said before it begins, and how much of it is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .._progress import Rows, say
from .._text import visible
from ..pages.text import duration
from .attacks import FGSM, PGD, ARTAutoAttack, Attack, AutoAttack
from .estimator import Logits

logger = logging.getLogger(__name__)

_BACKWARD = 3  # a forward and its backward take as long as so many forwards
_LOOKS = 3  # at what an attack found, for each image
_PROBES = 250  # forwards for each image that alarms are looked for with
_PROBED = 32


class Cost(NamedTuple):
    """Images through the model, and the time that they take in forwards without a backward; both at most."""

    forwards: int
    passes: int

    def times(self, n: int) -> Cost:
        return Cost(n * self.forwards, n * self.passes)


def cost_of(attack: Attack, n_classes: int) -> Cost | None:
    """At most what an attack costs for one image; None of an attack that is not the package's own."""
    if isinstance(attack, FGSM):
        with_backward, alone = 1, 0
    elif isinstance(attack, PGD):
        targets = min(attack.targets, n_classes - 1)
        with_backward, alone = (attack.steps + 2) * attack.restarts * max(1, targets), int(targets > 0)
    elif isinstance(attack, AutoAttack):
        targets = min(9, n_classes - 1)
        of_parts = {"apgd-ce": 101, "apgd-t": 102 * targets, "fab-t": 203 * targets}
        with_backward = sum(of_parts.get(part, 0) for part in attack.parts)
        alone = 11 + (attack.queries + 1) * ("square" in attack.parts)
    elif isinstance(attack, ARTAutoAttack):
        with_backward, alone = 2_300, 75_100
    else:
        return None
    alone += _LOOKS
    return Cost(with_backward + alone, _BACKWARD * with_backward + alone)


def costs_of(attacks: Iterable[Attack], n_images: int, n_classes: int, *, alarms: bool) -> dict[str, Cost | None]:
    """At most what an evaluation of ``n_images`` costs, attack by attack."""
    costs = {attack.name: cost_of(attack, n_classes) for attack in attacks}
    made = {name: cost and cost.times(n_images) for name, cost in costs.items()}
    if alarms:
        made["alarms"] = Cost(_PROBES, _BACKWARD * _PROBES).times(min(_PROBED, n_images))
    return made


def total(costs: Iterable[Cost | None]) -> Cost:
    """The sum of what is known."""
    known = [cost for cost in costs if cost is not None]
    return Cost(sum(cost.forwards for cost in known), sum(cost.passes for cost in known))


def cost_text(subject: str, costs: Mapping[str, Cost | None], pace: float | None = None) -> str:
    """The cost in a sentence. ``pace``: seconds that one image takes in a forward, if it is known."""
    whole = total(costs.values())
    each = ", ".join(f"{name} {cost.forwards:,}" if cost else f"{name} unknown" for name, cost in costs.items())
    said = f"{subject}: at most {whole.forwards:,} images through the model ({each})"
    if pace is None:
        return said
    return f"{said}, about {duration(pace * whole.passes)} or less as fast as the first batches"


def announce(text: str, *, shown: bool) -> None:
    """Say it on stderr where progress is shown, else in the log."""
    if shown:
        say(text)
    else:
        logger.info("%s", visible(text))


class Meter:
    """How far an attack is: by the images that it has done and, in between, by the images through the model.

    Args:
        rows: where to show it.
        view: of the model.
        n_images: that the attack gets.
        expected: images through the model, at most; None where nobody knows.
    """

    def __init__(self, rows: Rows, view: Logits, n_images: int, expected: int | None) -> None:
        self._rows, self._view, self._n, self._expected = rows, view, n_images, expected
        self._began, self._first = time.monotonic(), view.n_forwards
        self._share, self._at = 0.0, view.n_forwards

    def reported(self, done: float) -> None:
        """The attack has done so many images."""
        self._share, self._at = max(self._share, done / max(1, self._n)), self._view.n_forwards
        self.moved()

    def moved(self) -> None:
        """The model has been asked again."""
        share, asked = self._share, self._view.n_forwards - self._first
        elapsed = time.monotonic() - self._began
        if self._expected:
            share = min(share + (self._view.n_forwards - self._at) / self._expected, 0.99)
            left = (1 - share) * self._expected * elapsed / asked if asked else None
        else:
            left = elapsed * (1 - share) / share if share else None
        self._rows.update(share, left)
