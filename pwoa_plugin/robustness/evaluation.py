"""The evaluation: which images a model gets right, and which of them no attack takes away."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from .._digest import digest_of, digest_of_tensors
from .._random import check_seed, seeded
from .._text import one_line
from .._versions import installed_versions
from ..data.split import stratified_order
from ..errors import InputError
from .alarms import find_alarms
from .attacks import Attack, AttackRun, AttackSettings
from .attacks.base import OnProgress, positive_int
from .estimator import Logits, make_estimator, model_device, predict, undisturbed
from .inputs import (
    Images,
    as_device,
    as_protocol,
    check_eps,
    check_labels,
    check_norm,
    check_normalisation,
    check_pixel_range,
    check_step_size,
    collect,
)
from .journal import Journal
from .protocol import Protocol, load_protocol
from .report import AttackReport, Config, Report

__all__ = ["DEFAULT_ATTACKS", "audit", "check_model", "draw", "evaluate"]

logger = logging.getLogger(__name__)

DEFAULT_ATTACKS = tuple(attack.name for attack in load_protocol("paper").attacks)

_ANY = 1 << 40  # values of an image whose shape is not known yet
_LOOKED_AT = 8  # images, before models are compared
_SLACK = 1e-5  # of the pixel range: far above float32 rounding, far below a grey level


def evaluate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    protocol: str | os.PathLike[str] | Protocol | None = None,
    norm: str | None = None,
    eps: float | None = None,
    attacks: str | Attack | Iterable[str | Attack] | None = None,
    step_size: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
    sample: int | None = None,
    device: str | torch.device | None = None,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    alarms: bool = True,
    state: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> Report:
    """Clean accuracy of a model, and its robust accuracy under attacks in an Linf or L2 ball.

    A sample is robust under an attack if the model is right when it is clean and right when it is
    attacked; each attack goes at every clean-correct image. The model runs in eval mode. It comes back in
    the modes, on the device and with the gradients it had, and so do the global random states, also when
    something raises. All images are held in memory.

    Args:
        model: classifier, in any floating dtype; images ``(N, C, H, W)`` to logits ``(N, classes)`` or log-softmax,
            also in a tuple or a Hugging Face ``ModelOutput``.
        data: a ``DataLoader`` or another iterable of batches (images, labels), or one pair of tensors:
            images ``(N, C, H, W)``, floating, within ``pixel_range``, and integer labels ``(N,)`` or one-hot.
        protocol: ``quick``, ``paper``, ``standard``, or a YAML file of one's own; see `load_protocol`. Without it and
            without ``attacks``: ``paper``.
        norm: ``Linf`` or ``L2``; the protocol's, and failing that Linf.
        eps: radius of the ball in pixel units (those of ``pixel_range``), such as 8/255; the protocol's, if it has one.
        attacks: in place of a protocol: names of ``ATTACKS``, ``PGD-<steps>``, ``CW-<steps>``, or `Attack` objects.
        step_size: step of the PGD attacks in pixel units; 2.5 * eps / steps by default. FGSM steps by eps
            and the standard AutoAttack by its own rule.
        batch_size: images per batch.
        seed: seed of all random draws; the same seed gives the same verdicts.
        sample: how many images to judge, drawn by class with ``seed``; the protocol's number at most if it has one,
            else all.
        device: where to run; by default where the model is.
        pixel_range: ``(low, high)`` of a valid image; attacks stay inside.
        mean, std: by channel, in pixel units, where the model wants ``(x - mean) / std`` and does not do it itself.
        alarms: whether to probe the model for what blinds attacks, and to say it in ``Report.alarms``.
        state: folder for finished batches. The same call again, after a kill, goes on from them and ends with the same
            verdicts; another call leaves them alone. They stay there until somebody deletes them.
        progress: show a progress bar on stderr; a text stands before the attacks' names in it.

    Returns:
        The accuracies with their 95 % Wilson intervals, the verdicts in the order of the images, and what
        is needed to run the same again.

    Raises:
        ValueError: an argument is off, or the model returns no logits or NaN. No attack has run then. Or an attack
            needs gradients, and there are none.
        ModuleNotFoundError: an attack needs a package that is missing. No attack has run then.
        RuntimeError: an attack left the ball or the pixel range, or gave NaN.
        OSError: a finished batch cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    how = as_protocol(protocol, attacks, "paper")
    pixel_range = check_pixel_range(pixel_range)
    norm = check_norm(norm or how.norm or "Linf")
    given = how.eps if eps is None else eps
    eps = check_eps(given, pixel_range, norm, n_pixels=_ANY)
    step_size = check_step_size(step_size)
    batch_size = positive_int("batch_size", batch_size)
    seed = check_seed(seed)
    place = as_device(device, model_device(model))

    with seeded(seed), undisturbed(model), _placed(model, place), _deterministic_cudnn():
        images, labels, width = draw(collect(data, pixel_range), sample, how.sample, seed)
        check_eps(given, pixel_range, norm, n_pixels=images[0].numel())
        normalisation = check_normalisation(mean, std, images.shape[1], model)
        view = Logits(model, normalisation)
        logits = _clean_logits(view, images, batch_size)
        n_classes = logits.shape[1]
        check_labels(labels, n_classes, width)
        clean_correct = logits.argmax(1) == labels
        settings = AttackSettings(
            eps=eps,
            norm=norm,
            pixel_range=pixel_range,
            n_classes=n_classes,
            step_size=step_size,
            batch_size=batch_size,
            seed=seed,
        )
        config = Config(
            eps=eps,
            norm=norm,
            pixel_range=pixel_range,
            attacks={attack.name: attack.parameters(settings) for attack in how.attacks},
            seed=seed,
            n_images=len(images),
            n_classes=n_classes,
            batch_size=batch_size,
            device=str(place),
            protocol=how.name,
            protocol_version=how.version,
            mean=normalisation and normalisation[0],
            std=normalisation and normalisation[1],
            images_sha256=digest_of_tensors(images=images, labels=labels),
        )
        journal = Journal(state and Path(state) / _key(config, model, logits), lambda: view.n_forwards)
        estimator = make_estimator(
            view, n_classes=n_classes, input_shape=tuple(images.shape[1:]), pixel_range=pixel_range
        )
        columns: dict[str, AttackReport] = {}
        notes: list[str] = []
        adversarial = images.clone()
        felled = ~clean_correct
        with _progress_bar(bool(progress)) as bar:
            for number, attack in enumerate(how.attacks):
                shown = f"{progress} {attack.name}" if isinstance(progress, str) else attack.name
                task = bar.add_task(shown, total=int(clean_correct.sum()))

                def show(done: float, task: TaskID = task) -> None:
                    bar.update(task, completed=round(done))

                own = replace(settings, journal=journal.of(f"{number:02d}-{attack.name}"))
                column, run = _attacked(attack, estimator, images, labels, clean_correct, own, show)
                show(int(clean_correct.sum()))
                columns[attack.name] = column
                first = ~column.robust & ~felled
                adversarial[first] = run.images[first[clean_correct]]
                felled |= first
                notes += [note for note in run.notes if note not in notes]
                logger.info("%s: %d of %d robust", attack.name, column.n_robust, len(images))
        answers = predict(view, adversarial, batch_size).argmax(1)
        raised = (
            find_alarms(estimator, images, labels, clean_correct, settings, how.attacks, columns) if alarms else None
        )
    for alarm in raised or ():
        logger.warning("%s: %s", alarm.name, alarm)
    for note in notes:
        logger.info("%s", note)
    return Report(
        config=config,
        clean_correct=clean_correct,
        attacks=columns,
        alarms=raised,
        labels=labels,
        notes=tuple(notes),
        adversarial=adversarial,
        answers=answers,
    )


def draw(data: Images, sample: int | None, at_most: int | None, seed: int) -> Images:
    """So many of the images, drawn by class; all, as they come, where neither number asks for fewer.

    Args:
        data: to draw from.
        sample: how many.
        at_most: how many where ``sample`` is None; all where there are fewer.
        seed: of the draw.

    Raises:
        ValueError: ``sample`` is no number of images that there are.
    """
    there = len(data.images)
    if sample is None:
        sample = min(at_most, there) if at_most else there
    elif positive_int("sample", sample) > there:
        raise InputError(f"sample={sample}: there are {there} images; give 1 to {there}")
    if sample == there:
        return data
    chosen = stratified_order(data.labels, seed)[:sample]
    return Images(data.images[chosen], data.labels[chosen], data.width)


def _key(config: Config, model: nn.Module, logits: Tensor) -> str:
    """Of what decides the verdicts, to the bit."""
    asked = {
        "config": asdict(config),
        "weights": digest_of(model),
        "logits": digest_of_tensors(logits=logits),
        "versions": installed_versions(),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _attacked(
    attack: Attack,
    estimator: PyTorchClassifier,
    images: Tensor,
    labels: Tensor,
    correct: Tensor,
    settings: AttackSettings,
    on_progress: OnProgress,
) -> tuple[AttackReport, AttackRun]:
    """The column of an attack on the correct images, and what it made of these."""
    view, journal = estimator.model, settings.journal
    started, forwards = time.perf_counter(), view.n_forwards
    robust = correct.clone()
    x, y = images[correct], labels[correct]
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
        audit(attack.name, x, run.images, norm=settings.norm, eps=settings.eps, pixel_range=settings.pixel_range)
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


def audit(
    name: str,
    images: Tensor,
    adversarial: Tensor,
    *,
    eps: float,
    pixel_range: tuple[float, float],
    norm: str = "Linf",
) -> None:
    """Check that an attack kept to its terms, up to float32 rounding (1e-5 of the pixel range).

    Args:
        name: name of the attack.
        images: clean images, ``(N, C, H, W)``.
        adversarial: what the attack made of them, the same shape.
        eps: radius of the ball, in pixel units.
        pixel_range: ``(low, high)`` of a valid image.
        norm: of the ball.

    Raises:
        RuntimeError: an image is NaN, or outside the ball or the pixel range, or the shape has changed.
    """
    if adversarial.shape != images.shape:
        raise RuntimeError(f"{name} returned images {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if n_nan := int(adversarial.isnan().flatten(1).any(1).sum()):
        raise RuntimeError(f"{name} returned {n_nan} images with NaN pixels")
    low, high = pixel_range
    slack = _SLACK * (high - low)
    moved = (adversarial - images).flatten(1).double()
    if norm == "Linf":
        farthest = float(moved.abs().max())
        if farthest > eps + slack:
            raise RuntimeError(f"{name} moved a pixel by {farthest:.8g}, beyond eps={eps:.8g}")
    else:
        farthest = float(moved.norm(dim=1).max())
        if farthest > eps * (1 + _SLACK) + slack:
            raise RuntimeError(f"{name} moved an image by {farthest:.8g} in L2, beyond eps={eps:.8g}")
    least, most = float(adversarial.min()), float(adversarial.max())
    if least < low - slack or most > high + slack:
        raise RuntimeError(f"{name} returned pixels in [{least:.8g}, {most:.8g}], outside {pixel_range}")


def _clean_logits(view: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Logits of clean images, once it is known that the model takes these and answers with numbers."""
    try:
        logits = predict(view, images, batch_size)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = one_line(error)
        raise InputError(
            f"model does not take images {tuple(images.shape[1:])}: {said}; give images of the shape it was made for"
        ) from error
    if n_nan := int(logits.isnan().any(1).sum()):
        raise InputError(f"model returns NaN for {n_nan} of {len(images)} clean images; mend its weights")
    return logits


def check_model(
    model: nn.Module,
    data: Images,
    *,
    device: str | torch.device | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = _LOOKED_AT,
) -> None:
    """Ask a model for the logits of a few images, as `evaluate` would before its attacks.

    Raises:
        ValueError: it is no model, does not take the images, or returns no logits, NaN or too few classes.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    place = as_device(device, model_device(model))
    images = data.images[:_LOOKED_AT]
    with seeded(0), undisturbed(model), _placed(model, place), _deterministic_cudnn():
        view = Logits(model, check_normalisation(mean, std, images.shape[1], model))
        check_labels(data.labels, _clean_logits(view, images, batch_size).shape[1], data.width)


@contextmanager
def _placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on ``device``, and back on its own afterwards."""
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if homes <= {device}:
        yield
        return
    if len(homes) > 1:
        if device == model_device(model):  # spread out by its owner, who sends the images on
            yield
            return
        spread = ", ".join(sorted(map(str, homes)))
        raise InputError(f"device={str(device)!r}: the model is spread over {spread}; leave device out")
    (home,) = homes
    try:
        model.to(device)
        yield
    finally:
        model.to(home)


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    """Deterministic cuDNN kernels, chosen without timing them: the same seed gives the same verdicts."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _progress_bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not show,
    )
