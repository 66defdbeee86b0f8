"""What all trackers share: what is logged, and when."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from .._files import named_path, write_text
from .._text import named
from ..errors import InputError, missing
from ..method.callback import Callback, Status

_logger = logging.getLogger(__name__)


class Tracker(Callback, ABC):
    """Logs a run: the config, the loss and its terms, validation, sparsity by layer, and the report's plots.

    Give it to ``callbacks=[...]`` of `PwoAPruner`, `PwoAGroupPruner` or `pwoa_plugin.runs.prune.prune`. A run that is
    resumed continues its log; another run in the same folder begins a log of its own. If the tracker fails during a
    run, the run goes on without it.

    Args:
        folder: of the tracker's files.

    Raises:
        MissingPackageError: the tracker's package is not installed.

    Attributes:
        package: what it needs.
        extra: of this package that installs it.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = named_path("folder", folder)
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            raise missing(type(self).__name__, self.package, self.extra) from error
        self._run: Any = None
        self._logged = 0
        self._fails = self._is_open = self._is_new = False

    @abstractmethod
    def open(self, config: Mapping[str, Any], step: int) -> int:
        """Begin a log, or, where ``step`` is not 0, continue the folder's.

        Args:
            config: the run's options by dotted name.
            step: steps that the run has done; what was logged after it is logged again.

        Returns:
            The last step that is in the log and stays there; 0 for a new log.
        """

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log figures of a step, by name."""

    @abstractmethod
    def image(self, name: str, path: Path, step: int) -> None:
        """Log a PNG file."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet."""

    # -- the run tells ---------------------------------------------------------------------------

    def on_run(self, run: Any) -> None:
        self._run = run

    def on_start(self, status: Status) -> None:
        self._is_new = not self.folder.exists()
        try:
            self._logged = self.open(_flat(self._run.config.model_dump(mode="json")), status.step)
        except Exception as error:  # of the tracker's package
            self._remove_new()
            raise InputError(
                f"{type(self).__name__} cannot log to {self.folder} ({named(error)}); mend that, or run without it"
            ) from error
        self._is_open = True

    def on_report(self, status: Status) -> None:
        if status.step <= self._logged:
            return
        self._logged = status.step
        figures = {f"loss/{name}": value for name, value in status.terms.items()}
        figures |= {"loss": status.loss, "lr": status.lr, "epoch": status.epoch + 1}
        for name in ("rho", "residual", "images_per_second"):
            if (value := getattr(status, name)) is not None:
                figures[name] = value
        with self._lest_it_fails():
            self.scalars(figures, status.step)

    def on_epoch_end(self, status: Status) -> None:
        with self._lest_it_fails():
            if status.validation and status.step >= self._logged:
                figures = {f"validation/{name}": value for name, value in status.validation.items()}
                self.scalars(figures, status.step)

    def on_end(self, status: Status | None) -> None:
        if status is None or not self._is_open:
            return
        self._is_open = False
        with self._lest_it_fails():
            if status.step >= status.steps:
                self.scalars(dict(self._sparsity()), status.step)
            self.close()
        if not status.step:
            self._remove_new()

    def _remove_new(self) -> None:
        """Remove a folder that has no step in it, so that the run can begin there after all."""
        if self._is_new:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()

    def on_written(self, plots: Path) -> None:
        """Log the plots of a run's report."""
        with self._lest_it_fails():
            self.open({}, self._logged)
            for path in sorted(plots.glob("*.png")):
                self.image(f"plots/{path.stem}", path, self._logged)
            self.close()

    def _sparsity(self) -> Iterator[tuple[str, float]]:
        """The share of each layer's weights that is 0 or gone, and of all."""
        kept = dense = 0
        for name, layer in self._run.allocation.items():
            left = int(self._run.target.layers[name].get_parameter("weight").count_nonzero())
            yield f"sparsity/{name}", 1 - left / layer.weights
            kept, dense = kept + left, dense + layer.weights
        yield "sparsity", 1 - kept / max(1, dense)

    @contextlib.contextmanager
    def _lest_it_fails(self) -> Iterator[None]:
        """What a tracker raises is logged once; the run goes on."""
        try:
            yield
        except Exception as error:
            said = "%s fails (%s); the run goes on"
            _logger.log(logging.DEBUG if self._fails else logging.WARNING, said, type(self).__name__, named(error))
            self._fails = True

    @property
    def kept_id(self) -> str | None:
        """The id, in the tracker's own store, of the log that this folder has begun."""
        path = self.folder / f"{self.extra}.id"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def keep_id(self, name: str) -> None:
        write_text(self.folder / f"{self.extra}.id", name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of sections by dotted name, without None; lists as text."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
