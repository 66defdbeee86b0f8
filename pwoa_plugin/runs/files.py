"""The report of a run's folder: put together from the folder's files, and written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path

from .._checked import checked
from .._files import write_text
from ..errors import InputError
from ..pages import write_plots
from .callbacks import read_metrics
from .evaluations import Evaluation
from .folder import RunFolder
from .plots import drawings
from .rendering import to_html, to_markdown
from .report import RunReport, Status


def read_report(path: str | os.PathLike[str], status: Status | None = None) -> RunReport:
    """The report of a run as its files are now, also of a run that has not ended.

    Args:
        path: of the run.
        status: in place of that in ``run.json``.
    """
    folder = RunFolder(path)
    facts = folder.read_facts()
    for name in ("allocation", "granularity"):
        if not isinstance(facts.config.get(name), str):
            raise InputError(f"{folder.facts}: is damaged (run.config.{name}: is no text); give a folder of a run")
    if facts.radius is None:
        raise InputError(f"{folder}: the run has not made its first step; resume it with `pwoa prune ... --resume`")
    epochs = [
        {key: value for key, value in line.items() if key not in ("event", "step")}
        for line in read_metrics(folder.metrics)
        if line["event"] == "epoch"
    ]
    weights = sum(layer.weights for layer in facts.layers)
    content = {
        **facts.model_dump(mode="json", include=RunReport.model_fields.keys() - {"robustness"}),
        "name": folder.path.resolve().name,
        "folder": str(folder),
        "status": status or facts.status,
        "allocation": facts.config["allocation"],
        "granularity": facts.config["granularity"],
        "sparsity": 1 - sum(layer.kept for layer in facts.layers) / max(1, weights),
        "epochs": epochs,
        "seconds": epochs[-1].get("seconds") if epochs else 0.0,
        "file_bytes": _bytes_of(folder.pruned),
        "sparse_file_bytes": _bytes_of(folder.sparse),
        "other_evaluations": [evaluation.to_dict() for evaluation in _evaluations(folder, facts.robustness.values())],
    }
    try:
        return checked(RunReport, content, "report").arranged()
    except InputError as error:
        damaged = folder.metrics if re.match(r"report\.(epochs|seconds)\b", str(error)) else folder.facts
        raise InputError(f"{damaged}: is damaged ({error}); give a folder that `pwoa prune` wrote") from None


def _bytes_of(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _evaluations(folder: RunFolder, latest: Collection[str]) -> list[Evaluation]:
    """All evaluations in the folder, the latest ones last."""
    files = sorted(folder.robustness.glob("*.json"), key=lambda file: (file.name in latest, file.name))
    found = []
    for file in files:
        network = file.name.partition("-")[0]
        if network in ("pruned", "dense"):
            content = folder.read_json(file)
            try:
                evaluation = checked(Evaluation, {"network": network, "report": content}, "evaluation")
                _ = evaluation.judged
            except InputError as error:
                raise InputError(f"{file}: is damaged ({error}); remove it, and judge the run again") from None
            found.append(evaluation)
    return found


def write_report(folder: RunFolder, status: Status | None = None) -> RunReport:
    """Write ``report.json``, ``.md``, ``.html`` and the plots anew; see `read_report`."""
    report = read_report(folder.path, status)
    write_plots(drawings(report), folder.plots)
    write_text(folder.markdown, to_markdown(report))
    write_text(folder.page, to_html(report))
    write_text(folder.report, json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    return report
