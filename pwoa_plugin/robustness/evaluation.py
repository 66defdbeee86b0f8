"""The evaluation: which images a model gets right, and on which of them every attack fails."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from .._digest import digest_of, digest_of_json, digest_of_tensors
from .._files import named_path
from .._network import check_network, naming_images
from .._progress import Rows
from .._random import seeded
from .._text import visible
from .._versions import installed_versions
from ..errors import InputError, PwoAError
from ..models.normalisation import normalisation_of
from .alarms import find_alarms
from .attacks import Attack, AttackRun, AttackSettings
from .attacks.ball import SLACK
from .attacks.base import OnProgress
from .attacks.described import json_ready
from .cost import Meter, announce, cost_text, costs_of, idle_text
from .estimator import Logits, input_gradients, make_estimator, placed, predict, undisturbed
from .images import Images
from .journal import FORMAT, Journal
from .looks import Looks
from .protocol import load_protocol
from .report import AttackReport, Config, Report
from .settings import JudgeOptions, JudgeSettings, Task, check_known, takes
from .sharing import agree, in_processes, is_main, known, of_all, of_main, own_device, size

logger = logging.getLogger(__name__)

DEFAULT_ATTACKS = tuple(attack.name for attack in load_protocol("paper").attacks)

_LOOKED_AT = 8  # images, before models are compared


@takes(JudgeOptions)
def evaluate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    state: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
    processes: int | None = None,
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
        data: a ``DataLoader`` or another iterable of batches, also one that can be read once only; a Dataset; or
            (images, labels) whole. Images are ``(N, C, H, W)`` floats within ``pixel_range``, or uint8 from 0 to 255,
            which are scaled to it; labels are integers ``(N,)`` or one-hot. See "What data may be" in docs/runs.md.
        state: folder for finished batches. After a kill, the same call resumes from them and ends with the same
            verdicts; another call leaves them alone. They stay until you delete them.
        progress: show a progress bar on stderr; a text is shown before the attacks' names.
        processes: how many processes to start on this machine, which share the images; the verdicts are the same. They
            get what is given by pickle, and a script's work must begin with ``if __name__ == "__main__":``. Default:
            those that ``torchrun`` started, or this one. 1: this one alone, whatever others do.
        options: how to judge, such as ``eps``, ``protocol``, ``attacks`` and ``norm``; all are described below.

    Returns:
        The accuracies with their 95 % Wilson intervals, the verdicts in the order of the images, and what
        is needed to run the same again.

    Raises:
        ValueError: an argument cannot be used, or the model returns no logits or NaN; no attack has run then. Or an
            attack needs gradients, and the model gives none; or an attack that is not this package's fails.
        ModuleNotFoundError: an attack needs a package that is missing. No attack has run then.
        RuntimeError: an attack of this package left the ball or the pixel range, or returned NaN. Of other attacks such
            an image counts as not broken, and ``Report.notes`` says how many.
        OSError: a finished batch cannot be written.

    Where ``torchrun`` has started several processes, each must call this with the same model, images and settings. They
    share the work, and each gets the whole report.
    """
    if unknown := options.keys() & {"curve", "curve_attack"}:
        raise InputError(f"{min(unknown)}: only compare draws a curve; see security_curve for one model")
    check_known(options, JudgeOptions.__annotations__)
    if state is not None:
        named_path("state", state)
    task = JudgeSettings.of(options).bind(data).for_processes(processes, model)
    return in_processes(processes, judge_task, model, task, state=state, progress=progress)


def judge_task(
    model: nn.Module, task: Task, *, state: str | os.PathLike[str] | None = None, progress: bool | str = True
) -> Report:
    """See `evaluate`."""
    settings, images = task
    progress = progress if is_main() else False
    with _view(model, task) as view:
        clean = _first_look(view, task)
        n_classes = clean.logits.shape[1]
        of_attacks = settings.model_dump(include={"eps", "norm", "pixel_range", "step_size", "batch_size", "seed"})
        attacked = AttackSettings(n_classes=n_classes, **of_attacks)
        config = _config(task, attacked, view.device)
        agree(config.model_dump(exclude={"device"}), "start all with the same")
        _check_gradients(settings.attacks, clean)
        folder = None if state is None else Path(state) / _key(config, model, task, clean)
        journal = Journal(folder, view)
        estimator = make_estimator(
            view,
            n_classes=n_classes,
            input_shape=tuple(images.pixels.shape[1:]),
            pixel_range=settings.pixel_range,
        )
        for attack in settings.attacks:
            attack.check(estimator, attacked)
        attacked = replace(attacked, journal=journal)
        columns, found = _run_attacks(estimator, task, clean, attacked, progress)
        alarms = clean.looks.alarms() or None  # raised even where no probe is asked for
        if settings.alarms:
            data = images.pixels, images.labels, clean.right
            alarms = clean.looks.alarms() + find_alarms(estimator, *data, attacked, settings.attacks, columns)
        asked = [note for note in of_all(view.note) if note]  # a process may not have asked the model
    notes = (*images.notes, *asked[:1], *found.notes)
    for alarm in (alarms or ()) if is_main() else ():
        logger.warning("%s: %s", alarm.name, visible(str(alarm)))
    for note in notes:
        logger.info("%s", visible(note))
    return Report(
        config=config,
        clean_correct=clean.right,
        attacks=columns,
        alarms=alarms,
        labels=images.labels,
        notes=notes,
        adversarial=found.images,
        answers=found.answers,
    )


def check_model(model: nn.Module, task: Task) -> int:
    """Ask a model about a few images, as `judge_task` does before its attacks; its number of classes."""
    settings, images = task
    few = Task(settings, Images(images.pixels[:_LOOKED_AT], images.labels[:_LOOKED_AT], images.width))
    with _view(model, few) as view:
        clean = _first_look(view, few)
        images.check_classes(clean.logits.shape[1])
        _check_gradients(settings.attacks, clean)
    return clean.logits.shape[1]


@contextmanager
def _view(model: nn.Module, task: Task) -> Iterator[Logits]:
    """The model as attacks are to see it, with everything global seeded; all is restored afterwards.

    Processes that share the evaluation have the same of everything, but for the device.
    """
    check_network(model)
    settings, images = task
    if size() > 1:
        agree(_facts(model, settings, images), "start all with the same; each gets its share of the images here")
    normalisation = None
    if settings.mean is not None and settings.std is not None:
        normalisation = settings.mean, settings.std
        if normalisation_of(model) is not None:
            raise InputError("mean and std are given, and the model normalises already; give them in one place")
    with (
        seeded(settings.seed),
        undisturbed(model),
        placed(model, own_device(settings.device)),
        _reproducible(),
        torch.inference_mode(False),  # of the caller: tensors made in it are of no use to autograd
    ):
        yield Logits(model, normalisation, settings.output)


def _facts(model: nn.Module, settings: JudgeSettings, images: Images) -> dict[str, Any]:
    """What processes must have in common before the first look."""
    versions = {f"the version of {name}": version for name, version in installed_versions().items()}
    asked = settings.model_dump(mode="json", include={"eps", "norm", "seed", "batch_size", "step_size", "alarms"})
    attacks = [(attack.name, attack.code) for attack in settings.attacks]
    facts = {"attacks": attacks, "the network": digest_of(model), "the set of images": images.sha256}
    return {**versions, **asked, **facts}


class Clean(NamedTuple):
    """What the model makes of the clean images.

    Attributes:
        logits: ``(N, classes)``, of the first look.
        right: bool ``(N,)``: right in every look.
        gradients: of a few images; None where no gradient reaches them.
        looks: at the same images again.
    """

    logits: Tensor
    right: Tensor
    gradients: Tensor | None
    looks: Looks


def _first_look(view: Logits, task: Task) -> Clean:
    """Look at the clean images; checks that the model takes them, in batches of any size."""
    settings, images = task
    logits = _clean_logits(view, images, settings.batch_size)
    gradients = known(partial(input_gradients, view, images.pixels[:_LOOKED_AT], _sum))
    looks = Looks(view, images, logits, settings, gradients=gradients is not None)
    return Clean(logits, looks.clean(), gradients, looks)


def _sum(logits: Tensor) -> Tensor:
    """A loss that has a gradient also where the cross-entropy is saturated."""
    return logits.logsumexp(1).sum()


def _check_gradients(attacks: Iterable[Attack], clean: Clean) -> None:
    for attack in attacks:
        if clean.gradients is None and attack.needs_gradients:
            raise InputError(_no_gradients(attack))


def _no_gradients(attack: Attack) -> str:
    return (
        f"attacks: {attack.name} needs gradients, and the model's logits carry none; "
        "take no_grad, detach, numpy or quantisation out of its forward, or use Square"
    )


def _clean_logits(view: Logits, images: Images, batch_size: int) -> Tensor:
    """Logits of clean images; checks that the model takes the images and that the labels are its classes."""
    with naming_images(images.pixels):
        logits = predict(view, images.pixels, batch_size)
    if n_nan := int(logits.isnan().any(1).sum()):
        raise InputError(f"model returns NaN for {n_nan} of {len(logits)} clean images; mend its weights")
    images.check_classes(logits.shape[1])
    return logits


def _config(task: Task, attacked: AttackSettings, device: torch.device) -> Config:
    settings, images = task
    return Config(
        **settings.model_dump(include={"eps", "norm", "pixel_range", "seed", "batch_size", "mean", "std", "output"}),
        attacks={attack.name: json_ready(attack.parameters(attacked)) for attack in settings.attacks},
        n_images=len(images.pixels),
        n_classes=attacked.n_classes,
        device=of_main(str(device)),
        protocol=settings.protocol.name,
        protocol_version=settings.protocol.version,
        images_sha256=images.sha256,
    )


def _key(config: Config, model: nn.Module, task: Task, clean: Clean) -> str:
    """A digest of everything that decides the verdicts, to the bit.

    Input gradients stand for the model's code: a gradient that was masked and is mended leaves weights and logits as
    they were, and changes every verdict.
    """
    attacks = [attack.code for attack in task.settings.attacks]
    asked = {
        "config": config.model_dump(mode="json"),
        "attacks": attacks,
        "weights": digest_of(model),
        "logits": digest_of_tensors(logits=clean.logits),
        "gradients": "" if clean.gradients is None else digest_of_tensors(gradients=clean.gradients),
        "versions": installed_versions(),
        "steps": FORMAT,
    }
    return digest_of_json(asked)[:16]


@dataclass
class _Found:
    """What first fooled the model on each image, or the clean image; the model's answers; notes."""

    images: Tensor
    answers: Tensor
    notes: list[str] = field(default_factory=list)


def _run_attacks(
    estimator: PyTorchClassifier, task: Task, clean: Clean, attacked: AttackSettings, progress: bool | str
) -> tuple[dict[str, AttackReport], _Found]:
    """Run each attack on all images that are right when clean; a column for each."""
    view, attacks, n_right = estimator.model, task.settings.attacks, int(clean.right.sum())
    columns: dict[str, AttackReport] = {}
    found = _Found(task.images.pixels.clone(), clean.logits.argmax(1))
    felled = ~clean.right
    costs = costs_of(attacks, n_right, attacked.n_classes, alarms=task.settings.alarms)
    prefix = f"{progress} " if isinstance(progress, str) else ""
    subject = f"{progress}: judging" if isinstance(progress, str) else "judging"
    announce(cost_text(f"{subject} {len(felled):,} images", costs, clean.looks.pace), shown=bool(progress))
    if is_main() and (idle := idle_text(n_right, attacked.batch_size, size())):
        announce(idle, shown=bool(progress))
    with Rows(shown=bool(progress)) as rows:
        for number, attack in enumerate(attacks):
            own = replace(attacked, journal=attacked.journal.of(f"{number:02d}-{attack.name}"))
            rows.begin(prefix + attack.name)
            cost = costs[attack.name]
            meter = Meter(rows, view, n_right, cost and cost.forwards)
            view.on_forward = meter.moved
            column, run, answers = _attacked(attack, estimator, task.images, clean, own, meter.reported)
            view.on_forward = None
            rows.end()
            columns[attack.name] = column
            first = ~column.robust & ~felled
            found.images[first] = run.images[first[clean.right]]
            found.answers[first] = answers[first[clean.right]]
            felled |= first
            found.notes += [note for note in run.notes if note not in found.notes]
            logger.info("%s: %d of %d robust", visible(attack.name), column.n_robust, len(felled))
    return columns, found


def _attacked(
    attack: Attack,
    estimator: PyTorchClassifier,
    images: Images,
    clean: Clean,
    settings: AttackSettings,
    on_progress: OnProgress,
) -> tuple[AttackReport, AttackRun, Tensor]:
    """The column of an attack, its versions of the images that are right when clean, and the answers to these."""
    view, journal, right = estimator.model, settings.journal, clean.right
    started, forwards = time.perf_counter(), view.n_forwards
    robust = right.clone()
    x, y = images.pixels[right], images.labels[right]
    run, answers = AttackRun(x), y
    if len(x):
        try:
            run = attack.run(estimator, x, y, settings, on_progress)
        except Exception as error:
            given = x[: settings.batch_size]  # in such batches a gradient may be missing that few images have
            if isinstance(error, PwoAError) or attack.black_box or input_gradients(view, given, _sum) is not None:
                raise
            raise InputError(_no_gradients(attack)) from error
        _audit(attack.name, x, run.images, settings)
        logits = predict(view, run.images, settings.batch_size)
        robust &= clean.looks.attacked(run.images, logits, right.nonzero().squeeze(1))
        answers = logits.argmax(1)
    column = AttackReport(
        robust=robust,
        seconds=time.perf_counter() - started + journal.seconds,
        forwards=view.n_forwards - forwards + journal.forwards,
        felled=dict(run.felled),
    )
    return column, run, answers


def _audit(name: str, images: Tensor, adversarial: Tensor, settings: AttackSettings) -> None:
    """Raise a RuntimeError unless an attack stayed in the ball and the pixel range, up to float32 rounding."""
    if adversarial.shape != images.shape:
        raise RuntimeError(f"{name} returned images {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if n_nan := int(adversarial.isnan().flatten(1).any(1).sum()):
        raise RuntimeError(f"{name} returned {n_nan} images with NaN pixels")
    eps, norm, (low, high) = settings.eps, settings.norm, settings.pixel_range
    slack = SLACK * (high - low)
    moved = (adversarial - images).flatten(1).double()
    farthest = float(moved.abs().max() if norm == "Linf" else moved.norm(dim=1).max())
    if farthest > eps * (1 if norm == "Linf" else 1 + SLACK) + slack:
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
