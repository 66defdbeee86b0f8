"""The report of a run's folder: put together from the folder's files, and written."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .._checked import checked
from .._files import write_text
from ..errors import InputError
from ..pages import write_plots
from .callbacks import read_metrics
from .folder import RunFolder
from .plots import drawings
from .rendering import to_html, to_markdown
from .report import RunReport


def read_report(path: str | os.PathLike[str]) -> RunReport:
    """The report of a run as its files are now, also of a run that has not ended."""
    folder = RunFolder(path)
    facts = folder.read_facts()
    if facts.radius is None:
        raise InputError(f"{folder}: the run has not made its first step; resume it with `pwoa prune ... --resume`")
    epochs = [
        {key: value for key, value in line.items() if key not in ("event", "step")}
        for line in read_metrics(folder.metrics)
        if line["event"] == "epoch"
    ]
    weights = sum(layer.weights for layer in facts.layers)
    content = {
        **{key: value for key, value in facts.to_dict().items() if key in RunReport.model_fields},
        "name": folder.path.resolve().name,
        "allocation": facts.config.get("allocation"),
        "granularity": facts.config.get("granularity"),
        "sparsity": 1 - sum(layer.kept for layer in facts.layers) / max(1, weights),
        "epochs": epochs,
        "seconds": epochs[-1].get("seconds") if epochs else 0.0,
        "robustness": {
            network: folder.read_json(folder.robustness / Path(file).name) for network, file in facts.robustness.items()
        },
    }
    try:
        return checked(RunReport, content, "report")
    except InputError as error:
        raise InputError(f"{folder}: its {folder.facts.name} or {folder.metrics.name} is damaged ({error})") from None


def write_report(folder: RunFolder) -> RunReport:
    """Write ``report.json``, ``.md``, ``.html`` and the plots anew."""
    report = read_report(folder.path)
    write_text(folder.report, json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    write_text(folder.markdown, to_markdown(report))
    write_text(folder.page, to_html(report))
    write_plots(drawings(report), folder.plots)
    return report
