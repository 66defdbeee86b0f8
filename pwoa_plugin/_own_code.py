"""Code of the user's own, named as ``package.module:object``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_here() -> Iterator[None]:
    """While the context lasts, imports also look in the current directory."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
