"""Functions called in several processes at once, started by torch's own launcher, as ``torchrun`` does.

A launch costs seconds, so that tests share them. Functions must be importable, and so stand in files beside this one.
"""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Callable
from typing import Any

import processes  # noqa: F401 (has the fork server import what the functions need)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing.spawn import ProcessContext, start_processes


def launch(function: Callable[..., Any], *args: Any, ranks: int = 2) -> list[Any]:
    """What the function returns in each process, by rank; torch's ChildFailedError if one fails."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="forkserver",
        monitor_interval=0.05,
        max_restarts=0,
    )
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        found = elastic_launch(config, function)(*args)
    finally:  # the launcher leaves its own
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return [found[rank] for rank in range(ranks)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a launcher tells a process of its place."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in names.items()}


def start(function: Callable[..., Any], *args: Any, ranks: int = 2) -> ProcessContext:
    """Start the function in processes that nothing watches, as on machines of their own."""
    given = ranks, free_port(), function, args
    context = start_processes(_call, given, nprocs=ranks, join=False, start_method="forkserver")
    assert isinstance(context, ProcessContext)
    return context


def _call(rank: int, ranks: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment(rank, ranks, port))
    function(*args)
