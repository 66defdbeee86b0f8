"""Logs for Weights & Biases."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .base import Tracker


class WandB(Tracker):
    """A run of Weights & Biases; ``pip install "pwoa-plugin[wandb]"``.

    ``WANDB_MODE=offline`` keeps it in ``folder``, for ``wandb sync``.

    Args:
        folder: of W&B's files, and of ``wandb.id``, by which a resumed run continues its log.
        options: of ``wandb.init``, as ``project`` (default: pwoa), ``name``, ``entity``.
    """

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"
    _log: Any = None

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(folder)
        self._options = {"project": "pwoa"} | options

    def open(self, config: Mapping[str, Any], step: int) -> int:
        wandb = importlib.import_module("wandb")
        self.folder.mkdir(parents=True, exist_ok=True)
        name = (step and self.kept_id) or uuid.uuid4().hex[:12]
        settings = wandb.Settings(console="off", silent=True)  # the run's own lines stay as they are
        folder = os.path.abspath(self.folder)  # W&B's own process keeps the working directory of its start
        given = {"id": name, "resume": "allow", "dir": folder, "settings": settings}
        self._log = wandb.init(**given | self._options, config=dict(config) or None)
        self.keep_id(name)
        return max(step, int(self._log.starting_step) - 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._log.log(dict(values), step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        wandb = importlib.import_module("wandb")
        self._log.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._log.finish()
