"""Whether a folder may hold a new run, or the run in it may be resumed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from ..config import ConfigError, PwoAConfig
from ..errors import InputError, RunError
from ..method.callback import Status
from ..method.snapshot import Snapshot
from .folder import RunFolder
from .state_file import read_state

_logger = logging.getLogger(__name__)

# A resumed run may change these: nothing that is computed depends on them, or `check_network` looks at it.
_FREE = {"progress", "device", "data.root", "data.download", "data.workers", "model.checkpoint", "model.arch"}


def is_begun(folder: RunFolder, resume: bool) -> bool:
    """Whether a run in this folder is to be resumed; refuses a folder of other files, or a run without ``resume``."""
    if not folder.exists():
        folder.check_out(but=folder.config)
        if resume:
            _logger.info("%s holds no run yet; starting one", folder)
        return False
    computed = bool(folder.states()) or folder.read_facts().status == "finished"
    if computed and not resume:
        raise ConfigError(f"out={folder}: holds a run; resume it with --resume, or give another --out")
    return resume


# What runs did that were begun before these fields existed.
_BEFORE: dict[str, Any] = {
    "adversarial.classes": "labels",
    "compile": False,
    "hsic.share": 1.0,
    "distillation.feature_share": 1.0,
}


def check_config(folder: RunFolder, config: PwoAConfig) -> None:
    """Refuse to resume with another config."""
    now = dict(_fields(config.model_dump(mode="json")))
    before = {name: value for name, value in _BEFORE.items() if name in now}
    before |= dict(_fields(folder.read_facts().config))
    differing = [name for name in before | now if name not in _FREE and before.get(name) != now.get(name)]
    if differing:
        raise ConfigError(
            f"{differing[0]} differs from the run in {folder} ({len(differing)} field(s) differ); resume with the same "
            f"config ({folder.config}), or give another --out"
        )


def _fields(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config by dotted name."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_network(folder: RunFolder, arch: str, digest: str) -> None:
    """Refuse to resume with another network."""
    facts = folder.read_facts()
    if facts.model.arch != arch:
        raise ConfigError(
            f"model.arch={arch!r} is not {facts.model.arch!r}, that of the run in {folder}; resume with it"
        )
    if facts.model.sha256 != digest:
        raise ConfigError(f"model.checkpoint: these are not the weights that the run in {folder} began with")
    threads = torch.get_num_threads()
    if facts.threads != threads:
        _logger.warning(
            "the run began on %s threads and resumes on %s: the last bits may differ", facts.threads, threads
        )


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
    _logger.warning("%s: no state was saved yet; starting over", folder)
    return None
