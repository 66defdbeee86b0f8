"""Processes that a test may kill, forked from one that has imported what they need: a second's work less for each.

Signals and exit codes are those of any process. Targets must be importable: functions of the package or of a library,
as `runpy.run_path`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg",
        "pwoa_plugin.pages.page",
        "pwoa_plugin.robustness",
        "pwoa_plugin.runs.compare",
        "pwoa_plugin.runs.prune",
        "torchvision.datasets",
        "torch._dynamo",
    ]
)


def start(target: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseProcess:
    """Call ``target`` in a process of its own, in the current directory. An int that it returns is the exit code."""
    process = _CONTEXT.Process(target=_call, args=(os.getcwd(), target, args, kwargs))
    process.start()
    return process


def _call(folder: str, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    os.chdir(folder)
    result = target(*args, **kwargs)
    sys.exit(result if isinstance(result, int) else 0)
