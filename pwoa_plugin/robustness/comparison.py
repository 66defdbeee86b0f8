"""Several models judged on the same images: one table, one page, and which differences are beyond chance."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor

from .._notebook import fragment
from .._text import visible
from .._yaml import dump_yaml
from ..pages import Cell, Drawing, Table, render, svg_plots
from ..pages.text import interval_text, markdown_plain, percent
from .curve import Curve
from .plots import drawings, image_uri
from .report import Report, Written
from .statistics import Paired, holm
from .weights import Weights

_MOST_BROKEN = 6  # images shown for each model
# Adversarial Pruning Benchmark (arXiv 2409.01249): its sparsities, in percent.
_BENCHMARK = {"weights": (90, 95, 99), "filters": (50, 75, 90), "channels": (50, 75, 90)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Broken:
    """An image ``(C, H, W)`` that a model loses to an attack and the first model does not.

    Attributes:
        index: of the image among those judged.
        answer: the model's answer to the adversarial image.
    """

    model: str
    index: int
    label: int
    answer: int
    image: Tensor = field(repr=False)
    adversarial: Tensor = field(repr=False)

    @classmethod
    def of(cls, name: str, report: Report, first: Report, images: Tensor) -> list[Self]:
        """A few images, of as many classes as possible, that a model loses and the first does not."""
        assert report.adversarial is not None
        assert report.answers is not None
        assert report.labels is not None
        lost = first.worst_case.robust & ~report.worst_case.robust & report.clean_correct
        seen: Counter[int] = Counter()
        order = []
        for index in lost.nonzero().squeeze(1).tolist():
            label = int(report.labels[index])
            seen[label] += 1
            order.append((seen[label], index))
        return [
            cls(
                model=name,
                index=index,
                label=int(report.labels[index]),
                answer=int(report.answers[index]),
                image=images[index],
                adversarial=report.adversarial[index],
            )
            for _, index in sorted(order)[:_MOST_BROKEN]
        ]


class Comparison(Written):
    """Models judged on the same images; the others are compared with the first.

    Attributes:
        reports: by name of the model.
        weights: by name of the model.
        curves: by name of the model; empty where none were asked for.
        broken: a few images that a model loses and the first does not; empty if read from a file.
    """

    formats: ClassVar[tuple[int, ...]] = (1, 2)

    reports: dict[str, Report]
    weights: dict[str, Weights]
    curves: dict[str, Curve] = Field(default_factory=dict)
    broken: tuple[Broken, ...] = Field(default=(), exclude=True, repr=False)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not self.reports or self.reports.keys() != self.weights.keys():
            raise ValueError("has no reports, or weights of other models")
        return self

    @property
    def first(self) -> str:
        """Name of the model that the others are compared with."""
        return next(iter(self.reports))

    @property
    def others(self) -> list[str]:
        return list(self.reports)[1:]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the attacks, and ``worst case``."""
        return tuple(self.reports[self.first].columns)

    def pair(self, name: str, column: str = "worst case") -> Paired:
        """A model against the first, image by image; ``column`` is an attack's name, ``worst case`` or ``clean``."""
        return self.reports[self.first].paired_with(self.reports[name], column)

    def adjusted_p(self, column: str = "worst case") -> dict[str, float]:
        """P values of `pair` for all models but the first, by name, adjusted for their number; see `holm`."""
        return dict(zip(self.others, holm([self.pair(name, column).p_value for name in self.others]), strict=True))

    def verdict(self, name: str) -> str:
        """Whether a model is less robust than the first, in a sentence.

        The test is of this model alone; with several models, the p value adjusted for all of them stands beside it.
        """
        adjusted = self.adjusted_p()[name] if len(self.others) > 1 else None
        return verdict_text(name, self.first, self.pair(name), adjusted)

    def verdicts(self) -> list[str]:
        return [self.verdict(name) for name in self.others]

    def remarks(self) -> list[str]:
        """What a reader should know before relying on the numbers."""
        alarms = [*((name, report.alarms or ()) for name, report in self.reports.items())]
        alarms += [(name, curve.alarms) for name, curve in self.curves.items()]
        said = [f"{name}: {alarm}" for name, raised in alarms for alarm in raised]
        said += self.reports[self.first].caveats()
        notes = [note for report in self.reports.values() for note in report.notes]
        return said + [f"{note.rstrip('.')}." for note in dict.fromkeys(notes)]

    def setting(self) -> str:
        return f"{self.reports[self.first].config}."

    def table(self) -> Table:
        """A row for each model: its accuracies, with their intervals in small print."""
        header = ("model", "sparsity", "clean", *self.columns, "against the first")
        rows: list[list[Cell]] = []
        for name, report in self.reports.items():
            weights = self.weights[name]
            cells: list[Cell] = [name, (percent(weights.sparsity), f"{weights.nonzero:,} weights left")]
            cells += [(percent(accuracy), interval_text(*interval)) for accuracy, interval in report.figures.values()]
            against: Cell = ""
            if name != self.first:
                pair = self.pair(name)
                chance = "beyond chance" if pair.beyond_chance else "within chance"
                against = f"{100 * pair.difference:+.1f} points", f"{_points(*pair.interval)}, {chance}"
            rows.append([*cells, against])
        return Table("Robustness by model and attack", header, rows)

    def cost_table(self) -> Table:
        """For each model and attack: images through the model, and seconds."""
        rows = [
            (name, "all" if attack == "worst case" else attack, f"{column.forwards:,}", f"{column.seconds:.1f}")
            for name, report in self.reports.items()
            for attack, column in report.columns.items()
        ]
        header = ("model", "attack", "images through the model", "seconds")
        return Table("Cost by attack", header, rows, left=(0, 1))

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON-ready values, without images."""
        columns = ("clean", *self.columns)
        holm_p = {column: self.adjusted_p(column) for column in columns}
        return {
            "format": self.formats[-1],
            "first": self.first,
            **self.model_dump(mode="json"),
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
            "benchmark": self.benchmark_rows(),
            "paired": {
                name: {
                    column: _pair_to_dict(self.pair(name, column)) | {"holm_p_value": holm_p[column][name]}
                    for column in columns
                }
                for name in self.others
            },
        }

    def benchmark_rows(self) -> list[dict[str, Any]]:
        """The models in the Adversarial Pruning Benchmark's terms (arXiv 2409.01249), figures in percent.

        ``sr`` is its sparsity (90, 95, 99 of single weights, 50, 75, 90 of filters or channels) where the model's is
        within half a point of one, else None; ``AA`` is None where AutoAttack was not run.
        """
        rows = []
        for name, report in self.reports.items():
            weights = self.weights[name]
            known = _BENCHMARK.get(weights.struct, ())
            attacked = report.autoattack
            clean, robust = round(100 * report.clean, 2), attacked and round(100 * attacked.accuracy, 2)
            rows.append(
                {
                    "model": name,
                    "struct": weights.struct,
                    "sr": next((sr for sr in known if abs(100 * weights.sparsity - sr) <= 0.5), None),
                    "sparsity": round(100 * weights.sparsity, 2),
                    "clean": clean,
                    "AA": robust,
                    "clean/AA": None if robust is None else f"{clean:.2f}/{robust:.2f}",
                }
            )
        return rows

    def to_csv(self) -> str:
        """`benchmark_rows` and every column, as CSV; figures in percent. A name that begins as a formula does
        (``=``, ``+``, ``-``, ``@``) has an apostrophe before it."""
        stream = io.StringIO()
        extra = ("norm", "eps", "images", *(f"{name} %" for name in self.columns), "low %", "high %")
        rows = self.benchmark_rows()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(_csv_cell, [*rows[0], *extra]))
        for row, report in zip(rows, self.reports.values(), strict=True):
            worst, config = report.worst_case, report.config
            figures = [*(report.columns[name].accuracy for name in self.columns), worst.low, worst.high]
            setting = [config.norm, f"{config.eps:.6g}", config.n_images]
            writer.writerow([*map(_csv_cell, row.values()), *setting, *(f"{100 * figure:.2f}" for figure in figures)])
        return stream.getvalue()

    def to_markdown(self) -> str:
        said = [f"- {markdown_plain(line)}" for line in (*self.verdicts(), *self.remarks())]
        lines = ["# Robustness compared", "", self.setting(), "", *self.table().to_markdown(), "", *said]
        return "\n".join(lines).rstrip() + "\n"

    def drawings(self) -> dict[str, Drawing]:
        return drawings(self.reports, self.curves)

    def to_html(self) -> str:
        """One HTML page that needs no other file, no script and no network."""
        first = self.reports[self.first]
        names = list(self.reports)
        return render(
            __package__,
            "comparison.html.j2",
            comparison=self,
            title=" and ".join(names) if len(names) < 3 else f"{len(names)} models",
            n_alarms=sum(len(report.alarms or ()) for report in self.reports.values()),
            looked_for_alarms=all(report.alarms is not None for report in self.reports.values()),
            plots=svg_plots(self.drawings()),
            image_uri=lambda image: image_uri(image, *first.config.pixel_range),
            parameters=dump_yaml(first.config.attacks),
            versions=first.versions,
        )

    def _repr_html_(self) -> str:
        return fragment(self.setting(), self.table(), *self.verdicts(), self.remarks())

    def __repr__(self) -> str:
        worst = ", ".join(f"{visible(name)} {it.worst_case.accuracy:.2%}" for name, it in self.reports.items())
        return f"Comparison({self.reports[self.first].config}; worst case {worst})"

    def __str__(self) -> str:
        return visible("\n".join([*(f"{name}: {report}" for name, report in self.reports.items()), *self.verdicts()]))


def verdict_text(name: str, first: str, pair: Paired, adjusted_p: float | None = None) -> str:
    """Whether model ``name`` is less robust than ``first`` in the worst case, in a sentence.

    Args:
        pair: the verdicts on the first and on the other.
        adjusted_p: the p value adjusted for the number of models that are compared; None where there is only one.
    """
    difference = f"{100 * pair.difference:+.1f} points in the worst case (95 % interval {_points(*pair.interval)})"
    said = f"not told apart from {first}"
    if pair.beyond_chance:
        said = f"{'less' if pair.difference < 0 else 'more'} robust than {first} beyond chance"
    counts = f"{pair.first_only} images lost, {pair.second_only} won, of {pair.n}"
    adjusted = "" if adjusted_p is None else f" (Holm {_p_text(adjusted_p)})"
    return f"{name} is {said}: {difference}; {counts}; McNemar p {_p_text(pair.p_value)}{adjusted}."


def _pair_to_dict(pair: Paired) -> dict[str, Any]:
    low, high = pair.interval
    return {**asdict(pair), "difference": pair.difference, "low": low, "high": high, "p_value": pair.p_value}


def _csv_cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.lstrip()[:1] in ("=", "+", "-", "@") else visible(value)


def _points(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _p_text(p: float) -> str:
    return f"= {p:.2g}" if p >= 1e-4 else "below 0.0001"
