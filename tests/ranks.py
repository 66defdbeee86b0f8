"""Processes that share an evaluation, as a launcher starts them: by their environment."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import processes
from launched import environment, free_port


def start(script: Path, n: int, names: Mapping[str, object], only: int | None = None) -> list[BaseProcess]:
    """Run a script in ``n`` processes (or in that one of them alone), which begin with ``names`` as globals."""
    port = free_port()
    envs = [environment(rank, n, port) for rank in (range(n) if only is None else [only])]
    return [processes.start(runpy.run_path, str(script), {**names, "ENVIRONMENT": env}) for env in envs]
