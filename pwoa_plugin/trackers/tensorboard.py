"""Logs for TensorBoard."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .base import Tracker


class TensorBoard(Tracker):
    """Event files in ``folder``, for ``tensorboard --logdir folder``; ``pip install "pwoa-plugin[tensorboard]"``."""

    package: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "tensorboard"
    _writer: Any = None

    def open(self, config: Mapping[str, Any], step: int) -> int:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        # Steps of an earlier process that come again, and those of another run, are dropped.
        purge = {"purge_step": step + 1} if config else {}
        self._writer = tensorboard.SummaryWriter(str(self.folder), **purge)
        if config and not step:
            summary = importlib.import_module("torch.utils.tensorboard.summary")
            for entry in summary.hparams(dict(config), {}):
                self._writer.file_writer.add_summary(entry)
        return step

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run does not log again what comes before its last saved state

    def image(self, name: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as found:
            self._writer.add_image(name, np.asarray(found.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
