"""Several models judged on the same images: one table, one page, and which differences are beyond chance."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from .._checked import checked
from .._files import read_bytes, write_text
from .._random import check_seed
from .._text import one_line
from .._weights import counted_weights
from ..errors import FileError, InputError
from ..pages.text import interval_text, markdown_plain, markdown_table, percent
from .attacks import Attack
from .attacks.base import positive_int
from .curve import Curve, security_curve
from .evaluation import check_model, draw, evaluate
from .inputs import (
    as_attacks,
    as_device,
    as_protocol,
    check_eps,
    check_norm,
    check_normalisation,
    check_pixel_range,
    check_step_size,
    collect,
)
from .protocol import Protocol
from .report import Report, eps_text
from .statistics import Paired, holm

__all__ = ["Broken", "Comparison", "Weights", "compare", "count_weights", "verdict_text"]

_FORMAT = 1
_MOST_BYTES = 500_000_000
_MOST_BROKEN = 6  # images shown for each model
_WIDE = 0.05  # 95 % intervals wider than this are said to be wide
# Adversarial Pruning Benchmark (arXiv 2409.01249): its sparsities, in percent.
_BENCHMARK = {"weights": (90, 95, 99), "filters": (50, 75, 90), "channels": (50, 75, 90)}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of convolution and linear layers.

    Attributes:
        total: their number; that of the dense model where this one has its layers with fewer channels.
        nonzero: those that are there and not 0.
        struct: where the others are, in the Adversarial Pruning Benchmark's words: ``weights``, ``filters`` (whole
            rows), ``channels`` (whole columns, or removed ones), or empty where nearly all are there.
    """

    total: NonNegativeInt
    nonzero: NonNegativeInt
    struct: str = ""

    @property
    def sparsity(self) -> float:
        """Share of zeros and of removed weights, in [0, 1]."""
        return 1 - self.nonzero / self.total if self.total else 0.0


def count_weights(model: nn.Module, dense: nn.Module | None = None) -> Weights:
    """Count the weights of a model's convolution and linear layers, as sparsity and `size_report` do.

    Args:
        model: whose weights are counted.
        dense: what it may have been made of by removing channels; of no account where it is another network.
    """
    named, whole = counted_weights(model), {} if dense is None else counted_weights(dense)
    weights = list(named.values())
    there, nonzero = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    total = sum(w.numel() for w in whole.values()) if _is_part(named, whole) else there
    zeros = there - nonzero
    struct = ""
    if total - there > 0.01 * total:
        struct = "channels" if zeros < 0.05 * (total - nonzero) else "weights"
    elif zeros > 0.01 * total:
        zero = [w.eq(0) for w in weights]
        in_filters = sum(int(z.flatten(1).all(1).sum()) * z[0].numel() for z in zero)
        in_channels = sum(int(z.transpose(0, 1).flatten(1).all(1).sum()) * z[:, 0].numel() for z in zero)
        struct = "weights"
        if max(in_filters, in_channels) > 0.95 * zeros:
            struct = "filters" if in_filters >= in_channels else "channels"
    return Weights(total=total, nonzero=nonzero, struct=struct)


def _is_part(weights: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> bool:
    """Whether the first have the second's names, and shapes that fit into theirs."""
    return weights.keys() == whole.keys() and all(
        weight.dim() == whole[name].dim() and all(a <= b for a, b in zip(weight.shape, whole[name].shape, strict=True))
        for name, weight in weights.items()
    )


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

    def adjusted_p(self, column: str = "worst case") -> dict[str, float]:
        """P values of `pair` for all models but the first, by name, adjusted for their number; see `holm`."""
        names = list(self.reports)[1:]
        return dict(zip(names, holm([self.pair(name, column).p_value for name in names]), strict=True))

    def verdict(self, name: str) -> str:
        """Whether a model is less robust than the first, in a sentence.

        The test is of this model alone; beside its p value is the one adjusted for all models, where there are several.
        """
        several = len(self.reports) > 2
        return verdict_text(name, self.first, self.pair(name), self.adjusted_p()[name] if several else None)

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
        holm_p = {column: self.adjusted_p(column) for column in columns}
        return {
            "format": _FORMAT,
            "first": self.first,
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
            "weights": {name: asdict(weights) for name, weights in self.weights.items()},
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
            "benchmark": self.benchmark_rows(),
            "paired": {
                name: {
                    column: _pair_to_dict(self.pair(name, column)) | {"holm_p_value": holm_p[column][name]}
                    for column in columns
                }
                for name in others
            },
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_dict` made ``content`` of, without images. What is derived is derived anew.

        Raises:
            ValueError: ``content`` is no such dict, or one of a later format.
        """
        if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
            raise InputError(
                f"comparison has no format={_FORMAT}; give what Comparison.to_dict wrote, or compare again"
            )
        given = checked(_Content, {key: content.get(key) for key in ("reports", "weights", "curves")}, "comparison")
        reports = {name: Report.from_dict(report) for name, report in given.reports.items()}
        if not reports or reports.keys() != given.weights.keys():
            raise InputError("comparison has reports and weights of other models; compare again")
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
            return cls.from_dict(json.loads(read_bytes(path, most=_MOST_BYTES)))
        except FileError:
            raise
        except ValueError as error:
            raise InputError(f"{os.fspath(path)}: {one_line(error)}") from error

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
    protocol: str | os.PathLike[str] | Protocol | None = None,
    norm: str | None = None,
    eps: float | None = None,
    attacks: str | Attack | Iterable[str | Attack] | None = None,
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
        protocol, norm, eps, attacks, sample, seed, pixel_range, state, progress: see `evaluate`; without a protocol and
            without attacks it is ``standard``.
        curve: radii of a security curve, in pixel units; none is drawn where there are none.
        curve_attack: name of its attack.
        arguments: of `evaluate`, such as ``batch_size``, ``device``, ``mean``, ``std``.

    Raises:
        ValueError: there is no model, or something is off; see `evaluate`.
    """
    if not isinstance(models, Mapping):
        raise InputError(f"models is a {type(models).__name__}; give them by name, as {{'dense': model}}")
    if not models:
        raise InputError("models is empty; give one at least, as {'dense': model}")
    for name in models:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"models: {name!r} names no model; give a non-empty string")
    how = as_protocol(protocol, attacks, "standard")
    pixel_range = check_pixel_range(pixel_range)
    norm = check_norm(norm or how.norm or "Linf")
    check_step_size(arguments.get("step_size"))
    positive_int("batch_size", arguments.get("batch_size", 1))
    as_device(arguments.get("device"), torch.device("cpu"))
    drawn = draw(collect(data, pixel_range), sample, how.sample, check_seed(seed))
    check_eps(how.eps if eps is None else eps, pixel_range, norm, drawn.images[0].numel())
    check_normalisation(arguments.get("mean"), arguments.get("std"), drawn.images.shape[1])
    _check_curve(curve, curve_attack, pixel_range, norm, drawn.images[0].numel())
    setting = {key: arguments[key] for key in ("device", "mean", "std", "batch_size") if key in arguments}
    for name, model in models.items():  # all of them, before hours go into the first
        with _said_of(name):
            check_model(model, drawn, **setting)
    common: dict[str, Any] = {"seed": seed, "pixel_range": pixel_range, "state": state, **arguments}
    pair = drawn.as_given()
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
            of_curve = {key: value for key, value in common.items() if key != "alarms"}  # it has its own
            curves[name] = security_curve(
                model, pair, eps=curve, attack=curve_attack, norm=norm, progress=shown, **of_curve
            )
        if len(reports) > 1:
            broken += _broken(name, reports[name], next(iter(reports.values())), drawn.images)
    dense = next(iter(models.values()))
    weights = {name: count_weights(model, dense) for name, model in models.items()}
    return Comparison(reports=reports, weights=weights, curves=curves, broken=tuple(broken))


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """Put a model's name before what is said of it."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error


def check_curve_attack(name: str) -> None:
    """Check that a security curve can be drawn with an attack.

    Raises:
        ValueError: it is not the name of one.
        ModuleNotFoundError: its package is missing.
    """
    try:
        as_attacks(name)
    except ValueError as error:
        raise InputError(f"curve_attack={name!r}: {error}") from error


def _check_curve(
    curve: Sequence[float], attack: str, pixel_range: tuple[float, float], norm: str, n_pixels: int
) -> None:
    """Refuse a curve that cannot be drawn, before hours of attacks and not after them."""
    check_curve_attack(attack)
    for radius in curve:
        try:
            check_eps(radius, pixel_range, norm, n_pixels)
        except ValueError as error:
            raise InputError(f"curve: {error}") from error


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


def verdict_text(name: str, first: str, pair: Paired, adjusted_p: float | None = None) -> str:
    """Whether a model is less robust than another in the worst case, in a sentence.

    Args:
        name, first: of the models.
        pair: the verdicts on the first and on the other.
        adjusted_p: the p value adjusted for the number of models that are compared; None where there is one.
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


def _points(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _p_text(p: float) -> str:
    return f"= {p:.2g}" if p >= 1e-4 else "below 0.0001"


def _beyond(pair: Paired) -> str:
    return "beyond chance" if pair.beyond_chance else "within chance"
