"""The folder of a run: where each file is, and the facts in ``run.json``."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._checked import checked
from .._files import is_scratch, named_path, near_name, read_json, unwritable, write_text
from .._text import one_line
from ..config import ConfigError
from ..errors import DiskFullError, FileError, InputError, RunError
from .report import RunFacts

_TRIED_BYTES = 65_536


class Folder:
    """A folder that one process at a time works in; it is made when something is written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = named_path("folder", path)
        self.lock = self.path / ".lock"
        self._made: list[Path] = []  # folders that were not there before, the innermost first

    def __str__(self) -> str:
        return str(self.path)

    @staticmethod
    def read_json(path: Path) -> dict[str, Any]:
        """The JSON object in a file of the folder."""
        try:
            content = read_json(path)
        except FileError as error:
            said = str(error).removeprefix(f"{path}: ")
            raise FileError(f"{path}: is damaged ({said}); restore it, or give another folder") from None
        if not isinstance(content, dict):
            raise FileError(f"{path}: is damaged (holds a {type(content).__name__}, no object); restore it")
        return content

    def check_out(self, but: Path) -> None:
        """Refuse to begin in a folder that holds something else than ``but``, or that cannot be written to.

        ``but`` is the file that a killed process may have left alone. Nothing is left behind.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"out={self}: is a file; give a folder")
            entries = self.path.iterdir() if self.path.exists() else ()
            others = [entry.name for entry in entries if entry not in (self.lock, but) and not is_scratch(entry)]
        except OSError as error:
            raise self._refused(error) from None
        if others:
            raise ConfigError(f"out={self}: holds other files ({others[0]}); give an empty or a new folder")
        self.check_writable()

    def check_writable(self) -> None:
        """Write a little into the folder, and leave nothing behind.

        Raises:
            FileError: the folder cannot be written to; a `DiskFullError` if the disk is full.
        """
        try:
            self._make()
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(bytes(_TRIED_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refused(error) from None
        finally:
            self._unmake()

    def _refused(self, error: OSError) -> FileError:
        said = unwritable(self.path, error)
        return (
            said
            if isinstance(said, DiskFullError)
            else FileError(f"{self}: cannot be written to ({error.strerror or one_line(error)}); give another --out")
        )

    def _make(self) -> None:
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._made += missing

    def _unmake(self) -> None:
        """Remove the folders that `_make` made, if they are empty."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._made = [folder for folder in self._made if folder.exists()]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, and remove the scratch files that a killed one left.

        The system releases the lock when this process ends, however it ends.
        """
        try:
            self._make()
            opened = self.lock.open("w")
        except OSError as error:
            self._unmake()
            raise self._refused(error) from None
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
            self._clear_scratch()
            yield

    def _clear_scratch(self) -> None:
        for file in self.path.rglob(".*.tmp"):
            if is_scratch(file):
                with contextlib.suppress(OSError):
                    file.unlink()

    def remove(self, *files: Path) -> None:
        """Remove these files and the lock, and the folders that were made for them if they are empty then."""
        for file in (*files, self.lock):
            file.unlink(missing_ok=True)
        self._unmake()


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
        self.sparse = self.path / "pruned.sparse.safetensors"
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
        try:
            return self.facts.exists()
        except OSError as error:
            raise FileError(f"{self.facts}: cannot be read ({error.strerror}); give another folder") from None

    def read_facts(self) -> RunFacts:
        """The content of ``run.json``."""
        if not self.exists():
            cure = "" if os.path.exists(self.path) else near_name(self.path)
            raise InputError(f"{self}: holds no run (no run.json){cure or '; give the --out of a `pwoa prune`'}")
        content = self.read_json(self.facts)
        try:
            return checked(RunFacts, content, "run")
        except InputError as error:
            raise InputError(f"{self.facts}: is damaged ({error}); give a folder that `pwoa prune` wrote") from None

    def write_facts(self, **changed: Any) -> None:
        """Change entries of ``run.json``."""
        facts = self.read_json(self.facts) if self.exists() else {}
        write_text(self.facts, json.dumps(facts | changed, indent=1, allow_nan=False) + "\n")

    def has_report(self) -> bool:
        """Whether the report is there, in all its forms."""
        return all(file.exists() for file in (self.report, self.markdown, self.page))

    @contextlib.contextmanager
    def writing(self, path: Path | None = None) -> Iterator[None]:
        """Turn an OSError of the body into a RunError that says which state is still good and how to resume."""
        try:
            yield
        except OSError as error:
            states = self.states()
            good = f"the last good state is {states[0].name}" if states else "no state is saved yet"
            known = error if isinstance(error, FileError) else unwritable(path or self.path, error)
            said = str(known).partition("; ")[0]
            cure = "free some space" if isinstance(known, DiskFullError) else "mend that"
            raise RunError(f"{said}; {good}: {cure} and go on with --resume") from error
