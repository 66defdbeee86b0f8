"""Processes that share an evaluation, as a launcher starts them: by their environment."""

from __future__ import annotations

import runpy
import socket
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def start(script: Path, n: int, names: Mapping[str, object], only: int | None = None) -> list[BaseProcess]:
    """Run a script in ``n`` processes (or in that one of them alone), which begin with ``names`` as globals."""
    environment = {"WORLD_SIZE": str(n), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    ranks = range(n) if only is None else [only]
    envs = [{**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks]
    return [processes.start(runpy.run_path, str(script), {**names, "ENVIRONMENT": env}) for env in envs]
