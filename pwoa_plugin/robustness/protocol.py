"""The evaluation: which images a model gets right, and which of them no attack takes away."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from .._random import check_seed, seeded
from .attacks.base import (
    Attack,
    AttackSettings,
    OnProgress,
    positive_int,
)
from .estimator import Logits, make_estimator, model_device, undisturbed
from .inputs import (
    as_attacks,
    as_device,
    check_eps,
    check_labels,
    check_pixel_range,
    check_step_size,
    collect,
)
from .report import AttackReport, Config, Report

__all__ = ["DEFAULT_ATTACKS", "audit", "evaluate"]

logger = logging.getLogger(__name__)

DEFAULT_ATTACKS = ("FGSM", "PGD-10", "PGD-20", "CW", "AutoAttack")

_SLACK = 1e-5  # of the pixel range: far above float32 rounding, far below a grey level


def evaluate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    eps: float,
    attacks: str | Attack | Iterable[str | Attack] = DEFAULT_ATTACKS,
    step_size: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: str | torch.device | None = None,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    progress: bool = True,
) -> Report:
    """Clean accuracy of a model, and its robust accuracy under white-box Linf attacks.

    A sample is robust under an attack if the model is right when it is clean and right when it is
    attacked; each attack goes at every clean-correct image. The model runs in eval mode. It comes back in
    the modes, on the device and with the gradients it had, and so do the global random states, also when
    something raises. All images are held in memory.

    Args:
        model: classifier; images ``(N, C, H, W)`` to logits ``(N, classes)``, in any floating dtype.
            Normalisation belongs inside it.
        data: a ``DataLoader`` or another iterable of batches (images, labels), or one pair of tensors:
            images ``(N, C, H, W)``, floating, within ``pixel_range``, and integer labels ``(N,)``.
        eps: radius of the Linf ball in pixel units (those of ``pixel_range``), such as 8/255.
        attacks: names of ``ATTACKS``, ``PGD-<steps>``, or `Attack` objects.
        step_size: step of the PGD attacks in pixel units; 2.5 * eps / steps by default. FGSM steps by eps
            and the standard AutoAttack by its own rule.
        batch_size: images per batch.
        seed: seed of all random draws; the same seed gives the same verdicts.
        device: where to run; by default where the model is.
        pixel_range: ``(low, high)`` of a valid image; attacks stay inside.
        progress: show a progress bar on stderr.

    Returns:
        The accuracies with their 95 % Wilson intervals, the verdicts in the order of the images, and what
        is needed to run the same again.

    Raises:
        ValueError: an argument is off, or the model returns no logits or NaN. No attack has run then.
        ModuleNotFoundError: an attack needs a package that is missing. No attack has run then.
        RuntimeError: an attack left the ball or the pixel range, or gave NaN.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    pixel_range = check_pixel_range(pixel_range)
    eps = check_eps(eps, pixel_range)
    step_size = check_step_size(step_size)
    batch_size = positive_int("batch_size", batch_size)
    seed = check_seed(seed)
    chosen = as_attacks(attacks)
    place = as_device(device, model_device(model))

    with seeded(seed), undisturbed(model), _placed(model, place), _deterministic_cudnn():
        images, labels = collect(data, pixel_range)
        logits = _predict(Logits(model), images, batch_size)
        if n_nan := int(logits.isnan().any(1).sum()):
            raise ValueError(f"model returns NaN for {n_nan} of {len(images)} clean images; mend its weights")
        n_classes = logits.shape[1]
        check_labels(labels, n_classes)
        clean_correct = logits.argmax(1) == labels
        targets = clean_correct.nonzero().squeeze(1)
        settings = AttackSettings(
            eps=eps,
            pixel_range=pixel_range,
            n_classes=n_classes,
            step_size=step_size,
            batch_size=batch_size,
            seed=seed,
        )
        estimator = make_estimator(
            model, n_classes=n_classes, input_shape=tuple(images.shape[1:]), pixel_range=pixel_range
        )
        columns: dict[str, AttackReport] = {}
        notes: list[str] = []
        with _progress_bar(progress) as bar:
            for attack in chosen:
                task = bar.add_task(attack.name, total=len(targets))

                def show(done: float, task: TaskID = task) -> None:
                    bar.update(task, completed=round(done))

                started = time.perf_counter()
                robust = clean_correct.clone()
                robust[targets], run_notes = _verdicts(
                    attack, estimator, images[targets], labels[targets], settings, show
                )
                seconds = time.perf_counter() - started
                show(len(targets))
                columns[attack.name] = AttackReport(robust=robust, seconds=seconds)
                notes += [note for note in run_notes if note not in notes]
                logger.info("%s: %d of %d robust", attack.name, int(robust.sum()), len(robust))
    for note in notes:
        logger.info("%s", note)
    return Report(
        config=Config(
            eps=eps,
            pixel_range=pixel_range,
            attacks={attack.name: attack.parameters(settings) for attack in chosen},
            seed=seed,
            n_images=len(images),
            n_classes=n_classes,
            batch_size=batch_size,
            device=str(place),
        ),
        clean_correct=clean_correct,
        attacks=columns,
        notes=tuple(notes),
    )


def _verdicts(
    attack: Attack,
    estimator: PyTorchClassifier,
    images: Tensor,
    labels: Tensor,
    settings: AttackSettings,
    on_progress: OnProgress,
) -> tuple[Tensor, tuple[str, ...]]:
    """Which of these images, ``(n,)`` bool, the model still gets right when attacked; and the run's notes."""
    if not len(images):
        return torch.empty(0, dtype=torch.bool), ()
    run = attack.run(estimator, images, labels, settings, on_progress)
    audit(attack.name, images, run.images, eps=settings.eps, pixel_range=settings.pixel_range)
    logits = _predict(estimator.model, run.images, settings.batch_size)
    # A model that an attack drives to NaN has no answer left, whatever argmax makes of it.
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1), run.notes


def audit(name: str, images: Tensor, adversarial: Tensor, *, eps: float, pixel_range: tuple[float, float]) -> None:
    """Check that an attack kept to its terms, up to float32 rounding (1e-5 of the pixel range).

    Args:
        name: name of the attack.
        images: clean images, ``(N, C, H, W)``.
        adversarial: what the attack made of them, the same shape.
        eps: radius of the Linf ball, in pixel units.
        pixel_range: ``(low, high)`` of a valid image.

    Raises:
        RuntimeError: an image is NaN, or outside the ball or the pixel range, or the shape has changed.
    """
    if adversarial.shape != images.shape:
        raise RuntimeError(f"{name} returned images {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if n_nan := int(adversarial.isnan().flatten(1).any(1).sum()):
        raise RuntimeError(f"{name} returned {n_nan} images with NaN pixels")
    low, high = pixel_range
    slack = _SLACK * (high - low)
    farthest = float((adversarial - images).abs().max())
    if farthest > eps + slack:
        raise RuntimeError(f"{name} moved a pixel by {farthest:.8g}, beyond eps={eps:.8g}")
    least, most = float(adversarial.min()), float(adversarial.max())
    if least < low - slack or most > high + slack:
        raise RuntimeError(f"{name} returned pixels in [{least:.8g}, {most:.8g}], outside {pixel_range}")


def _predict(view: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Logits ``(N, classes)``, float32, on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat([view(batch).cpu() for batch in torch.split(images, batch_size)])


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
        raise ValueError(f"device={str(device)!r}: the model is spread over {spread}; leave device out")
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
