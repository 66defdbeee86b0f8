"""Whether a folder may hold a new run, or the run in it may be resumed."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ..config import ConfigError, PwoAConfig
from ..errors import InputError, RunError
from ..method.callback import Status
from ..method.snapshot import Snapshot
from .folder import RunFolder
from .state_file import read_state

_logger = logging.getLogger(__name__)

# A resumed run may change these: nothing that is computed depends on them.
_FREE = {"progress", "device", "data.root", "data.download", "data.workers", "model.checkpoint"}


def is_begun(folder: RunFolder, resume: bool) -> bool:
    """Whether a run in this folder is to be resumed.

    Raises:
        ConfigError: the folder holds something else, or a run and ``resume`` is False.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"out={folder}: is a file; give a folder")
    if folder.exists():
        computed = bool(folder.states()) or folder.read_facts().status == "finished"
        if computed and not resume:
            raise ConfigError(f"out={folder}: holds a run; resume it with --resume, or give another --out")
        return resume
    strangers = [
        entry.name
        for entry in (folder.path.iterdir() if folder.path.exists() else ())
        if entry.name not in (".lock", folder.config.name) and not entry.name.endswith(".tmp")
    ]
    if strangers:
        raise ConfigError(f"out={folder}: holds no run but other files ({strangers[0]}); give an empty or a new folder")
    return False


def check_config(folder: RunFolder, config: PwoAConfig) -> None:
    """Refuse to resume with another config.

    Raises:
        ConfigError: they differ; the line names the first field.
    """
    before, now = folder.read_facts().config, config.model_dump(mode="json")
    differing = [key for key in _differing(before, now) if key not in _FREE]
    if differing:
        raise ConfigError(
            f"{differing[0]} differs from the run in {folder} ({len(differing)} field(s) differ); resume with the same "
            f"config ({folder.config}), or give another --out"
        )


def check_network(folder: RunFolder, arch: str, digest: str) -> None:
    """Refuse to resume with another network.

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
            "the run began on %s threads and resumes on %s: the last bits may differ",
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


def last_good_state(folder: RunFolder) -> Snapshot | None:
    """The newest state that can be read; None if none was saved before the run was killed.

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
        _logger.info("resuming from %s", path)
        return state
    if reasons:
        raise RunError(f"no state can be read ({reasons[0]}); start again with another --out")
    return None
