"""Several models judged on the same images: one table, one page, and which differences are beyond chance."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt
from torch import Tensor, nn

from .._checked import checked
from .._files import write_text
from ..pages.text import interval_text, markdown_plain, markdown_table, percent
from .curve import Curve, security_curve
from .evaluation import check_model, draw, evaluate
from .inputs import as_attacks, check_eps, check_norm, check_pixel_range, collect
from .protocol import Protocol, load_protocol
from .report import Report, eps_text
from .statistics import Paired

__all__ = ["Broken", "Comparison", "Weights", "compare", "count_weights", "verdict_text"]

_FORMAT = 1
_MOST_BROKEN = 6  # images shown for each model
_WIDE = 0.05  # 95 % intervals wider than this are said to be wide
# Adversarial Pruning Benchmark (arXiv 2409.01249): its sparsities, in percent.
_BENCHMARK = {"weights": (90, 95, 99), "filters": (50, 75, 90), "channels": (50, 75, 90)}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of convolution and linear layers.

    Attributes:
        total: their number.
        nonzero: those that are not 0.
        struct: where the zeros are, in the Adversarial Pruning Benchmark's words: ``weights``, ``filters`` (whole
            rows), ``channels`` (whole columns), or empty where nearly none is 0.
    """

    total: NonNegativeInt
    nonzero: NonNegativeInt
    struct: str = ""

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return 1 - self.nonzero / self.total if self.total else 0.0


def count_weights(model: nn.Module) -> Weights:
    """Count the weights of a model's convolution and linear layers: parameters of two dimensions or more."""
    weights = [parameter.detach() for parameter in model.parameters() if parameter.dim() > 1]
    total, nonzero = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    zeros = total - nonzero
    struct = ""
    if zeros > 0.01 * total:
        zero = [w.eq(0) for w in weights]
        in_filters = sum(int(z.flatten(1).all(1).sum()) * z[0].numel() for z in zero)
        in_channels = sum(int(z.transpose(0, 1).flatten(1).all(1).sum()) * z[:, 0].numel() for z in zero)
        struct = "weights"
        if max(in_filters, in_channels) > 0.95 * zeros:
            struct = "filters" if in_filters >= in_channels else "channels"
    return Weights(total=total, nonzero=nonzero, struct=struct)


@dataclass(frozen=True, eq=False, kw_only=True)
class Broken:
    """An image that a model loses to an attack and the first model does not.

    Attributes:
        model: that loses it.
        index: of the image among those judged.
        label: its class.
        answer: the model's answer to the adversarial image.
        image: ``(C, H, W)``.
        adversarial: the same shape, what was found against that model.
    """

    model: str
    index: int
    label: int
    answer: int
    image: Tensor
    adversarial: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Models judged on the same images; the first is what the others are compared with.

    Attributes:
        reports: by name of the model.
        weights: by name of the model.
        curves: by name of the model; empty where none were asked for.
        broken: a few images that a model loses and the first does not; empty in what was read from a file.
    """

    reports: Mapping[str, Report]
    weights: Mapping[str, Weights]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    broken: tuple[Broken, ...] = ()

    @property
    def first(self) -> str:
        """Name of the model that the others are compared with."""
        return next(iter(self.reports))

    def pair(self, name: str, column: str = "worst case") -> Paired:
        """A model against the first, image by image.

        Args:
            name: of the model.
            column: an attack's name, ``worst case`` or ``clean``.
        """
        return self.reports[self.first].paired_with(self.reports[name], column)

    def verdict(self, name: str) -> str:
        """Whether a model is less robust than the first, in a sentence."""
        return verdict_text(name, self.first, self.pair(name))

    def remarks(self) -> list[str]:
        """What a reader should know before relying on the numbers."""
        said: list[str] = []
        for name, report in self.reports.items():
            said += [f"{name}: {alarm}" for alarm in report.alarms or ()]
        for name, curve in self.curves.items():
            said += [f"{name}: {alarm}" for alarm in curve.alarms]
        report = self.reports[self.first]
        width = report.worst_case.high - report.worst_case.low
        if width > _WIDE:
            said.append(
                f"Only {report.config.n_images:,} images were judged: the 95 % interval of {self.first} is "
                f"{100 * width:.1f} points wide. Judge more to narrow it."
            )
        if report.autoattack is None:
            said.append("AutoAttack is not among the attacks: the worst case may be lower than shown.")
        notes = [note for report in self.reports.values() for note in report.notes]
        return said + [f"{note.rstrip('.')}." for note in dict.fromkeys(notes)]

    def setting(self) -> str:
        """How the models were judged, in a line."""
        config = self.reports[self.first].config
        protocol = "" if config.protocol == "custom" else f"protocol {config.protocol} {config.protocol_version}, "
        return (
            f"{config.n_images:,} images, {config.norm} eps = {eps_text(config.eps, config.pixel_range)}, {protocol}"
            f"seed {config.seed}, {config.device}."
        )

    def header(self) -> tuple[str, ...]:
        """Of `rows`."""
        return ("model", "sparsity", "clean", *self.reports[self.first].attacks, "worst case", "against the first")

    def rows(self) -> list[tuple[tuple[str, str], ...]]:
        """A row for each model: in each cell a figure, and beside it its interval or what else is smaller."""
        rows = []
        for name, report in self.reports.items():
            weights = self.weights[name]
            cells = [(name, ""), (percent(weights.sparsity), f"{weights.nonzero:,} weights left")]
            cells.append((percent(report.clean), interval_text(*report.clean_interval)))
            for column in (*report.attacks.values(), report.worst_case):
                cells.append((percent(column.accuracy), interval_text(*column.interval)))
            if name == self.first:
                cells.append(("", ""))
            else:
                pair = self.pair(name)
                cells.append((f"{100 * pair.difference:+.1f} points", f"{_points(*pair.interval)}, {_beyond(pair)}"))
            rows.append(tuple(cells))
        return rows

    def cost_rows(self) -> list[tuple[str, ...]]:
        """For each model and attack: images through the model, and seconds."""
        return [
            (name, attack, f"{column.forwards:,}", f"{column.seconds:.1f}")
            for name, report in self.reports.items()
            for attack, column in [*report.attacks.items(), ("all", report.worst_case)]
        ]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON-ready values, without images."""
        others = [name for name in self.reports if name != self.first]
        columns = ("clean", *self.reports[self.first].attacks, "worst case")
        return {
            "format": _FORMAT,
            "first": self.first,
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
            "weights": {name: asdict(weights) for name, weights in self.weights.items()},
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
            "benchmark": self.benchmark_rows(),
            "paired": {name: {column: _pair_to_dict(self.pair(name, column)) for column in columns} for name in others},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_dict` made ``content`` of, without images. What is derived is derived anew.

        Raises:
            ValueError: ``content`` is no such dict, or one of a later format.
        """
        if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
            raise ValueError(
                f"comparison has no format={_FORMAT}; give what Comparison.to_dict wrote, or compare again"
            )
        given = checked(_Content, {key: content.get(key) for key in ("reports", "weights", "curves")}, "comparison")
        reports = {name: Report.from_dict(report) for name, report in given.reports.items()}
        if not reports or reports.keys() != given.weights.keys():
            raise ValueError("comparison has reports and weights of other models; compare again")
        return cls(reports=reports, weights=given.weights, curves=given.curves)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison. A file of that name is replaced whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the file is no such comparison.
            FileNotFoundError: there is no file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {' '.join(str(error).split())}") from error

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
        """`benchmark_rows` and every column, as CSV; figures in percent."""
        stream = io.StringIO()
        attacks = list(self.reports[self.first].attacks)
        extra = ("norm", "eps", "images", *(f"{name} %" for name in attacks), "worst case %", "low %", "high %")
        rows = self.benchmark_rows()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*rows[0], *extra])
        for row, report in zip(rows, self.reports.values(), strict=True):
            worst, config = report.worst_case, report.config
            figures = [*(report.attacks[name].accuracy for name in attacks), worst.accuracy, worst.low, worst.high]
            setting = [config.norm, f"{config.eps:.6g}", config.n_images]
            writer.writerow([*row.values(), *setting, *(f"{100 * figure:.2f}" for figure in figures)])
        return stream.getvalue()

    def to_markdown(self) -> str:
        """The table, the verdicts and the remarks as Markdown."""
        rows = [
            (markdown_plain(row[0][0]), *(f"{text} ({small})" if small else text for text, small in row[1:]))
            for row in self.rows()
        ]
        lines = ["# Robustness compared", "", self.setting(), ""]
        lines += markdown_table([markdown_plain(cell) for cell in self.header()], rows, left=1)
        lines += ["", *(f"- {markdown_plain(self.verdict(name))}" for name in list(self.reports)[1:])]
        lines += [f"- {markdown_plain(remark)}" for remark in self.remarks()]
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """One HTML page that needs no other file, no script and no network."""
        from .page import comparison_page

        return comparison_page(self)

    def __str__(self) -> str:
        names = list(self.reports)
        text = [f"{name}: {self.reports[name]}" for name in names]
        return "\n".join([*text, *(self.verdict(name) for name in names[1:])])


@dataclass
class _Content:
    reports: dict[str, dict[str, Any]]
    weights: dict[str, Weights]
    curves: dict[str, Curve]


def compare(
    models: Mapping[str, nn.Module],
    data: Iterable[Any],
    *,
    protocol: str | os.PathLike[str] | Protocol = "standard",
    norm: str | None = None,
    eps: float | None = None,
    sample: int | None = None,
    seed: int = 0,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    curve: Sequence[float] = (),
    curve_attack: str = "PGD-20",
    state: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **arguments: Any,
) -> Comparison:
    """Judge models on the same images with the same attacks.

    Args:
        models: by name; the first, the dense one say, is what the others are compared with.
        data: see `evaluate`; read once.
        protocol, norm, eps, sample, seed, pixel_range, state, progress: see `evaluate`.
        curve: radii of a security curve, in pixel units; none is drawn where there are none.
        curve_attack: name of its attack.
        arguments: of `evaluate`, such as ``batch_size``, ``device``, ``mean``, ``std``.

    Raises:
        ValueError: there is no model, or something is off; see `evaluate`.
    """
    if not models:
        raise ValueError("models is empty; give one at least, as {'dense': model}")
    for name in models:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"models: {name!r} names no model; give a non-empty string")
    how = load_protocol(protocol)
    pixel_range = check_pixel_range(pixel_range)
    drawn = draw(collect(data, pixel_range), sample, how.sample, seed)
    pair = (drawn.images, drawn.labels)
    if drawn.width is not None:  # one-hot they came, one-hot they go on, so that their width is checked
        pair = (drawn.images, nn.functional.one_hot(drawn.labels, drawn.width))
    _check_curve(curve, curve_attack, pixel_range, check_norm(norm or how.norm or "Linf"), drawn.images[0].numel())
    setting = {key: arguments[key] for key in ("device", "mean", "std", "batch_size") if key in arguments}
    for name, model in models.items():  # all of them, before hours go into the first
        with _said_of(name):
            check_model(model, drawn, **setting)
    common: dict[str, Any] = {"seed": seed, "pixel_range": pixel_range, "state": state, **arguments}
    reports: dict[str, Report] = {}
    curves: dict[str, Curve] = {}
    broken: list[Broken] = []
    for name, model in models.items():
        shown = name if progress else False
        with _said_of(name):
            reports[name] = evaluate(
                model, pair, protocol=how, norm=norm, eps=eps, sample=len(drawn.images), progress=shown, **common
            )
        if curve:
            wanted = reports[name].config.norm
            curves[name] = security_curve(
                model, pair, eps=curve, attack=curve_attack, norm=wanted, progress=shown, **common
            )
        if len(reports) > 1:
            broken += _broken(name, reports[name], next(iter(reports.values())), drawn.images)
    weights = {name: count_weights(model) for name, model in models.items()}
    return Comparison(reports=reports, weights=weights, curves=curves, broken=tuple(broken))


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """Put a model's name before what is said of it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_curve_attack(name: str) -> None:
    """Check that a security curve can be drawn with an attack.

    Raises:
        ValueError: it is not the name of one.
        ModuleNotFoundError: its package is missing.
    """
    try:
        as_attacks(name)
    except ValueError as error:
        raise ValueError(f"curve_attack={name!r}: {error}") from error


def _check_curve(
    curve: Sequence[float], attack: str, pixel_range: tuple[float, float], norm: str, n_pixels: int
) -> None:
    """Refuse a curve that cannot be drawn, before hours of attacks and not after them."""
    check_curve_attack(attack)
    for radius in curve:
        try:
            check_eps(radius, pixel_range, norm, n_pixels)
        except ValueError as error:
            raise ValueError(f"curve: {error}") from error


def _broken(name: str, report: Report, first: Report, images: Tensor) -> list[Broken]:
    """The first few images, one of each class where there are, that the model loses and the first does not."""
    assert report.adversarial is not None
    assert report.answers is not None
    assert report.labels is not None
    lost = (first.worst_case.robust & ~report.worst_case.robust & report.clean_correct).nonzero().squeeze(1).tolist()
    seen: dict[int, int] = {}
    order = []
    for index in lost:
        label = int(report.labels[index])
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label], index))
    return [
        Broken(
            model=name,
            index=index,
            label=int(report.labels[index]),
            answer=int(report.answers[index]),
            image=images[index],
            adversarial=report.adversarial[index],
        )
        for _, index in sorted(order)[:_MOST_BROKEN]
    ]


def verdict_text(name: str, first: str, pair: Paired) -> str:
    """Whether a model is less robust than another in the worst case, in a sentence."""
    difference = f"{100 * pair.difference:+.1f} points in the worst case (95 % interval {_points(*pair.interval)})"
    said = f"not told apart from {first}"
    if pair.beyond_chance:
        said = f"{'less' if pair.difference < 0 else 'more'} robust than {first} beyond chance"
    counts = f"{pair.first_only} images lost, {pair.second_only} won, of {pair.n}"
    return f"{name} is {said}: {difference}; {counts}; McNemar p {_p_text(pair.p_value)}."


def _pair_to_dict(pair: Paired) -> dict[str, Any]:
    low, high = pair.interval
    return {**asdict(pair), "difference": pair.difference, "low": low, "high": high, "p_value": pair.p_value}


def _points(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _p_text(p: float) -> str:
    return f"= {p:.2g}" if p >= 1e-4 else "below 0.0001"


def _beyond(pair: Paired) -> str:
    return "beyond chance" if pair.beyond_chance else "within chance"
