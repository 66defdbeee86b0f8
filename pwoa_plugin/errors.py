"""The package's own errors. Each is one line that names the field, the value and the cure.

Whatever else is raised is a fault of ours or of another package: the command line keeps its traceback.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator


class PwoAError(Exception):
    """Base of the package's own errors."""


class InputError(PwoAError, ValueError):
    """Something that the user gave cannot be used."""


class FileError(InputError, OSError):
    """A file that the user named cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file that the user named is not there."""


class MissingPackageError(PwoAError, ModuleNotFoundError):
    """An optional package is not installed; the message says how to install it."""


def missing(what: str, packages: str, extra: str = "") -> MissingPackageError:
    """The error of a door that needs packages: what needs them, and how to install them (by an extra of ours)."""
    install = f'"pwoa-plugin[{extra}]"' if extra else packages
    name = packages.partition(",")[0].partition(" ")[0]
    return MissingPackageError(f"{what} needs {packages}; pip install {install}", name=name)


def require(what: str, packages: tuple[str, ...], extra: str = "") -> None:
    """Raise a MissingPackageError, which names ``what`` needs them, unless the packages are installed."""
    if absent := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise missing(what, ", ".join(absent), extra)


class TrainingError(PwoAError, RuntimeError):
    """Training cannot go on (the loss is NaN, say); the model is as it was before."""


class RunError(PwoAError, RuntimeError):
    """A run cannot go on where it is (the disk is full, the folder is in use)."""


class DiskFullError(RunError, FileError):
    """A file cannot be written, because the disk or the quota is full. A run cannot go on, and nothing is lost."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that is not there: by Python, numpy, or torch on the CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in said for sign in ("allocate memory", "not enough memory", "out of memory", "Storage size calculation")
    )


@contextlib.contextmanager
def memory_for(field: str) -> Iterator[None]:
    """InputError that names the field, with its value, for which the body asks for more memory than there is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{field}: does not fit into memory; lower it") from error
