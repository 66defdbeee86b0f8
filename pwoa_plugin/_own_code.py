"""Code of the user's own, named as ``package.module:object``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._text import did_you_mean


@contextmanager
def importing_here() -> Iterator[None]:
    """While the context lasts, imports also look in the current directory."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def near_own(spec: str, error: BaseException) -> str:
    """The end of a message about ``package.module:object`` that is not there: a near object of the module, or a near
    module of the current directory.
    """
    module, _, name = spec.partition(":")
    there: list[str] = []
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        name, there = module, [path.stem for path in Path().glob("*.py")]
    elif isinstance(error, AttributeError) and module in sys.modules:
        there = [each for each in vars(sys.modules[module]) if not each.startswith("_")]
    return did_you_mean(name, there)
