"""What every attack offers to the protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ..._random import generators_seeded, seed_of_part, seeded
from ..._text import named, short
from ...errors import InputError, PwoAError, require
from ..estimator import undisturbed
from ..journal import Ball, Journal, Step
from .ball import kept_in_ball
from .described import source_digest

NORMS = {"Linf": np.inf, "L2": 2}
"""Norms of the ball by name, with ART's value for each."""

OnProgress = Callable[[float], None]
"""Called with the number of images done; a fraction where an attack goes over the images several times."""


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """What one evaluation asks of all its attacks.

    Attributes:
        eps: radius of the ball, in pixel units (those of the images).
        n_classes: number of logits of the model.
        norm: norm of the ball, a key of ``NORMS``.
        pixel_range: ``(low, high)`` of a valid image.
        step_size: step of the iterative attacks, in pixel units; None leaves it to each attack.
        batch_size: images per batch.
        seed: seed of the attack's random draws.
        journal: where the attack keeps its finished batches.
    """

    eps: float
    n_classes: int
    norm: str = "Linf"
    pixel_range: tuple[float, float] = (0.0, 1.0)
    step_size: float | None = None
    batch_size: int = 256
    seed: int = 0
    journal: Journal = field(default_factory=Journal, compare=False)

    @property
    def art_norm(self) -> float:
        return NORMS[self.norm]


class Cost(NamedTuple):
    """How many images go through the model, at most, and how many of them with a backward, too."""

    forwards: int
    backwards: int = 0

    @property
    def passes(self) -> int:
        """Its time, in forwards: a backward takes as long as two."""
        return self.forwards + 2 * self.backwards

    def times(self, n: int) -> Cost:
        return Cost(n * self.forwards, n * self.backwards)


class AttackRun(NamedTuple):
    """What an attack found.

    Attributes:
        images: adversarial images, shaped as the images given, float32, on the CPU.
        notes: what a reader of the report should know about the run.
        felled: of an ensemble whose parts each get the images left over, how many each part fooled, by its name.
    """

    images: Tensor
    notes: tuple[str, ...] = ()
    felled: Mapping[str, int] = MappingProxyType({})


class Attack(ABC):
    """An attack in an Linf or L2 ball; it succeeds where the model answers another class.

    A subclass gives its name and parameters and builds an ART attack; this class runs that in batches, seeded.

    Args:
        name: name of its column in the report.
    """

    packages: tuple[str, ...] = ()
    """Packages beyond ART that the attack imports, as pip knows them."""
    black_box: bool = False
    """Whether it uses the model's logits only, and no gradient."""
    needs_gradients: bool = False
    """Whether it cannot run without gradients: a model that has none is then refused before any attack runs."""
    bounded: bool = False
    """Whether all its images are valid and in the ball by design: one that is not is then an error. Otherwise `run`
    gives the clean image in its place, so that it counts as not broken, and a note says how many."""

    def __init__(self, *, name: str) -> None:
        if not isinstance(name, str) or not name.strip() or name in ("clean", "worst case"):
            raise InputError(f"name={name!r} cannot name a column of the report; give another, non-empty string")
        self.name = name

    @abstractmethod
    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        """The ART attack on ``estimator`` for these settings."""

    @abstractmethod
    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        """The attack's parameters under these settings, JSON-ready, for the report.

        Called for all attacks before any of them runs.

        Raises:
            InputError: the attack cannot run under these settings; one line says why.
        """

    def cost(self, n_classes: int) -> Cost | None:
        """What the attack costs for one image, at most; None where nobody knows."""
        return None

    @property
    def code(self) -> str:
        """What stands for the attack's code in a journal's key: its class, and a digest of your own class's source."""
        return source_digest(type(self))

    def check(self, estimator: PyTorchClassifier, settings: AttackSettings) -> None:  # noqa: B027
        """Raise an InputError unless the attack can be made on this estimator; called for all before any of them runs.

        Args:
            estimator: ART classifier that will be attacked.
            settings: radius, batch size, seed.
        """

    def require(self) -> None:
        """Raise a MissingPackageError unless the attack's ``packages`` are installed."""
        for package in self.packages:
            require(f"attacks: {self.name}", (package,))

    def run(
        self,
        estimator: PyTorchClassifier,
        images: Tensor,
        labels: Tensor,
        settings: AttackSettings,
        on_progress: OnProgress | None = None,
    ) -> AttackRun:
        """Attack the images, with the estimator in eval mode and the random draws seeded.

        Modes, gradients and global random states are restored afterwards.

        Args:
            estimator: ART classifier under attack.
            images: ``(N, C, H, W)`` float32, within the estimator's clip values.
            labels: ``(N,)`` int64, the true classes.
            settings: radius, batch size, seed.
            on_progress: called with the number of images done.
        """
        with (
            # ART makes new tensors on the current CUDA device, which need not be the model's.
            torch.cuda.device(estimator.device) if estimator.device.type == "cuda" else nullcontext(),
            # Gradients on, whether the caller has them off by no_grad or by inference_mode.
            torch.inference_mode(False),
            undisturbed(estimator.model),
            seeded(settings.seed),
            nullcontext() if self.bounded else generators_seeded(),
        ):
            with self._failures_named():
                attack = self.build(estimator, settings)
            on_progress = on_progress or (lambda done: None)
            found = torch.from_numpy(self._generate(attack, images.numpy(), labels.numpy(), settings, on_progress))
        notes = tuple(getattr(attack, "notes", ()))
        if not self.bounded:
            found, said = kept_in_ball(
                self.name, images, found, norm=settings.norm, eps=settings.eps, pixel_range=settings.pixel_range
            )
            notes += said
        return AttackRun(found, notes, getattr(attack, "felled", {}))

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Put the attack's name to an error in code that is not ours."""
        try:
            yield
        except (PwoAError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            if self.bounded or "does not require grad" in str(error):
                raise
            cure = "leave it out, or change its options"
            raise InputError(f"attacks: {self.name} failed ({named(error)}); {cure}") from error

    def _generate(
        self,
        attack: EvasionAttack,
        images: np.ndarray,
        labels: np.ndarray,
        settings: AttackSettings,
        on_progress: OnProgress,
    ) -> np.ndarray:
        """Run the ART attack batch by batch; each draws at random for itself."""
        size, radius = settings.batch_size, settings.eps if self.bounded else float("inf")
        steps = []
        for start in range(0, len(images), size):
            x, y = images[start : start + size], labels[start : start + size]
            ball = Ball(torch.from_numpy(x), radius, settings.norm)
            seed = seed_of_part(settings.seed, start // size)
            steps.append(Step(f"{start:08d}", partial(self._batch, attack, x, y), seed, ball))
        found = settings.journal.run(steps, on_done=lambda done: on_progress(min(done * size, len(images))))
        return torch.cat(found).numpy() if found else images

    def _batch(self, attack: EvasionAttack, images: np.ndarray, labels: np.ndarray) -> Tensor:
        with self._failures_named():
            found = np.asarray(attack.generate(x=images.copy(), y=labels), dtype=np.float32)
        if found.shape != images.shape:
            raise InputError(f"attacks: {self.name} returned images {found.shape} for {images.shape}; leave it out")
        return torch.from_numpy(found)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


def positive_int(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= 2**53:
        raise InputError(f"{name}={short(value)} is not a count; give an integer of 1 or more")
    return int(value)


def project(images: Tensor, centres: Tensor, *, norm: float, eps: float) -> Tensor:
    """The images ``(N, ...)``, moved onto the ball around their centres where they are outside it."""
    moved = images - centres
    if norm == np.inf:
        return centres + moved.clamp(-eps, eps)
    lengths = moved.flatten(1).norm(dim=1).clamp_min(1e-12)
    shrunk: Tensor = moved * (eps / lengths).clamp_max(1).view(-1, *[1] * (images.dim() - 1))
    return centres + shrunk
