"""The evaluation: which images a model gets right, and on which of them every attack fails."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from art.estimators.classification import PyTorchClassifier
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from .._digest import digest_of, digest_of_tensors
from .._random import seeded
from .._text import one_line
from .._versions import installed_versions
from ..errors import InputError
from ..models.normalisation import normalisation_of
from .alarms import find_alarms
from .attacks import Attack, AttackRun, AttackSettings
from .attacks.base import OnProgress
from .estimator import Logits, make_estimator, placed, predict, undisturbed
from .images import Images
from .journal import Journal
from .protocol import load_protocol
from .report import AttackReport, Config, Report
from .settings import JudgeOptions, JudgeSettings, Task, takes

logger = logging.getLogger(__name__)

DEFAULT_ATTACKS = tuple(attack.name for attack in load_protocol("paper").attacks)

_LOOKED_AT = 8  # images, before models are compared
_SLACK = 1e-5  # of the pixel range: far above float32 rounding, far below a grey level


@takes(JudgeOptions)
def evaluate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    state: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
    **options: Unpack[JudgeOptions],
) -> Report:
    """Clean accuracy of a model, and its robust accuracy under attacks in an Linf or L2 ball.

    An image is robust under an attack if the model is right when it is clean and right when it is attacked; each attack
    is run on every image that is right when clean. The model runs in eval mode. Its modes, device and gradients and
    the global random states are restored afterwards, also after an error. All images are held in memory.

    Args:
        model: classifier, in any floating dtype; images ``(N, C, H, W)`` to logits ``(N, classes)`` or log-softmax,
            also as a part of a tuple, mapping or object (see ``output``); one logit per image is the pair of two
            classes.
        data: a ``DataLoader`` or another iterable of batches (images, labels), or one pair of tensors:
            images ``(N, C, H, W)``, floating, within ``pixel_range``, and integer labels ``(N,)`` or one-hot.
        state: folder for finished batches. After a kill, the same call resumes from them and ends with the same
            verdicts; another call leaves them alone. They stay until you delete them.
        progress: show a progress bar on stderr; a text is shown before the attacks' names.
        options: how to judge, such as ``eps``, ``protocol``, ``attacks`` and ``norm``; all are described below.

    Returns:
        The accuracies with their 95 % Wilson intervals, the verdicts in the order of the images, and what
        is needed to run the same again.

    Raises:
        ValueError: an argument cannot be used, or the model returns no logits or NaN; no attack has run then. Or an
            attack needs gradients, and the model gives none.
        ModuleNotFoundError: an attack needs a package that is missing. No attack has run then.
        RuntimeError: an attack left the ball or the pixel range, or returned NaN.
        OSError: a finished batch cannot be written.
    """
    if unknown := options.keys() & {"curve", "curve_attack"}:
        raise InputError(f"{min(unknown)}: only compare draws a curve; see security_curve for one model")
    return judge_task(model, JudgeSettings.of(options).bind(data), state=state, progress=progress)


def judge_task(
    model: nn.Module, task: Task, *, state: str | os.PathLike[str] | None = None, progress: bool | str = True
) -> Report:
    """See `evaluate`."""
    settings, images = task
    with _view(model, settings) as view:
        logits = _clean_logits(view, images, settings.batch_size)
        of_attacks = settings.model_dump(include={"eps", "norm", "pixel_range", "step_size", "batch_size", "seed"})
        attacked = AttackSettings(n_classes=logits.shape[1], **of_attacks)
        config = _config(task, attacked, view.device)
        folder = None if state is None else Path(state) / _key(config, view, model, task, logits)
        journal = Journal(folder, lambda: view.n_forwards)
        estimator = make_estimator(
            view,
            n_classes=logits.shape[1],
            input_shape=tuple(images.pixels.shape[1:]),
            pixel_range=settings.pixel_range,
        )
        correct = logits.argmax(1) == images.labels
        attacked = replace(attacked, journal=journal)
        columns, adversarial, notes = _run_attacks(estimator, task, correct, attacked, progress)
        answers = predict(view, adversarial, settings.batch_size).argmax(1)
        alarms = None
        if settings.alarms:
            alarms = find_alarms(estimator, *images[:2], correct, attacked, settings.attacks, columns)
    for alarm in alarms or ():
        logger.warning("%s: %s", alarm.name, alarm)
    for note in notes:
        logger.info("%s", note)
    return Report(
        config=config,
        clean_correct=correct,
        attacks=columns,
        alarms=alarms,
        labels=images.labels,
        notes=notes,
        adversarial=adversarial,
        answers=answers,
    )


def check_model(model: nn.Module, task: Task) -> None:
    """Ask a model for the logits of a few images, as `judge_task` does before its attacks."""
    settings, images = task
    with _view(model, settings) as view:
        few = Images(images.pixels[:_LOOKED_AT], images.labels, images.width)
        _clean_logits(view, few, min(settings.batch_size, _LOOKED_AT))


@contextmanager
def _view(model: nn.Module, settings: JudgeSettings) -> Iterator[Logits]:
    """The model as attacks are to see it, with everything global seeded; all is restored afterwards."""
    normalisation = None
    if settings.mean is not None and settings.std is not None:
        normalisation = settings.mean, settings.std
        if normalisation_of(model) is not None:
            raise InputError("mean and std are given, and the model normalises already; give them in one place")
    with seeded(settings.seed), undisturbed(model), placed(model, settings.device), _reproducible():
        yield Logits(model, normalisation, settings.output)


def _clean_logits(view: Logits, images: Images, batch_size: int) -> Tensor:
    """Logits of clean images; checks that the model takes the images and that the labels are its classes."""
    try:
        logits = predict(view, images.pixels, batch_size)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shape, said = tuple(images.pixels.shape[1:]), one_line(error)
        raise InputError(
            f"model does not take images {shape}: {said}; give images of the shape it was made for"
        ) from error
    if n_nan := int(logits.isnan().any(1).sum()):
        raise InputError(f"model returns NaN for {n_nan} of {len(logits)} clean images; mend its weights")
    images.check_classes(logits.shape[1])
    return logits


def _config(task: Task, attacked: AttackSettings, device: torch.device) -> Config:
    settings, images = task
    return Config(
        **settings.model_dump(include={"eps", "norm", "pixel_range", "seed", "batch_size", "mean", "std", "output"}),
        attacks={attack.name: attack.parameters(attacked) for attack in settings.attacks},
        n_images=len(images.pixels),
        n_classes=attacked.n_classes,
        device=str(device),
        protocol=settings.protocol.name,
        protocol_version=settings.protocol.version,
        images_sha256=digest_of_tensors(images=images.pixels, labels=images.labels),
    )


def _key(config: Config, view: nn.Module, model: nn.Module, task: Task, logits: Tensor) -> str:
    """A digest of everything that decides the verdicts, to the bit.

    Input gradients stand for the model's code: a gradient that was masked and is mended leaves weights and logits as
    they were, and changes every verdict.
    """
    attacks = [f"{type(attack).__module__}.{type(attack).__qualname__}" for attack in task.settings.attacks]
    asked = {
        "config": config.model_dump(mode="json"),
        "attacks": attacks,
        "weights": digest_of(model),
        "logits": digest_of_tensors(logits=logits),
        "gradients": _gradients(view, task),
        "versions": installed_versions(),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _gradients(view: nn.Module, task: Task) -> str:
    """A digest of some images' input gradients; empty if there are none."""
    x = task.images.pixels[:_LOOKED_AT].to(next(view.parameters(), torch.zeros(0)).device).clone().requires_grad_()
    try:
        with seeded(task.settings.seed), torch.enable_grad():
            (found,) = torch.autograd.grad(view(x).logsumexp(1).sum(), x)
    except RuntimeError:
        return ""
    return digest_of_tensors(gradients=found)


def _run_attacks(
    estimator: PyTorchClassifier, task: Task, correct: Tensor, attacked: AttackSettings, progress: bool | str
) -> tuple[dict[str, AttackReport], Tensor, tuple[str, ...]]:
    """Run each attack on all correct images.

    Returns:
        The columns; what first fooled the model on each image, or the clean image; notes.
    """
    columns: dict[str, AttackReport] = {}
    notes: list[str] = []
    adversarial, felled = task.images.pixels.clone(), ~correct
    n_correct = int(correct.sum())
    parts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images")
    with Progress(*parts, TimeElapsedColumn(), console=Console(stderr=True), disable=not progress) as bar:
        for number, attack in enumerate(task.settings.attacks):
            name = f"{progress} {attack.name}" if isinstance(progress, str) else attack.name
            row = bar.add_task(name, total=n_correct)
            own = replace(attacked, journal=attacked.journal.of(f"{number:02d}-{attack.name}"))

            def show(done: float, row: TaskID = row) -> None:
                bar.update(row, completed=round(done))

            column, run = _attacked(attack, estimator, task.images, correct, own, show)
            show(n_correct)
            columns[attack.name] = column
            first = ~column.robust & ~felled
            adversarial[first] = run.images[first[correct]]
            felled |= first
            notes += [note for note in run.notes if note not in notes]
            logger.info("%s: %d of %d robust", attack.name, column.n_robust, len(correct))
    return columns, adversarial, tuple(notes)


def _attacked(
    attack: Attack,
    estimator: PyTorchClassifier,
    images: Images,
    correct: Tensor,
    settings: AttackSettings,
    on_progress: OnProgress,
) -> tuple[AttackReport, AttackRun]:
    """The column of an attack, and its adversarial versions of the correct images."""
    view, journal = estimator.model, settings.journal
    started, forwards = time.perf_counter(), view.n_forwards
    robust = correct.clone()
    x, y = images.pixels[correct], images.labels[correct]
    run = AttackRun(x)
    if len(x):
        try:
            run = attack.run(estimator, x, y, settings, on_progress)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise InputError(
                f"attacks: {attack.name} needs gradients, and the model's logits carry none; "
                "take no_grad, detach or numpy out of its forward, or use Square"
            ) from error
        _audit(attack.name, x, run.images, settings)
        logits = predict(view, run.images, settings.batch_size)
        # A model that an attack drives to NaN has no answer left, whatever argmax makes of it.
        robust[correct] = (logits.argmax(1) == y) & ~logits.isnan().any(1)
    column = AttackReport(
        robust=robust,
        seconds=time.perf_counter() - started + journal.seconds,
        forwards=view.n_forwards - forwards + journal.forwards,
        felled=dict(run.felled),
    )
    return column, run


def _audit(name: str, images: Tensor, adversarial: Tensor, settings: AttackSettings) -> None:
    """Raise a RuntimeError unless an attack stayed in the ball and the pixel range, up to float32 rounding."""
    if adversarial.shape != images.shape:
        raise RuntimeError(f"{name} returned images {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if n_nan := int(adversarial.isnan().flatten(1).any(1).sum()):
        raise RuntimeError(f"{name} returned {n_nan} images with NaN pixels")
    eps, norm, (low, high) = settings.eps, settings.norm, settings.pixel_range
    slack = _SLACK * (high - low)
    moved = (adversarial - images).flatten(1).double()
    farthest = float(moved.abs().max() if norm == "Linf" else moved.norm(dim=1).max())
    if farthest > eps * (1 if norm == "Linf" else 1 + _SLACK) + slack:
        what, where = ("a pixel", "") if norm == "Linf" else ("an image", " in L2")
        raise RuntimeError(f"{name} moved {what} by {farthest:.8g}{where}, beyond eps={eps:.8g}")
    least, most = float(adversarial.min()), float(adversarial.max())
    if least < low - slack or most > high + slack:
        raise RuntimeError(f"{name} returned pixels in [{least:.8g}, {most:.8g}], outside {settings.pixel_range}")


@contextmanager
def _reproducible() -> Iterator[None]:
    """Deterministic cuDNN kernels, chosen without timing them: the same seed gives the same verdicts."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
