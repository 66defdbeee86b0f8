"""A model card beside an exported file: Markdown, with Hugging Face's metadata in front."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._text import one_line, visible
from .._versions import installed_versions
from .._yaml import dump_yaml
from ..export import Agreement, Format
from ..pages import Table
from ..pages.text import markdown_block, markdown_code, markdown_plain, percent, shape_text
from .headline import examples_text, robust_text, smaller_text
from .report import RunReport
from .size import SizeReport

if TYPE_CHECKING:
    from ..export.judging import Shipped
    from ..robustness import Report


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says of a file. Texts may come from files; they are escaped.

    Attributes:
        file: the one that ships.
        format: of it; ``kind`` is its name.
        arch: name of the architecture.
        checkpoint: where the weights came from.
        data: name of the data set; None where it is not known.
        shape: of an image, ``(C, H, W)``.
        size: of the network, by layer.
        new: Python that makes a new network of the same architecture.
        removed: whether channels were removed from it.
        output: which part of what it returns has the logits; None where that needs no choice.
        report: of the run that made it; None of a checkpoint.
        quantize, values: as they were chosen; None for the network's own floats.
        agreement: of the file with the network on test images; None where it was not asked for.
        shipped: how the file was judged; None where it was not.
    """

    file: Path
    format: Format
    kind: str
    arch: str
    checkpoint: str
    data: str | None
    shape: tuple[int, ...]
    size: SizeReport
    new: str
    removed: bool = False
    output: int | str | None = None
    report: RunReport | None = None
    quantize: str | None = None
    values: str | None = None
    agreement: Agreement | None = None
    shipped: Shipped | None = None
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def to_markdown(self) -> str:
        """The whole card."""
        name = one_line(self.file.name)
        lines = ["---", visible(dump_yaml(self._metadata()).rstrip()), "---", "", f"# {markdown_plain(name)}", ""]
        if (report := self.report) is not None:
            robust = robust_text(report) if self._of_file is not None else ""
            said = filter(None, (smaller_text(report), robust, examples_text(report)))
            lines += [*map(markdown_plain, said), ""]
        lines += [*self._facts().to_markdown(), "", "## How to load it", ""]
        lines += [*markdown_block(self.format.loading(name, self.new, self.removed), "python"), ""]
        chosen = (
            "" if self.output is None else f" Of what is returned, {markdown_code(str(self.output))} has the logits."
        )
        lines += [f"Images are float32, (N, {', '.join(map(str, self.shape))}), in [0, 1].{chosen}", ""]
        lines += ["## Sparsity by layer", "", *self._layers().to_markdown(), ""]
        lines += ["## Robustness", "", *self._robustness(), "## Versions", ""]
        lines += [*Table("Versions", ("package", "version"), [*self.versions.items()], left=(0, 1)).to_markdown(), ""]
        return "\n".join(lines)

    def _metadata(self) -> dict[str, Any]:
        """The fields that Hugging Face's hub reads."""
        tags = ["pruning", "adversarial-robustness", "pwoa", *([self.quantize] if self.quantize else [])]
        found: dict[str, Any] = {
            "library_name": self.format.library,
            "pipeline_tag": "image-classification",
            "tags": tags,
        }
        if self.data is not None:
            found["datasets"] = [one_line(self.data)]
        judged = self._of_file
        if judged is not None and self.data is not None:
            attacked = f"Robust accuracy, {judged.config.norm} eps = {judged.config.eps_text}, {self._how}"
            metrics = [
                {"type": "accuracy", "name": "Clean accuracy", "value": round(judged.clean, 4)},
                {"type": "accuracy", "name": attacked, "value": round(judged.worst_case.accuracy, 4)},
            ]
            task, data = {"type": "image-classification"}, {"type": one_line(self.data), "name": one_line(self.data)}
            results = [{"task": task, "dataset": data, "metrics": metrics}]
            found["model-index"] = [{"name": one_line(self.file.name), "results": results}]
        return found

    @property
    def _of_file(self) -> Report | None:
        """The figures that are the file's own; None where there are none."""
        if self.shipped is not None:
            return self.shipped.own
        exact = self.format.exact and self.quantize is None and self.values in (None, "float32")
        return self.report.judged.get("pruned") if self.report is not None and exact else None

    @property
    def _how(self) -> str:
        return "worst case" if self.shipped is None or self.shipped.file is None else f"by {self.shipped.how}"

    def _facts(self) -> Table:
        report, size = self.report, self.size
        bytes_ = os.path.getsize(self.file)
        stored = ", ".join(filter(None, (self.kind, self.quantize, self.values)))
        rows = [
            (
                "file",
                f"{stored}; {bytes_:,} bytes (the network's tensors, dense in its own type: {size.dense_bytes:,})",
            ),
            ("network", self.arch),
            ("weights from", self.checkpoint),
            ("data", self.data or "not known"),
            ("zeros", f"{size.weights - size.nonzero:,} of {size.weights:,} convolution and linear weights"),
        ]
        if report is not None:
            rows += [
                ("method", f"PwoA, {report.granularity}, {report.allocation} allocation, seed {report.seed}"),
                ("adversarial examples in training", report.adversarial_examples),
                ("perturbation radius", f"{report.radius:.6g}"),
            ]
        else:
            rows.append(("method", "not known: the network is a checkpoint, not a run's"))
        if self.agreement is not None:
            rows.append(("beside the float network", f"{self.agreement} (test images)"))
        return Table("Facts", ("", ""), rows, left=(0, 1))

    def _layers(self) -> Table:
        rows = [
            (it.name, shape_text(it.shape), f"{it.weights:,}", percent(1 - it.nonzero / max(1, it.weights)))
            for it in self.size.layers
        ]
        size = self.size
        rows.append(("all", "", f"{size.weights:,}", percent(1 - size.nonzero / max(1, size.weights))))
        header = ("layer", "shape", "weights", "zeros")
        return Table("Sparsity by layer", header, rows, left=(0, 1), foot=True, code=True)

    def _robustness(self) -> list[str]:
        lines: list[str] = []
        if self.shipped is not None:
            lines += ["### Of this file", "", *(markdown_plain(it) for it in self.shipped.sentences), ""]
            lines += [*_figures(self.shipped.judged), ""]
        judged = self.report.judged.get("pruned") if self.report is not None else None
        if judged is not None:
            lines += ["### Of the run's network, in float, with its gradients", "", *_figures(judged), ""]
            assert self.report is not None
            lines += [*(f"- {markdown_plain(remark)}" for remark in self.report.warnings), ""]
        return lines or ["Not judged.", ""]


def _figures(report: Report) -> list[str]:
    """Protocol, table, alarms and notes."""
    alarms = [f"- ALARM: {markdown_plain(str(alarm))}" for alarm in report.alarms or ()]
    looked = "Nothing was looked for that blinds attacks." if report.alarms is None else "No alarm was raised."
    attacks = ", ".join(map(markdown_code, report.attacks))
    lines = [markdown_plain(f"{report.config}."), f"Attacks: {attacks}.", "", *report.table().to_markdown(), ""]
    return [*lines, *(alarms or [looked]), *(f"- {markdown_plain(note)}" for note in report.notes)]
