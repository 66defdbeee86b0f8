"""What watches a run: validation, metrics, saved states."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_text
from .._modes import modes_kept
from .._random import seeded
from ..errors import RunError
from ..method.batches import Batches
from ..method.callback import Callback, Status
from ..method.logits import logits_of
from ..method.perturbation import Perturbation, largest_agreeing_radius, make_perturbation, radius_for
from ..method.trainer import Trainer
from .folder import RunFolder
from .state_file import write_state
from .weights import write_weights

__all__ = ["KeepBest", "Metrics", "SaveStates", "Stopped", "Validation", "best_epoch", "read_metrics", "told_if_full"]

_logger = logging.getLogger(__name__)

_SHARE_OF_TIME = 20  # saving takes at most a twentieth of the run
_STATES_KEPT = 2
_RADIUS_IMAGES = 512


class Stopped(BaseException):
    """The run was asked to stop, and its state is saved.

    Attributes:
        signal: number of the signal that asked.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class Validation(Callback):
    """Clean accuracy, and agreement with the teacher on perturbed images, of validation images after every epoch.

    Agreement is what the best epoch is chosen by: ``sum_k min(p_k, q_k)`` of the two networks' probabilities, that is 1
    less their total variation distance, mean over images randomly perturbed as in training. (The share of images given
    the same class is much noisier on some hundred images: see docs/results.md.) No attack is run and no gradient
    taken. The draws are the same in every epoch. Where the run itself perturbs nothing, the images get ``patterns`` at
    1.5 ``eps``, or at the largest radius at which the teacher keeps 95 % of its own predictions.

    Both figures are added to the epoch's entry in `Trainer.history`, as ``clean`` and ``agreement``.

    Args:
        run: what is watched.
        batches: validation images with labels.
    """

    def __init__(self, run: Trainer, batches: Batches) -> None:
        self.run, self.batches = run, batches
        self.images = 0
        self.dense_clean = 0.0
        self._teacher: Tensor | None = None
        self._random: dict[str, Tensor] = {}

    def on_start(self, status: Status) -> None:
        """Ask the teacher, once."""
        config, teacher = self.run.config, self.run.teacher
        self.batches.classes = self.run.batches.classes
        kind, radius = config.perturbation.kind, self.run.radius
        if kind == "none" or radius == 0:
            kind = "patterns"
            radius = radius_for(config.eps, config.pixel_range) if config.eps else self._radius(kind)
        self._perturbation: Perturbation = make_perturbation(kind, radius=radius, pixel_range=config.pixel_range)
        self._teacher, correct, self.images = self._answers(teacher)
        self.dense_clean = correct / self.images

    def _radius(self, kind: str) -> float:
        config = self.run.config
        with seeded(config.seed):
            images = self.batches.first(_RADIUS_IMAGES)
        return largest_agreeing_radius(
            self.run.teacher, images, kind=kind, pixel_range=config.pixel_range, seed=config.seed
        )

    @torch.no_grad()
    def _answers(self, model: nn.Module) -> tuple[Tensor, int, int]:
        """Probabilities of the perturbed images; how many clean ones are right; how many there are."""
        answers, correct, images = [], 0, 0
        with modes_kept(model), seeded(self.run.config.seed):  # training's draws are left alone
            model.eval()
            len(self.batches)  # where they have to be read to be counted, before the order is drawn
            if not self._random:
                self._random = self.batches.random_state()
            self.batches.set_random_state(self._random)  # the same order and draws every time
            for x, y in self.batches.epoch(check=self._teacher is None):
                assert y is not None
                correct += int((logits_of(model(x)).argmax(1) == y).sum())
                answers.append(logits_of(model(self._perturbation(x))).softmax(1))
                images += len(x)
        return torch.cat(answers), correct, images

    def on_epoch_end(self, status: Status) -> None:
        assert self._teacher is not None
        answers, correct, images = self._answers(self.run.model)
        status.validation = {
            "clean": correct / images,
            # Float32's sum of probabilities may pass 1 by its last bit.
            "agreement": min(1.0, float(torch.minimum(answers, self._teacher).double().sum(1).mean())),
        }
        self.run.history[-1] |= status.validation


def best_epoch(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The epoch of fine-tuning with the highest agreement, the later of two alike; the last one without agreement."""
    tuned = [entry for entry in history if entry["phase"] == "fine-tune"]
    return max(tuned, key=lambda entry: (entry.get("agreement") or 0.0, entry["epoch"])) if tuned else None


class KeepBest(Callback):
    """Writes the weights whenever an epoch is the best so far (see `best_epoch`)."""

    def __init__(self, run: Trainer, folder: RunFolder) -> None:
        self.run, self.folder = run, folder

    def on_epoch_end(self, status: Status) -> None:
        best = best_epoch(self.run.history)
        if best is not None and best["epoch"] == status.epoch:
            with told_if_full(self.folder, self.folder.best):
                write_weights(self.folder.best, self.run.model.state_dict(), {"epoch": str(status.epoch)})


class Metrics(Callback):
    """``metrics.jsonl``: a line for every report, and for every epoch.

    At the start ``run.json`` is told what has been found out: radius, hidden layers, the teacher's clean accuracy.

    Args:
        run: what is watched.
        folder: where to write.
        validation: of the run, if it has one.
        resumed_at: the step a run is resumed at; later lines are dropped, as they will come again.
        epochs_done: of the resumed run.
    """

    def __init__(
        self,
        run: Trainer,
        folder: RunFolder,
        validation: Validation | None = None,
        *,
        resumed_at: int = 0,
        epochs_done: int = 0,
    ) -> None:
        self.run, self.folder, self.validation = run, folder, validation
        kept = [
            line
            for line in read_metrics(folder.metrics)
            if line["step"] <= resumed_at and (line["event"] == "step" or line["epoch"] <= epochs_done)
        ]
        self._last_step = max((line["step"] for line in kept if line["event"] == "step"), default=0)
        write_text(folder.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def on_start(self, status: Status) -> None:
        judged = self.validation
        self.folder.write_facts(
            radius=self.run.radius,
            hidden_layers=self.run.hidden_layers,
            validation={"images": judged.images, "dense_clean": judged.dense_clean} if judged else None,
        )

    def _write(self, line: dict[str, Any]) -> None:
        with told_if_full(self.folder, self.folder.metrics), self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _sparsity(self) -> float:
        weights = [module.get_parameter("weight") for module in self.run.layers.values()]
        dense = sum(layer.weights for layer in self.run.allocation.values())
        return 1 - sum(int(weight.count_nonzero()) for weight in weights) / dense

    def on_report(self, status: Status) -> None:
        if status.step <= self._last_step:
            return
        self._last_step = status.step
        figures = {"loss": status.loss, **status.terms, "lr": status.lr, "rho": status.rho}
        figures |= {"residual": status.residual, "images_per_second": status.images_per_second}
        self._write({"event": "step", "step": status.step, "epoch": status.epoch + 1, "phase": status.phase, **figures})

    def on_epoch_end(self, status: Status) -> None:
        self.run.history[-1]["sparsity"] = self._sparsity()
        self._write({"event": "epoch", "step": status.step, **self.run.history[-1]})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; one that a killed process cut short is left out."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                if isinstance(line["step"], int) and isinstance(line["epoch"], int) and isinstance(line["event"], str):
                    lines.append(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return lines


class SaveStates(Callback):
    """Saves the state now and then, at the end, and when asked to stop.

    Args:
        run: what is saved.
        folder: where to.
        every: seconds between two savings, at least; more where saving is slow, so that it takes a twentieth of the
            time. 0 saves after every step.
    """

    def __init__(self, run: Trainer, folder: RunFolder, *, every: float) -> None:
        self.run, self.folder, self.every = run, folder, every
        self.stop_signal: int | None = None
        self._last = time.perf_counter()
        self._took = 0.0

    def on_step(self, status: Status) -> None:
        stop = self.stop_signal
        wait = max(self.every, _SHARE_OF_TIME * self._took) if self.every else 0.0
        if stop is not None or time.perf_counter() - self._last >= wait:
            self.save(status)
        if stop is not None:
            raise Stopped(stop)

    def on_epoch_end(self, status: Status) -> None:
        if status.epoch == status.epochs:
            self.save(status)
        elif self.stop_signal is not None or not self.every:
            self.on_step(status)

    def save(self, status: Status) -> None:
        """Write the state, and remove all but the newest two."""
        started = time.perf_counter()
        path = self.folder.state_at(status.step)
        with told_if_full(self.folder, path):
            write_state(path, self.run.state())
        for old in self.folder.states()[_STATES_KEPT:]:
            old.unlink(missing_ok=True)
        self._last = time.perf_counter()
        self._took = self._last - started
        _logger.debug("state of step %d saved in %.2f s", status.step, self._took)


@contextlib.contextmanager
def told_if_full(folder: RunFolder, path: Path) -> Iterator[None]:
    """Where a file of the run cannot be written, say what is still good and how to go on.

    Raises:
        RunError: an OSError was raised.
    """
    try:
        yield
    except OSError as error:
        states = folder.states()
        good = f"the last good state is {states[0].name}" if states else "no state is saved yet"
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else str(error)
        raise RunError(
            f"{path}: cannot be written ({reason}); {good}: free some space and go on with --resume"
        ) from error
