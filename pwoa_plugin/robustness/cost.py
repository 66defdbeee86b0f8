"""What an evaluation costs, said before it begins, and how much of it is left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping

from .._progress import Rows, say
from .._text import visible
from ..pages.text import duration
from .attacks import Attack, Cost
from .estimator import Logits
from .sharing import forwards_elsewhere

logger = logging.getLogger(__name__)

_LOOKS = 3  # at what an attack found, for each image
_PROBES = 250  # forwards and backwards for each image that alarms are looked for with
_PROBED = 32


def cost_of(attack: Attack, n_classes: int) -> Cost | None:
    """At most what an attack and the looks at its images cost for one image; None where nobody knows."""
    cost = attack.cost(n_classes)
    return cost and Cost(cost.forwards + _LOOKS, cost.backwards)


def costs_of(attacks: Iterable[Attack], n_images: int, n_classes: int, *, alarms: bool) -> dict[str, Cost | None]:
    """At most what an evaluation of ``n_images`` costs, attack by attack."""
    costs = {attack.name: cost_of(attack, n_classes) for attack in attacks}
    made = {name: cost and cost.times(n_images) for name, cost in costs.items()}
    if alarms:
        made["alarms"] = Cost(_PROBES, _PROBES).times(min(_PROBED, n_images))
    return made


def total(costs: Iterable[Cost | None]) -> Cost:
    """The sum of what is known."""
    known = [cost for cost in costs if cost is not None]
    return Cost(sum(cost.forwards for cost in known), sum(cost.backwards for cost in known))


def cost_text(subject: str, costs: Mapping[str, Cost | None], pace: float | None = None) -> str:
    """The cost in a sentence. ``pace``: seconds that one image takes in a forward, if it is known."""
    whole = total(costs.values())
    each = ", ".join(f"{name} {cost.forwards:,}" if cost else f"{name} unknown" for name, cost in costs.items())
    said = f"{subject}: at most {whole.forwards:,} images through the model ({each})"
    if pace is None:
        return said
    return f"{said}, about {duration(pace * whole.passes)} or less as fast as the first batches"


def idle_text(n_images: int, batch_size: int, processes: int) -> str | None:
    """What to do where processes share fewer batches than they are; None where each has one."""
    n_batches = math.ceil(n_images / batch_size)
    if n_batches >= min(processes, n_images):
        return None
    best = max(1, n_images // (4 * processes))
    return f"{processes} processes share {n_batches} batches of {batch_size} images; give a batch_size of about {best}"


def announce(text: str, *, shown: bool) -> None:
    """Say it on stderr where progress is shown, else in the log."""
    if shown:
        say(text)
    else:
        logger.info("%s", visible(text))


class Meter:
    """How far an attack is: by the images that it has done and, in between, by the images through the model, in all
    processes that share the evaluation.

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
        share = done / max(1, self._n)
        if share > self._share:
            self._share, self._at = share, self._view.n_forwards + forwards_elsewhere()
        self.moved()

    def moved(self) -> None:
        """The model has been asked again."""
        n_forwards = self._view.n_forwards + forwards_elsewhere()
        share, asked = self._share, n_forwards - self._first
        elapsed = time.monotonic() - self._began
        if self._expected:
            share = min(share + max(0, n_forwards - self._at) / self._expected, 0.99)
            left = (1 - share) * self._expected * elapsed / asked if asked else None
        else:
            left = elapsed * (1 - share) / share if share else None
        self._rows.update(share, left)
