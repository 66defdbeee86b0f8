"""`pwoa prune`: a run of a config in a folder, which can be resumed after it stopped or was killed at any moment."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .. import _ranks
from .._devices import dtype_of
from .._digest import digest_of
from .._files import read_tensors
from .._random import seeded
from .._text import one_line
from .._versions import installed_versions
from ..backends import backend_of
from ..config import ConfigError, PwoAConfig
from ..data import load_training
from ..errors import InputError, RunError, TrainingError
from ..method.averaging import copy_from_main
from ..method.batches import Batches
from ..method.callback import Callback
from ..method.settings import BATCH_SIZE
from ..method.snapshot import Snapshot, tensors_of
from ..method.trainer import Trainer
from ..progress import default_progress
from .begin import check_config, check_network, is_begun, last_good_state
from .callbacks import KeepBest, Metrics, SaveStates, Stopped, Validation, best_epoch, read_metrics
from .files import write_report
from .folder import RunFolder
from .network import load_weights, network_name, network_of, with_own
from .size import size_report
from .stopping import stopping

_logger = logging.getLogger(__name__)


def prune(
    config: PwoAConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    model: nn.Module | None = None,
    validation: Any = None,
    arch: str | None = None,
    save_every: float = 60.0,
    callbacks: Sequence[Callback] | None = None,
    command: Sequence[str] = (),
) -> RunFolder:
    """Prune by a config, in a folder.

    Args:
        config: with ``data`` and ``model`` sections, or with ``train_loader`` and a ``model`` given here.
        out: folder of the run (see `RunFolder`).
        resume: resume the run in the folder, or start it where there is none. Bit-identical to an uninterrupted run on
            the same CPU.
        model: the robust network, in place of the config's ``model``; it is pruned in place.
        validation: images with labels, in any form that ``train_loader`` may have, to compare epochs by; only with
            ``train_loader`` (``data`` has its own share).
        arch: in place of ``model.arch``; may be ``package.module:function``.
        save_every: seconds between two states, at least; 0 saves after every step.
        callbacks: notified of the progress; None: a bar or lines, unless ``config.progress`` is off.
        command: that started the run, for its report.

    Raises:
        RunError: the folder is in use, or cannot be written.
        TrainingError: the loss is not finite; the last good state is kept.
        Stopped: by SIGINT or SIGTERM; the state is saved.
    """
    if not save_every >= 0:
        raise ConfigError(f"save_every={save_every:g}: give seconds, 0 or more")
    if callbacks is None:
        callbacks = [default_progress()] if config.progress else []
    if not _ranks.is_main():
        callbacks = []
    folder = RunFolder(out)
    notes: tuple[str, ...] = ()
    if model is None and config.train_loader is None:
        with _ranks.together():
            config, notes = with_own(config, arch)
    begun, finished = _ranks.on_main(lambda: _look(folder, config, resume))
    if finished:
        return folder
    with _ranks.together():
        given = _load(config, model, validation, arch)
        given = replace(given, notes=(*notes, *given.notes))
    trainer = backend_of(config).build(given.model, given.config)
    digest = digest_of(given.model)
    if begun:
        _ranks.on_main(lambda: check_network(folder, given.arch, digest))
    if not _ranks.is_main():
        _train(trainer, folder, _ranks.from_main(None), None, save_every, ())
    else:
        with folder.locked():
            state = _ranks.from_main(last_good_state(folder) if begun else None)
            with _status_noted(folder):
                with folder.writing():
                    if begun:
                        folder.write_facts(status="running")
                    else:
                        config.to_yaml(folder.config)
                        folder.facts.unlink(missing_ok=True)
                        folder.write_facts(**_facts(trainer, given, digest, command), status="running")
                _train(trainer, folder, state, given.validation, save_every, callbacks)
                with folder.writing():
                    _finish(trainer, config, folder)
            for callback in callbacks:
                callback.on_written(folder.plots)
    copy_from_main(tensors_of(trainer.model))
    return folder


def _look(folder: RunFolder, config: PwoAConfig, resume: bool) -> tuple[bool, bool]:
    """Whether the folder holds a run to be resumed, and whether that is finished; what is refused, is now."""
    begun = is_begun(folder, resume)
    if begun:
        check_config(folder, config)
        if folder.read_facts().status == "finished" and backend_of(config).is_saved(folder):
            _logger.info("%s is finished already", folder)
            if not folder.has_report():
                with folder.locked():
                    write_report(folder)
            return True, True
    if folder.exists():
        folder.check_writable()
    return begun, False


@dataclass(frozen=True)
class _Given:
    """Network and images of a run; ``made`` is what it takes to make the network again from its name."""

    config: PwoAConfig
    model: nn.Module
    validation: Any
    arch: str = "given in Python"
    notes: tuple[str, ...] = ()
    made: Mapping[str, int] | None = None


def _load(config: PwoAConfig, model: nn.Module | None, validation: Any, arch: str | None) -> _Given:
    if config.train_loader is not None:
        if model is None:
            raise ConfigError("train_loader goes with a network; give prune(config, out, model=...)")
        return _Given(config, model, validation)
    if config.data is None:
        raise ConfigError("data is missing; give data: {name: ...} in a file, or train_loader in Python")
    if model is None:
        network_name(config, arch)  # that there is one, before images are read
    training = load_training(config.data, batch_size=config.batch_size_for)
    config = type(config)(**dict(config) | {"train_loader": training.train})
    if model is not None:
        return _Given(config, model, training.validation)
    made = {"classes": training.classes, "channels": training.shape[0]}
    model = network_of(config, arch, **made)
    assert config.model is not None
    notes = load_weights(model, config.model.checkpoint, config.model.key)
    return _Given(config, model, training.validation, network_name(config, arch), notes, made)


@contextlib.contextmanager
def _status_noted(folder: RunFolder) -> Iterator[None]:
    """Note in ``run.json`` that the run stopped or failed; what is refused before the first step leaves nothing."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, (Stopped, KeyboardInterrupt))
        with contextlib.suppress(OSError, RunError):  # a full disk is an error already
            if isinstance(error, InputError) and not folder.states() and not read_metrics(folder.metrics):
                folder.remove(folder.config, folder.facts, folder.metrics)
            elif folder.exists():
                folder.write_facts(status="interrupted" if stopped else "failed")
        if isinstance(error, TrainingError) and folder.states():
            raise TrainingError(f"{error}; the last good state is kept in {folder.states()[0]}") from error
        raise


def _facts(trainer: Trainer, given: _Given, digest: str, command: Sequence[str]) -> dict[str, Any]:
    config = given.config
    kept = {name: round(layer.weights * layer.density) for name, layer in trainer.allocation.items()}
    return {
        "format": 1,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": config.seed,
        "versions": installed_versions(),
        "command": list(command),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        **({"processes": _ranks.size()} if _ranks.several() else {}),
        "config": config.model_dump(mode="json"),
        "chosen": _chosen(given.config, trainer),
        "layers": _layers(trainer, kept),
        "images": dict(given.made or {}),
        "model": {
            "arch": given.arch,
            "sha256": digest,
            "notes": list(given.notes),
            "checkpoint": config.model.checkpoint if config.model else "given in Python",
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        },
    }


def _chosen(config: PwoAConfig, trainer: Trainer) -> dict[str, float]:
    """What the run made of the fields that the config leaves open."""
    open_shares = {"hsic.share": config.hsic.share, "distillation.feature_share": config.distillation.feature_share}
    chosen = {name: trainer.config.default_share for name, share in open_shares.items() if share is None}
    if config.epochs is None:
        chosen["epochs"] = trainer.epochs
        if config.distillation.temperature is None:
            chosen["distillation.temperature"] = trainer.config.distillation.tau
    return chosen


def _train(
    trainer: Trainer,
    folder: RunFolder,
    state: Snapshot | None,
    validation: Any,
    save_every: float,
    callbacks: Sequence[Callback],
) -> None:
    config = trainer.config
    judged = None
    if validation is not None:
        batches = Batches(
            validation,
            batch_size=config.batch_size or BATCH_SIZE,
            device=trainer.device,
            dtype=dtype_of(trainer.model),
            pixel_range=config.pixel_range,
            labels_because="epochs are compared by them; give (x, y) batches",
            name="validation",
        )
        judged = Validation(trainer, batches)
    status = state.facts["status"] if state else {"step": 0, "epoch": 0}
    saver = SaveStates(trainer, folder, every=save_every)
    if not _ranks.is_main():
        with seeded(config.seed), stopping(saver):
            trainer.fit([saver], state)
        return
    metrics = Metrics(trainer, folder, judged, resumed_at=status["step"], epochs_done=status["epoch"])
    watching = [*([judged] if judged else []), metrics, KeepBest(trainer, folder), *callbacks]
    with seeded(config.seed), stopping(saver):
        trainer.fit([*watching, saver], state)  # others first: a step that is saved does not come again


def _finish(trainer: Trainer, config: PwoAConfig, folder: RunFolder) -> None:
    """Restore the best epoch's weights; write the pruned network and the report."""
    best = best_epoch(trainer.history)
    if best is not None and best["epoch"] != trainer.epochs:
        try:
            weights, facts = read_tensors(folder.best, "file of weights")
            if facts.get("epoch") != str(best["epoch"]):
                raise InputError(f"{folder.best} holds epoch {facts.get('epoch')}, not {best['epoch']}")
            trainer.model.load_state_dict(weights)
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            _logger.warning("%s; the last epoch's weights are kept", one_line(error))
            best = trainer.history[-1]
    saved = backend_of(config).save(trainer, folder)
    folder.write_facts(
        layers=_layers(trainer, saved.kept),
        cost=saved.cost,
        size=size_report(trainer.model).to_dict(),
        residual=trainer.residual,
        best={key: best.get(key) for key in ("epoch", "agreement", "clean")} if best else None,
    )
    write_report(folder, status="finished")
    folder.write_facts(status="finished")  # the last: where it is said, all files are there


def _layers(trainer: Trainer, kept: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(layer.shape),
            "weights": layer.weights,
            "kept": kept[name],
            "density": kept[name] / layer.weights,
            "dense_because": layer.dense_because,
        }
        for name, layer in trainer.allocation.items()
    ]
