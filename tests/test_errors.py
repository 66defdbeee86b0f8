"""The package's own errors."""

from __future__ import annotations

import pytest

from pwoa_plugin import errors


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("InputError", ValueError),
        ("FileError", OSError),
        ("MissingFileError", FileNotFoundError),
        ("MissingPackageError", ModuleNotFoundError),
        ("TrainingError", RuntimeError),
        ("RunError", RuntimeError),
    ],
)
def test_each_is_ours_and_a_builtin_that_callers_know(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.PwoAError)
    with pytest.raises(builtin, match="what is off"):
        raise kind("what is off")
