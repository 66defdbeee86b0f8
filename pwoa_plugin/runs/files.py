"""The report of a run's folder: put together from its files, and written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .._files import write_text
from ..errors import InputError
from ..pages import write_plots
from .callbacks import read_metrics
from .folder import RunFolder
from .plots import drawings
from .report import RunReport, to_html, to_markdown

__all__ = ["read_report", "write_report"]


def read_report(path: str | os.PathLike[str]) -> RunReport:
    """The report of a folder as its files say now, of a run that goes on too.

    Raises:
        ValueError: there is no run, it has not come to its first step, or a file of it is damaged.
    """
    folder = RunFolder(path)
    facts = folder.read_facts()
    config = facts.get("config")
    layers = facts.get("layers")
    if not isinstance(config, dict) or not isinstance(layers, list) or "radius" not in facts:
        raise InputError(f"{folder}: the run has not come to its first step; go on with `pwoa prune ... --resume`")
    epochs = [line for line in read_metrics(folder.metrics) if line.pop("event") == "epoch"]
    for line in epochs:
        del line["step"]
    content: dict[str, Any] = {key: value for key, value in facts.items() if key not in ("images", "threads")}
    content |= {
        "name": folder.path.resolve().name,
        "allocation": config.get("allocation"),
        "granularity": config.get("granularity"),
        "sparsity": _sparsity(layers),
        "epochs": epochs,
        "seconds": epochs[-1].get("seconds") if epochs else 0.0,
        "robustness": _robustness(folder, facts.get("robustness") or {}),
    }
    try:
        return RunReport.from_dict(content)
    except ValueError as error:
        raise InputError(f"{folder}: its {folder.facts.name} or {folder.metrics.name} is damaged ({error})") from None


def _sparsity(layers: list[Any]) -> float:
    try:
        return 1 - float(sum(layer["kept"] for layer in layers) / sum(layer["weights"] for layer in layers))
    except (TypeError, KeyError, ZeroDivisionError) as error:
        raise InputError(f"layers: are damaged ({error!r})") from None


def _robustness(folder: RunFolder, files: Any) -> dict[str, Any]:
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{folder.facts}: is damaged (robustness)")
    return {which: folder.read_json(folder.robustness / Path(name).name) for which, name in files.items()}


def write_report(folder: RunFolder) -> RunReport:
    """Write ``report.json``, ``.md``, ``.html`` and the plots anew."""
    report = read_report(folder.path)
    write_text(folder.report, json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    write_text(folder.markdown, to_markdown(report))
    write_text(folder.page, to_html(report))
    write_plots(drawings(report), folder.plots)
    return report
