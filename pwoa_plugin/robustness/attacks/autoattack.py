"""The standard AutoAttack (https://arxiv.org/abs/2003.01690): its authors' code, as an ART attack.

ART has an ensemble of the same name that is another one and weaker: see `art_autoattack`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.utils import check_and_transform_label_format
from torch import Tensor

from ..._pixels import positive_pixels
from ..._random import seeded
from ...errors import InputError
from ..estimator import undisturbed
from ..journal import Ball, Journal, Step
from ..sharing import dealt
from .base import Attack, AttackSettings, Cost, OnProgress, positive_int, project

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
_TARGET_CLASSES = 9  # of the standard version, which assumes ten classes or more
_QUERIES = 5000  # of Square in the standard version
_TARGETED_DLR_CLASSES = 4  # its denominator takes the largest, third and fourth largest logit


def _applicable(parts: Sequence[str], n_classes: int) -> list[str]:
    return [part for part in parts if part != "apgd-t" or n_classes >= _TARGETED_DLR_CLASSES]


def _as_note(message: str) -> str:
    """A warning of pyautoattack as a note, without its counts, which are those of one batch."""
    message = re.sub(r"there are \S+ points", "there are points", message)
    message = re.sub(r"(decreased the robust accuracy) of \S+%", r"\1", message)
    return "AutoAttack: " + message.replace(" See flags_doc.md for details.", "")


@contextmanager
def _warnings_as_notes(notes: list[str]) -> Iterator[None]:
    """Collect pyautoattack's warnings, which come through its logger, each once."""

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and (note := _as_note(record.getMessage())) not in notes:
            notes.append(note)
        return record.levelno < logging.INFO

    logger = logging.getLogger("auto-attack")
    logger.addFilter(collect)
    try:
        yield
    finally:
        logger.removeFilter(collect)


@contextmanager
def _dynamic_check_contained() -> Iterator[None]:
    """Undo the side effects of pyautoattack's check for dynamic defences: it switches off the tracer of a debugger or a
    coverage run, and counts calls over all models that the process has judged."""
    from pyautoattack import checks

    tracer = sys.gettrace()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield
    finally:
        sys.settrace(tracer)


class StandardAutoAttack(EvasionAttack):
    """The standard version of AutoAttack for Linf and L2, as an ART attack on a `PyTorchClassifier`.

    Four attacks in turn, each on the images that withstood the ones before: APGD on the
    cross-entropy, targeted APGD on the DLR loss, targeted FAB and Square with 5000 queries. With fewer
    than ten classes the targeted ones take all wrong classes as targets; with fewer than four, targeted
    APGD is left out. The same seed and batch size give the images of pyautoattack called directly.

    Args:
        estimator: classifier under attack; its clip values are the pixel range, [0, 1] where it has none.
        eps: radius of the ball, in pixel units (those of the images).
        norm: of the ball, ``np.inf`` or 2.
        batch_size: images per batch.
        seed: seed of the random draws.
        parts: those of the four to run; all, unless given.
        queries: of Square, for each image.

    Attributes:
        notes: after `generate`, what was left out and what pyautoattack warned of.
        felled: after `generate`, on how many images each of the four succeeded, of those it was given.

    Raises:
        InputError: an argument is out of its range, or the estimator has preprocessing that torch cannot differentiate.
        art.exceptions.EstimatorError: the estimator is not a `PyTorchClassifier`.
    """

    attack_params: ClassVar[list[str]] = ["eps", "norm", "batch_size", "seed", "parts", "queries"]
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        *,
        eps: float = 8 / 255,
        norm: float = np.inf,
        batch_size: int = 250,
        seed: int = 0,
        parts: tuple[str, ...] = STANDARD,
        queries: int = _QUERIES,
    ) -> None:
        super().__init__(estimator=estimator)
        self.eps = eps
        self.norm = norm
        self.batch_size = batch_size
        self.seed = seed
        self.parts = parts
        self.queries = queries
        self.notes: tuple[str, ...] = ()
        self.felled: dict[str, int] = {}
        self._check_params()

    def _check_params(self) -> None:
        positive_pixels("eps", self.eps)
        positive_int("batch_size", self.batch_size)
        if self.norm not in (np.inf, 2):
            raise InputError(f"norm={self.norm!r}: AutoAttack is run in np.inf or 2; give one of them")
        _check_parts(self.parts)
        if not self.estimator.all_framework_preprocessing:
            raise InputError("estimator has numpy preprocessing, which AutoAttack cannot differentiate; use torch")

    def generate(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        on_progress: OnProgress | None = None,
        journal: Journal | None = None,
    ) -> np.ndarray:
        """Adversarial images for ``x``; an image that withstands all attacks is returned unchanged.

        Args:
            x: images ``(N, C, H, W)``, within the estimator's clip values.
            y: labels, ``(N,)`` integers or ``(N, classes)`` one-hot; the estimator's predictions if None.
            on_progress: called with the number of images done.
            journal: keeps each batch of each of the four.

        Returns:
            Images shaped as ``x``, float32.
        """
        images = torch.from_numpy(np.array(x, dtype=np.float32))
        to_unit = _Affine((0.0, 1.0) if self.estimator.clip_values is None else self.estimator.clip_values)
        names = _applicable([part for part in STANDARD if part in self.parts], self.estimator.nb_classes)
        notes: list[str] = []
        if "apgd-t" in self.parts and "apgd-t" not in names:
            notes.append(
                f"AutoAttack: apgd-t left out, since its targeted DLR loss needs {_TARGETED_DLR_CLASSES} classes "
                f"and the model has {self.estimator.nb_classes}; the other attacks of the standard version ran"
            )
        with (
            undisturbed(self.estimator._model),
            seeded(self.seed),
            _dynamic_check_contained(),
            _warnings_as_notes(notes),
        ):
            labels = self._labels(x, y)
            runner = self._runner(to_unit, names)
            cascade = _Cascade(runner, journal or Journal(), notes)
            found = cascade.run(to_unit(images), labels, int(self.batch_size), on_progress or (lambda done: None))
        self.notes = tuple(notes)
        self.felled = cascade.felled
        adversarial: np.ndarray = to_unit.inverse(found, images, norm=self.norm, eps=self.eps).numpy()
        return adversarial

    def _labels(self, x: np.ndarray, y: np.ndarray | None) -> Tensor:
        given = self.estimator.predict(x, batch_size=self.batch_size) if y is None else np.asarray(y)
        one_hot = check_and_transform_label_format(given, nb_classes=self.estimator.nb_classes)
        return torch.from_numpy(np.asarray(one_hot).argmax(1))

    def _runner(self, to_unit: _Affine, names: Sequence[str]) -> Any:
        import pyautoattack

        estimator = self.estimator

        def logits(images: Tensor) -> Tensor:
            inputs, _ = estimator._apply_preprocessing(to_unit.undo(images), y=None, fit=False, no_grad=False)
            output: Tensor = estimator._model(inputs)[-1]
            # A copy: Square writes into what it gets, which may be the images themselves.
            return output.float().clone()

        runner = pyautoattack.AutoAttack(
            logits,
            norm="Linf" if self.norm == np.inf else "L2",
            eps=float(self.eps) / to_unit.span,
            version="standard",
            seed=int(self.seed),
            device=estimator.device,
        )
        runner.attacks_to_run = list(names)
        runner.square.n_queries = int(self.queries)
        n_targets = min(_TARGET_CLASSES, estimator.nb_classes - 1)
        runner.apgd_targeted.n_target_classes = n_targets
        runner.fab.n_target_classes = n_targets
        return runner


def _check_parts(parts: Sequence[str]) -> None:
    if isinstance(parts, str) or not set() < set(parts) <= set(STANDARD):
        raise InputError(f"parts={parts!r}: AutoAttack has {', '.join(STANDARD)}; give a list of some of these")


class _Affine:
    """Maps pixels of the range ``[low, high]`` to [0, 1], which pyautoattack expects."""

    def __init__(self, pixel_range: tuple[float, float]) -> None:
        self.low, self.high = map(float, pixel_range)
        self.span = self.high - self.low

    def __call__(self, images: Tensor) -> Tensor:
        return (images - self.low) / self.span

    def undo(self, unit: Tensor) -> Tensor:
        return unit * self.span + self.low

    def inverse(self, unit: Tensor, images: Tensor, *, norm: float, eps: float) -> Tensor:
        """`undo`, without the rounding: inside ball and range, and exact where nothing was changed."""
        if (self.low, self.high) == (0.0, 1.0):
            return unit
        changed = (unit != self(images)).flatten(1).any(1).view(-1, *[1] * (images.dim() - 1))
        moved = project(self.undo(unit), images, norm=norm, eps=eps)
        return torch.where(changed, moved.clamp(self.low, self.high), images)


class _Cascade:
    """pyautoattack's attacks in turn, each on the images left over, packed anew, which saves much of the time.

    Checks, batches, seeds and order are those of its ``run_standard_evaluation``. Batches of one attack do not depend
    on each other, so that they are steps of the journal.

    Attributes:
        felled: on how many images each attack succeeded.
    """

    def __init__(self, runner: Any, journal: Journal, notes: list[str]) -> None:
        self._runner, self._journal, self._notes = runner, journal, notes
        self._names: list[str] = runner.attacks_to_run
        runner.apgd.loss, runner.fab.targeted = "ce", True
        attacks = runner.apgd, runner.apgd_targeted, runner.fab, runner.square
        self._attacks = dict(zip(STANDARD, attacks, strict=True))
        self.felled = dict.fromkeys(self._names, 0)

    def run(self, images: Tensor, labels: Tensor, batch_size: int, on_progress: OnProgress) -> Tensor:
        """The images, in [0, 1], in place of each that an attack has broken what it made of it."""
        from pyautoattack.checks import check_square_sr

        self._check(images[:batch_size], labels[:batch_size])
        found, n = images.clone(), len(images)
        left = (self._answers(images, batch_size) == labels).nonzero().squeeze(1)
        accuracy = {"clean": len(left) / n}
        for stage, name in enumerate(self._names):
            if not len(left):
                break
            steps = []
            for start, which in zip(range(0, n, batch_size), left.split(batch_size), strict=False):
                x, y = images[which], labels[which]
                ball = Ball(x, self._runner.epsilon, self._runner.norm)
                compute = partial(self._perturb, name, x, y)
                steps.append(Step(f"{stage}-{name}-{start:08d}", compute, int(self._runner.seed), ball))
            report = partial(self._report, on_progress, stage, n, len(left), batch_size)
            made = torch.cat(self._journal.run(steps, self._notes, report))
            right = self._answers(made, batch_size) == labels[left]
            found[left[~right]] = made[~right]
            self.felled[name] = int((~right).sum())
            left = left[right]
            accuracy[name] = len(left) / n
        check_square_sr(accuracy, logger=self._runner.logger)
        return found

    def _check(self, images: Tensor, labels: Tensor) -> None:
        """pyautoattack's own checks; what they find becomes notes."""
        from pyautoattack import checks

        runner, logger = self._runner, self._runner.logger
        x, y = images.to(runner.device), labels.to(runner.device)
        checks.check_randomized(runner.get_logits, x, y, bs=len(x), logger=logger)
        n_classes = checks.check_range_output(runner.get_logits, x, logger=logger)
        checks.check_dynamic(runner.model, x, False, logger=logger)
        n_targets = runner.apgd_targeted.n_target_classes, runner.fab.n_target_classes
        checks.check_n_classes(n_classes, self._names, *n_targets, logger=logger)

    def _perturb(self, name: str, images: Tensor, labels: Tensor) -> Tensor:
        attack, device = self._attacks[name], self._runner.device
        attack.seed = self._runner.get_seed()
        with torch.no_grad():
            perturbed: Tensor = attack.perturb(images.to(device), labels.to(device))
            return perturbed

    def _answers(self, images: Tensor, batch_size: int) -> Tensor:
        def answer(batch: Tensor) -> Tensor:
            with torch.no_grad():
                classes: Tensor = self._runner.get_logits(batch.to(self._runner.device)).argmax(1).cpu()
                return classes

        return torch.cat(dealt([partial(answer, batch) for batch in images.split(batch_size)], self._journal.model))

    def _report(self, on_progress: OnProgress, stage: int, n: int, left: int, batch_size: int, done: int) -> None:
        """Report ``done`` batches of a stage with ``left`` of ``n`` images: how long each takes is known about."""
        targets = self._runner.fab.n_target_classes
        of_one = {"apgd-ce": 1, "apgd-t": targets, "fab-t": 2 * targets, "square": self._runner.square.n_queries / 300}
        lengths = [of_one[name] for name in self._names]
        on_progress((sum(lengths[:stage]) * n + lengths[stage] * min(done * batch_size, left)) / sum(lengths))


class AutoAttack(Attack):
    """The standard AutoAttack, from pyautoattack, or one of its four: see `StandardAutoAttack`.

    Args:
        name: name of its column in the report.
        parts: those of ``apgd-ce``, ``apgd-t``, ``fab-t`` and ``square`` to run; all, unless given.
        queries: of Square, for each image.
    """

    packages = ("pyautoattack",)
    bounded = True

    def __init__(self, *, name: str = "AutoAttack", parts: Sequence[str] = STANDARD, queries: int = _QUERIES) -> None:
        super().__init__(name=name)
        _check_parts(parts)
        self.parts = tuple(part for part in STANDARD if part in parts)
        self.queries = positive_int("queries", queries)
        self.black_box = self.parts == ("square",)
        self.needs_gradients = not self.black_box

    @property
    def is_standard(self) -> bool:
        return self.parts == STANDARD and self.queries == _QUERIES

    def cost(self, n_classes: int) -> Cost:
        targets = min(_TARGET_CLASSES, n_classes - 1)
        of_parts = {"apgd-ce": 101, "apgd-t": 102 * targets, "fab-t": 203 * targets}
        gradients = sum(of_parts.get(part, 0) for part in self.parts)
        return Cost(gradients + 11 + (self.queries + 1) * ("square" in self.parts), gradients)

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        parts = _applicable(self.parts, settings.n_classes)
        if not parts:
            raise InputError(
                f"attacks: {self.name} needs {_TARGETED_DLR_CLASSES} classes, and the model has {settings.n_classes}; "
                "leave it out"
            )
        made: dict[str, Any] = {"version": "standard" if self.parts == STANDARD else "custom", "attacks": parts}
        if {"apgd-t", "fab-t"} & set(parts):
            made["n_target_classes"] = min(_TARGET_CLASSES, settings.n_classes - 1)
        if self.queries != _QUERIES or self.black_box:
            made["queries"] = self.queries
        return made

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        return StandardAutoAttack(
            estimator,
            eps=settings.eps,
            norm=settings.art_norm,
            batch_size=settings.batch_size,
            seed=settings.seed,
            parts=self.parts,
            queries=self.queries,
        )

    def _generate(
        self,
        attack: EvasionAttack,
        images: np.ndarray,
        labels: np.ndarray,
        settings: AttackSettings,
        on_progress: OnProgress,
    ) -> np.ndarray:
        adversarial: np.ndarray = attack.generate(x=images, y=labels, on_progress=on_progress, journal=settings.journal)
        return adversarial
