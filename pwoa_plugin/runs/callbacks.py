"""Callbacks of a run in a folder: validation, metrics, the best weights, saved states."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _ranks
from .._files import parse_json, write_tensors, write_text
from .._modes import modes_kept
from .._random import seeded
from ..errors import InputError
from ..method.batches import Batches
from ..method.callback import Callback, Status
from ..method.perturbation import RADIUS_IMAGES, PerturbationConfig, largest_agreeing_radius
from ..method.trainer import Trainer
from .folder import RunFolder
from .state_file import write_state

_logger = logging.getLogger(__name__)

_SHARE_OF_TIME = 20  # saving takes at most a twentieth of the run
_STATES_KEPT = 2


class Stopped(BaseException):
    """The run was stopped by a signal, and its state is saved."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class Validation(Callback):
    """After every epoch, clean accuracy on validation images, and agreement with the teacher on perturbed ones.

    The best epoch is chosen by agreement: ``sum_k min(p_k, q_k)`` of the two networks' probabilities, that is 1 minus
    their total variation distance, mean over images that are perturbed as in training. (The share of images that get
    the same class is much noisier on a few hundred images.) This needs no attack and no gradient. All epochs see the
    same draws. If the run itself perturbs nothing, the images get ``patterns`` at 1.5 ``eps``, or at the largest radius
    at which the teacher keeps 95 % of its predictions.

    Both figures are added to the epoch's entry in `Trainer.history`, as ``clean`` and ``agreement``.
    """

    def __init__(self, trainer: Trainer, batches: Batches) -> None:
        self.trainer, self.batches = trainer, batches
        self.images = 0
        self.dense_clean = 0.0
        self._teacher: Tensor | None = None
        self._random: dict[str, Tensor] = {}

    def on_start(self, status: Status) -> None:
        """Compute the teacher's answers, once."""
        config = self.trainer.config
        self.batches.classes = self.trainer.batches.classes
        perturbation, radius = config.perturbation, self.trainer.radius
        if perturbation.kind == "none" or radius == 0:
            perturbation = PerturbationConfig()
            known = perturbation.known_radius(config.eps, config.pixel_range)
            radius = self._agreeing_radius(perturbation) if known is None else known
        self._perturbation = perturbation.make(radius, config.pixel_range)
        self._teacher, self.dense_clean = self._answers(self.trainer.teacher)
        self.images = len(self._teacher)

    def _agreeing_radius(self, perturbation: PerturbationConfig) -> float:
        config = self.trainer.config
        with seeded(config.seed):
            images = self.batches.first(RADIUS_IMAGES)
        answers = partial(self.trainer.loss.logits, self.trainer.teacher)
        return largest_agreeing_radius(answers, images, perturbation, pixel_range=config.pixel_range, seed=config.seed)

    @torch.no_grad()
    def _answers(self, model: nn.Module) -> tuple[Tensor, float]:
        """Probabilities ``(N, K)`` on the perturbed images, and accuracy on the clean ones."""
        answers, correct = [], 0
        with modes_kept(model), seeded(self.trainer.config.seed):  # training's random state stays as it is
            model.eval()
            len(self.batches)  # may have to read all batches, which must come before the order is drawn
            if not self._random:
                self._random = self.batches.random_state()
            self.batches.set_random_state(self._random)  # the same order and draws every time
            for x, y in self.batches.epoch(check=self._teacher is None):
                assert y is not None
                correct += int((self.trainer.loss.logits(model, x).argmax(1) == y).sum())
                answers.append(self.trainer.loss.logits(model, self._perturbation(x)).softmax(1))
        found = torch.cat(answers)
        return found, correct / len(found)

    def on_epoch_end(self, status: Status) -> None:
        assert self._teacher is not None
        answers, clean = self._answers(self.trainer.network)  # alone: another process may not take part
        status.validation = {
            "clean": clean,
            # In float32, probabilities may sum to a little more than 1.
            "agreement": min(1.0, float(torch.minimum(answers, self._teacher).double().sum(1).mean())),
        }
        self.trainer.history[-1] |= status.validation


def best_epoch(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fine-tuning epoch with the highest agreement, of equal ones the later; without agreement, the last."""
    tuned = [entry for entry in history if entry["phase"] == "fine-tune"]
    return max(tuned, key=lambda entry: (entry.get("agreement") or 0.0, entry["epoch"])) if tuned else None


class KeepBest(Callback):
    """Writes the weights after each epoch that is the best so far; see `best_epoch`."""

    def __init__(self, trainer: Trainer, folder: RunFolder) -> None:
        self.trainer, self.folder = trainer, folder

    def on_epoch_end(self, status: Status) -> None:
        best = best_epoch(self.trainer.history)
        if best is not None and best["epoch"] == status.epoch:
            with self.folder.writing(self.folder.best):
                facts = {"format": "pt", "epoch": str(status.epoch)}
                write_tensors(self.folder.best, self.trainer.model.state_dict(), facts)


class Metrics(Callback):
    """Writes a line of ``metrics.jsonl`` at every report and after every epoch, and what is known at the start.

    Of a resumed run, lines after step ``resumed_at`` and epoch ``epochs_done`` are dropped: they are written again.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        validation: Validation | None = None,
        *,
        resumed_at: int = 0,
        epochs_done: int = 0,
    ) -> None:
        self.trainer, self.folder, self.validation = trainer, folder, validation
        kept = [
            line
            for line in read_metrics(folder.metrics)
            if line["step"] <= resumed_at and (line["event"] == "step" or line["epoch"] <= epochs_done)
        ]
        self._last_step = max((line["step"] for line in kept if line["event"] == "step"), default=0)
        with folder.writing():
            write_text(folder.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def on_start(self, status: Status) -> None:
        judged, trainer = self.validation, self.trainer
        validation = {"images": judged.images, "dense_clean": judged.dense_clean} if judged else None
        with self.folder.writing():
            self.folder.write_facts(radius=trainer.radius, hidden_layers=trainer.hidden_layers, validation=validation)

    def _write(self, line: dict[str, Any]) -> None:
        with self.folder.writing(self.folder.metrics), self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _sparsity(self) -> float:
        weights = [module.get_parameter("weight") for module in self.trainer.target.layers.values()]
        dense = sum(layer.weights for layer in self.trainer.allocation.values())
        return 1 - sum(int(weight.count_nonzero()) for weight in weights) / dense

    def on_report(self, status: Status) -> None:
        if status.step <= self._last_step:
            return
        self._last_step = status.step
        figures = {"loss": status.loss, **status.terms, "lr": status.lr, "rho": status.rho}
        figures |= {"residual": status.residual, "images_per_second": status.images_per_second}
        self._write({"event": "step", "step": status.step, "epoch": status.epoch + 1, "phase": status.phase, **figures})

    def on_epoch_end(self, status: Status) -> None:
        self.trainer.history[-1]["sparsity"] = self._sparsity()
        self._write({"event": "epoch", "step": status.step, **self.trainer.history[-1]})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, without those that are damaged, as a killed process leaves them."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(InputError):
                line = parse_json(text)
                if isinstance(line, dict) and _is_whole(line):
                    lines.append(line)
    return lines


def _is_whole(line: dict[str, Any]) -> bool:
    counts = [line.get(name) for name in ("step", "epoch")]
    return line.get("event") in ("step", "epoch") and all(type(count) is int for count in counts)


class SaveStates(Callback):
    """Saves the state every ``every`` seconds (0: after every step), at the end, and on a signal to stop.

    The first epoch's end has one saved, too, if there is none yet. Where saving is slow, states are further apart, so
    that it takes at most a twentieth of the time. Of several processes, all call this; rank 0 decides, and writes.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, *, every: float) -> None:
        self.trainer, self.folder, self.every = trainer, folder, every
        self.stop_signal: int | None = None
        self._last = time.perf_counter()
        self._took = 0.0
        self._saved = bool(folder.states())

    def on_step(self, status: Status) -> None:
        stop = _ranks.number_from_main(self.stop_signal or 0)
        wait = max(self.every, _SHARE_OF_TIME * self._took) if self.every else 0.0
        if stop or time.perf_counter() - self._last >= wait:
            self.save(status)
        if stop:
            raise Stopped(stop)

    def on_epoch_end(self, status: Status) -> None:
        stop = _ranks.number_from_main(self.stop_signal or 0)
        if status.epoch == status.epochs or not self._saved or stop or not self.every:
            self.save(status)
        if stop and status.epoch < status.epochs:
            raise Stopped(stop)

    def save(self, status: Status) -> None:
        """Write the state, and remove all states but the newest two."""
        if not _ranks.is_main():
            return
        started = time.perf_counter()
        path = self.folder.state_at(status.step)
        with self.folder.writing(path):
            write_state(path, self.trainer.state())
        for old in self.folder.states()[_STATES_KEPT:]:
            old.unlink(missing_ok=True)
        self._saved = True
        self._last = time.perf_counter()
        self._took = self._last - started
        _logger.debug("state of step %d saved in %.2f s", status.step, self._took)
