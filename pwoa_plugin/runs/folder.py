"""The folder of a run: where each file is, and the facts in ``run.json``."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._checked import checked
from .._files import read_json, write_text
from ..config import ConfigError
from ..errors import FileError, InputError, RunError
from .report import RunFacts


class Folder:
    """A folder that one process at a time works in; it is made when something is written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.lock = self.path / ".lock"

    def __str__(self) -> str:
        return str(self.path)

    @staticmethod
    def read_json(path: Path) -> dict[str, Any]:
        """The JSON object in a file of the folder."""
        try:
            content = read_json(path)
        except FileError as error:
            raise FileError(f"{path}: is damaged ({str(error).removeprefix(f'{path}: ')})") from None
        if not isinstance(content, dict):
            raise FileError(f"{path}: is damaged (holds a {type(content).__name__}, no object)")
        return content

    def check_empty(self, but: Path) -> None:
        """Refuse to write where something else is than ``but``, the file that a killed process may have left alone."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out={self}: is a file; give a folder")
        entries = self.path.iterdir() if self.path.exists() else ()
        others = [entry.name for entry in entries if entry not in (self.lock, but) and entry.suffix != ".tmp"]
        if others:
            raise ConfigError(f"out={self}: holds other files ({others[0]}); give an empty or a new folder")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. The system releases the lock when this process ends, however it ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            opened = self.lock.open("w")
        except OSError as error:
            raise FileError(f"{self}: cannot be written to ({error.strerror}); give another --out") from None
        with opened as file:
            try:
                import fcntl
            except ModuleNotFoundError:  # Windows: no lock there
                yield
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{self}: another process is running here; wait for it or use another --out") from None
            yield


class RunFolder(Folder):
    """A run on disk; docs/runs.md says what each file is."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.config = self.path / "config.yaml"
        self.facts = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.states_folder = self.path / "states"
        self.best = self.path / "best.safetensors"
        self.pruned = self.path / "pruned.safetensors"
        self.masks = self.path / "masks.safetensors"
        self.robustness = self.path / "robustness"
        self.report = self.path / "report.json"
        self.markdown = self.path / "report.md"
        self.page = self.path / "report.html"
        self.plots = self.path / "plots"

    def states(self) -> list[Path]:
        """The training states, newest first."""
        return sorted(self.states_folder.glob("step-*.safetensors"), reverse=True)

    def state_at(self, step: int) -> Path:
        return self.states_folder / f"step-{step:09d}.safetensors"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.facts.exists()

    def read_facts(self) -> RunFacts:
        """The content of ``run.json``."""
        if not self.exists():
            raise InputError(f"{self}: holds no run (no run.json); give the --out of a `pwoa prune`")
        content = self.read_json(self.facts)
        try:
            return checked(RunFacts, content, "run")
        except InputError as error:
            raise InputError(f"{self.facts}: is damaged ({error}); give a folder that `pwoa prune` wrote") from None

    def write_facts(self, **changed: Any) -> None:
        """Change entries of ``run.json``."""
        facts = self.read_json(self.facts) if self.exists() else {}
        write_text(self.facts, json.dumps(facts | changed, indent=1, allow_nan=False) + "\n")

    @contextlib.contextmanager
    def writing(self, path: Path | None = None) -> Iterator[None]:
        """Turn an OSError of the body into a RunError that says which state is still good and how to resume."""
        try:
            yield
        except OSError as error:
            states = self.states()
            good = f"the last good state is {states[0].name}" if states else "no state is saved yet"
            full = error.errno == errno.ENOSPC or "No space left" in str(error)
            reason = "the disk is full" if full else str(error)
            raise RunError(
                f"{path or self}: cannot be written ({reason}); {good}: free some space and go on with --resume"
            ) from error

    def clear_scratch(self) -> None:
        """Remove the half-written files that a killed process left."""
        for scratch in self.path.rglob(".*.tmp"):
            scratch.unlink(missing_ok=True)
