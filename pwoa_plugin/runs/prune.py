"""`pwoa prune`: a run of a config in a folder, from which it can be resumed at any moment."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .._digest import digest_of
from .._files import read_tensors
from .._random import seeded
from .._text import one_line
from .._versions import installed_versions
from ..backends import backend_of
from ..config import ConfigError, PwoAConfig
from ..data import load_training
from ..errors import InputError, RunError, TrainingError
from ..method.batches import Batches
from ..method.callback import Callback, Status
from ..method.snapshot import Snapshot
from ..method.trainer import Trainer
from ..progress import default_progress
from .callbacks import KeepBest, Metrics, SaveStates, Stopped, Validation, best_epoch
from .files import write_report
from .folder import RunFolder
from .network import load_weights, make_network, network_name
from .size import size_report
from .state_file import read_state

__all__ = ["prune"]

_logger = logging.getLogger(__name__)

# What a resumed run may be told anew: it changes nothing in what is computed.
_FREE = {"progress", "device", "data.root", "data.download", "data.workers", "model.checkpoint"}


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
        resume: go on with the run that is there; begins it where there is none yet. The end is the same, to the bit,
            as of a run that never stopped (same machine, CPU).
        model: the robust network, in place of the config's ``model``; it is pruned in place.
        validation: images with labels, in any form ``train_loader`` may have, to judge epochs by; with
            ``train_loader`` only (``data`` has its own share).
        arch: in place of ``model.arch``; may be ``package.module:function``.
        save_every: seconds between two states, at least; 0 saves after every step.
        callbacks: told of the progress; None: a bar or lines, unless ``config.progress`` is off.
        command: that started the run, for its report.

    Returns:
        The folder, with masks, weights of the best epoch and a report.

    Raises:
        ValueError: config, data, model or checkpoint cannot be used, or the folder holds another trainer.
        RunError: the folder is in use, or cannot be written.
        TrainingError: the loss is no number; the last good state is kept.
        Stopped: by SIGINT or SIGTERM; the state is saved.
    """
    if not save_every >= 0:
        raise ConfigError(f"save_every={save_every:g}: give seconds, 0 or more")
    if callbacks is None:
        callbacks = [default_progress()] if config.progress else []
    folder = RunFolder(out)
    begun = _is_begun(folder, resume)
    if begun:
        _check_config(folder, config)
        if folder.read_facts().status == "finished" and backend_of(config).is_saved(folder):
            _logger.info("%s is finished already", folder)
            return folder
    name, classes, channels = "given in Python", 0, 0
    notes: tuple[str, ...] = ()
    made: dict[str, int] = {}
    if config.train_loader is None:
        if config.data is None:
            raise ConfigError("data is missing; give data: {name: ...} in a file, or train_loader in Python")
        training = load_training(config.data, batch_size=config.batch_size)
        config = type(config)(**dict(config) | {"train_loader": training.train})
        validation, classes, channels = training.validation, training.classes, training.shape[0]
    elif model is None:
        raise ConfigError("train_loader goes with a network; give prune(config, out, model=...)")
    if model is None:
        model = make_network(config, arch=arch, classes=classes, channels=channels)
        name = network_name(config, arch)
        notes = load_weights(model, config)
        made = {"classes": classes, "channels": channels}
    trainer = backend_of(config).build(model, config)
    digest = digest_of(model)
    if begun:
        _check_network(folder, name, digest)
    with folder.locked():
        folder.clear_scratch()
        state = _last_good_state(folder) if begun else None
        try:
            with folder.writing():
                if not begun:
                    config.to_yaml(folder.config)
                    folder.facts.unlink(missing_ok=True)
                    network = {"arch": name, "sha256": digest, "notes": list(notes)}
                    folder.write_facts(**_facts(trainer, config, network, command), images=made)
                folder.write_facts(status="running")
            _train(trainer, folder, state, validation, save_every, callbacks)
            with folder.writing():
                _finish(trainer, config, folder)
        except BaseException as error:
            stopped = isinstance(error, (Stopped, KeyboardInterrupt))
            with contextlib.suppress(OSError, RunError):  # a full disk is told of already
                folder.write_facts(status="interrupted" if stopped else "failed")
            if isinstance(error, TrainingError) and folder.states():
                raise TrainingError(f"{error}; the last good state is kept in {folder.states()[0]}") from error
            raise
    return folder


def _is_begun(folder: RunFolder, resume: bool) -> bool:
    """Whether there is a run to go on with.

    Raises:
        ConfigError: the folder is not to be written to.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"out={folder}: is a file; give a folder")
    if folder.exists():
        computed = bool(folder.states()) or folder.read_facts().status == "finished"
        if computed and not resume:
            raise ConfigError(f"out={folder}: holds a run; go on with --resume, or give another --out")
        return resume
    strangers = [
        entry.name
        for entry in (folder.path.iterdir() if folder.path.exists() else ())
        if entry.name not in (".lock", folder.config.name) and not entry.name.endswith(".tmp")
    ]
    if strangers:
        raise ConfigError(f"out={folder}: holds no run but other files ({strangers[0]}); give an empty or a new folder")
    return False


def _facts(trainer: Trainer, config: PwoAConfig, network: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """What ``run.json`` says from the start."""
    kept = {name: round(layer.weights * layer.density) for name, layer in trainer.allocation.items()}
    return {
        "format": 1,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": config.seed,
        "versions": installed_versions(),
        "command": list(command),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "config": config.model_dump(mode="json"),
        "layers": _layers(trainer, kept),
        "model": {
            **network,
            "checkpoint": config.model.checkpoint if config.model else "given in Python",
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        },
    }


def _check_config(folder: RunFolder, config: PwoAConfig) -> None:
    """Refuse to go on with a run of another config.

    Raises:
        ConfigError: they differ; the line names where.
    """
    before, now = folder.read_facts().config, config.model_dump(mode="json")
    differing = [key for key in _differing(before, now) if key not in _FREE]
    if differing:
        raise ConfigError(
            f"{differing[0]} is not as in the run in {folder} ({len(differing)} field(s) differ); resume with the same "
            f"config ({folder.config}), or give another --out"
        )


def _check_network(folder: RunFolder, arch: str, digest: str) -> None:
    """Refuse to go on with another network.

    Raises:
        ConfigError: its name or its weights differ.
    """
    facts = folder.read_facts()
    if facts.model.arch != arch:
        raise ConfigError(
            f"model.arch={arch!r} is not {facts.model.arch!r}, that of the run in {folder}; resume with it"
        )
    if facts.model.sha256 != digest:
        raise ConfigError(f"model.checkpoint: these are not the weights that the run in {folder} began with")
    if facts.threads != torch.get_num_threads():
        _logger.warning(
            "the run was begun on %s threads and goes on with %s: the last bits may differ",
            facts.threads,
            torch.get_num_threads(),
        )


def _differing(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in before | now:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _differing(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key}")
    return names


def _last_good_state(folder: RunFolder) -> Snapshot | None:
    """The newest state that can be read; None where none was saved before the run was killed.

    Raises:
        RunError: there are states, and none can be read.
    """
    reasons = []
    for path in folder.states():
        try:
            state = read_state(path)
            Status(**state.facts["status"])
        except (InputError, KeyError, TypeError) as error:
            _logger.warning("%s; trying the one before", error)
            reasons.append(str(error))
            continue
        _logger.info("going on from %s", path)
        return state
    if reasons:
        raise RunError(f"no state can be read ({reasons[0]}); begin again with another --out")
    return None


def _train(
    trainer: Trainer,
    folder: RunFolder,
    state: Snapshot | None,
    validation: Any,
    save_every: float,
    callbacks: Sequence[Callback],
) -> None:
    config = trainer.config
    judged: Validation | None = None
    if validation is not None:
        batches = Batches(
            validation,
            batch_size=config.batch_size,
            device=trainer.device,
            dtype=next(trainer.model.parameters()).dtype,
            pixel_range=config.pixel_range,
            labels_because="epochs are judged by them; give (x, y) batches",
            name="validation",
        )
        judged = Validation(trainer, batches)
    status = state.facts["status"] if state else {"step": 0, "epoch": 0}
    saver = SaveStates(trainer, folder, every=save_every)
    watching: list[Callback] = [
        *([judged] if judged else []),
        Metrics(trainer, folder, judged, resumed_at=status["step"], epochs_done=status["epoch"]),
        KeepBest(trainer, folder),
        saver,
    ]
    with seeded(config.seed), _stopping(saver):
        try:
            trainer.fit([*watching, *callbacks], state)
        except RuntimeError as error:
            if saver.stop_signal is None or isinstance(error, (RunError, TrainingError)):
                raise
            # A signal to the process group ends the workers of a user's own loader, too.
            raise Stopped(saver.stop_signal) from error


@contextlib.contextmanager
def _stopping(saver: SaveStates) -> Iterator[None]:
    """SIGINT and SIGTERM save at the end of the step and stop; the second one stops at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def stop(number: int, frame: object) -> None:
        if os.getpid() != here:  # a loader's worker, which inherits this
            return
        if saver.stop_signal is not None:
            raise KeyboardInterrupt
        saver.stop_signal = number
        _logger.warning("stopping after this step (again: at once, what was done since the last state is lost)")

    here = os.getpid()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(trainer: Trainer, config: PwoAConfig, folder: RunFolder) -> None:
    """The best epoch's weights into the model; weights, masks or removals, and report into the folder."""
    best = best_epoch(trainer.history)
    if best is not None and best["epoch"] != trainer.config.epochs:
        try:
            weights, facts = read_tensors(folder.best, "file of weights")
            if facts.get("epoch") != str(best["epoch"]):
                raise InputError(f"{folder.best} holds epoch {facts.get('epoch')}, not {best['epoch']}")
            trainer.model.load_state_dict(weights)
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            _logger.warning("%s; the last epoch's weights are taken", one_line(error))
            best = trainer.history[-1]
    saved = backend_of(config).save(trainer, folder)
    folder.write_facts(
        status="finished",
        layers=_layers(trainer, saved.kept),
        cost=saved.cost,
        size=size_report(trainer.model).to_dict(),
        residual=trainer.residual,
        best={key: best.get(key) for key in ("epoch", "agreement", "clean")} if best else None,
    )
    write_report(folder)


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
