"""The report of a run's folder: put together from its files, and written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .._files import write_text
from .folder import RunError, RunFolder
from .report import RunReport, to_html, to_markdown, write_plots

__all__ = ["read_report", "write_report"]


def read_report(path: str | os.PathLike[str]) -> RunReport:
    """The report of a folder as its files say now.

    Raises:
        RunError: there is no run, or nothing of it is finished.
        ValueError: a file of it is damaged.
    """
    folder = RunFolder(path)
    facts = folder.read_facts()
    if not folder.masks.exists() or "layers" not in facts:
        status = facts.get("status", "not begun")
        raise RunError(f"{folder}: the run is {status}, and nothing to show yet; go on with `pwoa prune ... --resume`")
    content: dict[str, Any] = {key: value for key, value in facts.items() if key not in ("history", "threads")}
    config = facts.get("config") or {}
    content |= {
        "name": folder.path.resolve().name,
        "allocation": config.get("allocation"),
        "granularity": config.get("granularity"),
        "sparsity": config.get("sparsity"),
        "epochs": facts.get("history"),
        "robustness": _robustness(folder, facts.get("robustness") or {}),
    }
    return RunReport.from_dict(content)


def _robustness(folder: RunFolder, files: Any) -> dict[str, Any]:
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise RunError(f"{folder.facts}: is damaged (robustness)")
    return {which: folder.read_json(folder.robustness / Path(name).name) for which, name in files.items()}


def write_report(folder: RunFolder) -> RunReport:
    """Write ``report.json``, ``.md``, ``.html`` and the plots anew."""
    report = read_report(folder.path)
    write_text(folder.report, json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    write_text(folder.markdown, to_markdown(report))
    write_text(folder.page, to_html(report))
    write_plots(report, folder.plots)
    return report
