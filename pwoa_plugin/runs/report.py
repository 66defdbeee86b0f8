"""What a run made and how: as an object, JSON, Markdown and one self-contained HTML page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveInt

from .._checked import checked
from .._yaml import dump_yaml
from ..errors import InputError
from ..pages import render, svg_plots
from ..pages.text import (
    duration,
    interval_text,
    markdown_block,
    markdown_code,
    markdown_plain,
    markdown_table,
    number,
    percent,
    shape_text,
    size_text,
)
from .cost import CostReport
from .plots import drawings
from .size import SizeReport

if TYPE_CHECKING:
    from ..robustness import Report

__all__ = [
    "BestEpoch",
    "EpochReport",
    "LayerReport",
    "ModelReport",
    "RunReport",
    "ValidationReport",
    "to_html",
    "to_markdown",
]

_FORMAT = 1  # of the JSON; to be raised when a reader of the old one would misread the new one
_STRICT = ConfigDict(extra="forbid")
_WIDE_INTERVAL = 0.05  # 95 % intervals wider than this are said to be wide

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """The network that was pruned.

    Attributes:
        arch: its name.
        checkpoint: where its weights came from.
        sha256: of its parameters' and buffers' names and values.
        parameters: their number.
        notes: what was done to load it, such as prefixes undone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    arch: str
    checkpoint: str
    sha256: str
    parameters: NonNegativeInt
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer that was to be pruned.

    Attributes:
        name: of the module.
        shape: of its weight.
        weights: their number.
        kept: those under the mask.
        density: kept over all.
        dense_because: why it was left dense, or None.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    shape: tuple[NonNegativeInt, ...]
    weights: NonNegativeInt
    kept: NonNegativeInt
    density: Share
    dense_because: str | None = None

    def __post_init__(self) -> None:
        if self.kept > self.weights or self.weights != math.prod(self.shape):
            raise InputError(f"{self.kept} kept of {self.weights} weights contradict shape {list(self.shape)}")


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch. In the JSON its terms stand beside the other fields, by name.

    Attributes:
        phase: ``admm``, ``gradual`` or ``fine-tune``.
        epoch: of the whole run, from 1.
        loss: mean over the epoch.
        terms: its summands, weighted and signed.
        lr: learning rate of the last step.
        rho, residual: of ADMM; None in fine-tuning.
        sparsity: share of the prunable weights that are 0.
        clean: accuracy on the validation images, in [0, 1]; None without.
        agreement: with the teacher on perturbed validation images: 1 less the total variation distance of the two
            networks' probabilities, mean over images; None without.
        seconds: from the start of training to the end of this epoch.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    phase: str
    epoch: PositiveInt
    loss: float
    terms: dict[str, float] = field(default_factory=dict)
    lr: NonNegativeFloat
    rho: NonNegativeFloat | None = None
    residual: NonNegativeFloat | None = None
    sparsity: Share
    clean: Share | None = None
    agreement: Share | None = None
    seconds: NonNegativeFloat

    def to_dict(self) -> dict[str, Any]:
        """The epoch as JSON-ready values, its terms after the loss."""
        content = asdict(self)
        terms = content.pop("terms")
        head = {name: content.pop(name) for name in ("phase", "epoch", "loss")}
        return {**head, **terms, **content}


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """The images that epochs are compared by.

    Attributes:
        images: their number.
        dense_clean: clean accuracy of the network before pruning, in [0, 1].
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    images: PositiveInt
    dense_clean: Share


@dataclass(frozen=True, kw_only=True)
class BestEpoch:
    """The epoch whose weights were kept; no attack was used to choose it.

    Attributes:
        epoch: from 1.
        agreement, clean: see `EpochReport`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    epoch: PositiveInt
    agreement: Share | None = None
    clean: Share | None = None


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run: the content of ``report.json`` in its folder.

    Attributes:
        name: of the run.
        status: ``running``, ``finished``, ``interrupted`` or ``failed``.
        started: ISO 8601.
        seconds: spent on it.
        seed: of everything random.
        config: the `PwoAConfig`, as ``model_dump(mode="json")`` gives it.
        versions: of Python and the packages.
        command: the command line, by argument.
        device: where it ran.
        model: the network.
        layers: what each layer keeps.
        allocation, granularity: by their names in the config.
        sparsity: share of the prunable weights that are pruned, in [0, 1].
        size: sizes of the pruned network; None before there is one.
        cost: before and after, where channels were removed; None otherwise.
        radius: of the perturbation, in pixel units.
        residual: ADMM's at the hard prune; None without ADMM, or before.
        hidden_layers: names of the modules whose inputs HSIC and feature distillation look at.
        epochs: one by one.
        validation: None without a validation split.
        best: None where no epoch has ended.
        robustness: what `Report.to_dict` gave, for the ``pruned`` network and the ``dense`` one; either may be missing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    status: Literal["running", "finished", "interrupted", "failed"]
    started: str
    seconds: NonNegativeFloat
    seed: NonNegativeInt
    config: dict[str, JsonValue]
    versions: dict[str, str]
    command: tuple[str, ...]
    device: str
    model: ModelReport
    layers: tuple[LayerReport, ...]
    allocation: str
    granularity: str
    sparsity: Share
    size: SizeReport | None = None
    cost: CostReport | None = None
    radius: NonNegativeFloat
    residual: NonNegativeFloat | None = None
    hidden_layers: tuple[str, ...] = ()
    epochs: tuple[EpochReport, ...] = ()
    validation: ValidationReport | None = None
    best: BestEpoch | None = None
    robustness: dict[Literal["pruned", "dense"], dict[str, JsonValue]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            datetime.fromisoformat(self.started)
        except ValueError:
            raise InputError(f"started={self.started!r} is no ISO 8601 time") from None
        numbers = [epoch.epoch for epoch in self.epochs]
        if numbers != sorted(set(numbers)):
            raise InputError(f"epochs are numbered {numbers[:20]}, not upwards")
        if self.best and self.best.epoch not in numbers:
            raise InputError(f"best.epoch={self.best.epoch} is none of the epochs")
        _ = self.judged

    @cached_property
    def judged(self) -> dict[str, Report]:
        """`robustness` as reports, by ``pruned`` and ``dense``."""
        if not self.robustness:
            return {}
        from ..robustness import Report  # not at the top: brings ART

        reports = {}
        for name in sorted(self.robustness, reverse=True):  # the pruned network first
            try:
                reports[str(name)] = Report.from_dict(self.robustness[name])
            except ValueError as error:
                raise InputError(f"robustness.{name}: {error}") from None
        return reports

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "format": _FORMAT,
            **_as_lists(asdict(self)),
            "size": self.size.to_dict() if self.size else None,
            "epochs": [epoch.to_dict() for epoch in self.epochs],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunReport:
        """The report that `to_dict` made ``content`` of.

        Raises:
            ValueError: ``content`` is no such dict, or one of a later format; one line names the field.
        """
        if not isinstance(content, Mapping) or "format" not in content:
            raise InputError("report.format: is missing; give what RunReport.to_dict wrote")
        if content["format"] != _FORMAT or isinstance(content["format"], bool):
            raise InputError(f"report.format: is {content['format']!r}, this version reads 1; update pwoa_plugin")
        content = {key: value for key, value in content.items() if key != "format"}
        epochs = content.get("epochs")
        if isinstance(epochs, Sequence):
            content["epochs"] = [_with_terms(epoch) if isinstance(epoch, Mapping) else epoch for epoch in epochs]
        return checked(cls, content, "report")

    def remarks(self) -> list[str]:
        """What a reader should know before relying on the numbers, a sentence or two each."""
        said: list[str] = []
        if self.status != "finished":
            said.append(f"The run is {self.status}: these are not the numbers of a finished run.")
        said += self._remarks_on_robustness()
        if self.epochs:
            unseen = sum(epoch.agreement is None for epoch in self.epochs)
            if self.validation is None or unseen == len(self.epochs):
                said.append("No epoch was validated: nothing was compared to choose the weights that were kept.")
            elif unseen:
                said.append(f"{unseen} of {len(self.epochs)} epochs have no validation, so the best may be among them.")
        dense = [layer for layer in self.layers if layer.dense_because]
        if dense:
            named = "; ".join(f"{layer.name} ({layer.dense_because})" for layer in dense[:3])
            more = f"; and {len(dense) - 3} more" if len(dense) > 3 else ""
            said.append(f"Left dense: {named}{more}.")
        return said + list(self.model.notes)

    def _remarks_on_robustness(self) -> list[str]:
        said: list[str] = []
        pruned, dense = self.judged.get("pruned"), self.judged.get("dense")
        if pruned is None:
            return [self.not_judged]
        worst = pruned.worst_case
        if worst.high - worst.low > _WIDE_INTERVAL:
            said.append(
                f"Only {pruned.config.n_images:,} images were judged: the 95 % interval of the worst case is "
                f"{100 * (worst.high - worst.low):.1f} percentage points wide. Judge more to narrow it."
            )
        if pruned.autoattack is None:
            said.append("AutoAttack is not among the attacks: the worst case may be lower than shown.")
        if dense is None:
            said.append("The dense network was not judged: what pruning cost in robustness is not known.")
        elif not judged_alike(pruned, dense):
            said.append("Pruned and dense were not judged alike (images, eps, attacks or seed): do not compare them.")
        eps = self.config.get("eps")
        if isinstance(eps, (int, float)) and not math.isclose(eps, pruned.config.eps):
            said.append(f"Pruned for eps = {eps:g}, judged at eps = {pruned.config.eps:g}.")
        for name, judged in self.judged.items():
            said += [f"Alarm, {name} network: {alarm}" for alarm in judged.alarms or ()]
        return said + [f"{note.rstrip('.')}." for note in pruned.notes]

    @property
    def verdict(self) -> str:
        """Whether the pruned network is less robust than the dense one; empty where that cannot be said."""
        pruned, dense = self.judged.get("pruned"), self.judged.get("dense")
        if pruned is None or dense is None or not judged_alike(pruned, dense) or not pruned.config.images_sha256:
            return ""
        from ..robustness.comparison import verdict_text  # not at the top: brings ART

        return verdict_text("The pruned network", "the dense one", dense.paired_with(pruned))

    @property
    def not_judged(self) -> str:
        """How to have the run judged."""
        eps = self.config.get("eps")
        return f"Not judged yet: pwoa evaluate FOLDER --eps {eps if isinstance(eps, (int, float)) else 'EPS'}"


def judged_alike(one: Report, other: Report) -> bool:
    """Whether two evaluations were of as many images, with the same attacks and settings."""
    return (_setting(one), list(one.attacks)) == (_setting(other), list(other.attacks))


def _setting(report: Report) -> tuple[object, ...]:
    config = report.config
    images = config.n_images, config.images_sha256
    return *images, config.eps, config.norm, config.pixel_range, config.seed, config.attacks


def _with_terms(epoch: Mapping[str, Any]) -> dict[str, Any]:
    own = {spec.name for spec in fields(EpochReport)} - {"terms"}
    terms = {name: value for name, value in epoch.items() if name not in own}
    return {**{name: value for name, value in epoch.items() if name in own}, "terms": terms}


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_lists(entry) for key, entry in value.items()}
    return [_as_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value


# -- text ----------------------------------------------------------------------------------------


def robustness_header(report: RunReport) -> tuple[str, ...]:
    """Of `robustness_rows`."""
    return ("attack", *(cell for name in report.judged for cell in (name, "95 % interval")), "seconds")


def robustness_rows(report: RunReport) -> list[tuple[str, ...]]:
    """Clean, each attack of either network, and the worst case, as text."""
    names = list(dict.fromkeys(name for judged in report.judged.values() for name in judged.attacks))
    rows = [("clean", *(cell for it in report.judged.values() for cell in _accuracy(it.clean, it.clean_interval)), "")]
    for name in (*names, None):
        columns = [it.attacks.get(name) if name else it.worst_case for it in report.judged.values()]
        cells = [cell for it in columns for cell in (_accuracy(it.accuracy, it.interval) if it else ("-", "-"))]
        seconds = " + ".join(f"{it.seconds:.1f}" for it in columns if it)
        rows.append((name or "worst case", *cells, seconds))
    return rows


def _accuracy(accuracy: float, interval: tuple[float, float]) -> tuple[str, str]:
    return percent(accuracy), interval_text(*interval)


LAYER_HEADER = ("layer", "shape", "weights", "kept", "density", "dense because")


def layer_rows(report: RunReport) -> list[tuple[str, ...]]:
    """What each layer keeps, as text."""
    return [
        (
            layer.name,
            shape_text(layer.shape),
            f"{layer.weights:,}",
            f"{layer.kept:,}",
            percent(layer.density),
            layer.dense_because or "",
        )
        for layer in report.layers
    ]


SIZE_HEADER = ("layer", "weights", "nonzero", "dense bytes", "sparse bytes", "format")


def size_rows(size: SizeReport) -> list[tuple[str, ...]]:
    """Sizes by layer, and the totals, as text."""
    rows = [
        (
            layer.name,
            *(f"{n:,}" for n in (layer.weights, layer.nonzero, layer.dense_bytes, layer.sparse_bytes)),
            f"tied to {layer.tied_to}" if layer.tied_to else layer.format,
        )
        for layer in size.layers
    ]
    totals = (size.weights, size.nonzero, size.dense_bytes, size.sparse_bytes)
    return [*rows, ("all, with the rest dense", *(f"{n:,}" for n in totals), "")]


COST_HEADER = ("", "dense", "pruned", "ratio")


def cost_rows(report: RunReport) -> list[tuple[str, ...]]:
    """Before and after, as text; robust accuracy too where both were judged alike."""
    cost = report.cost
    if cost is None:
        return []
    dense, pruned = cost.dense, cost.pruned

    def row(name: str, before: float, after: float, *said: str) -> tuple[str, ...]:
        return (name, *said, f"{before / after:.2f}x" if after else "-")

    counts = (("parameters", dense.parameters, pruned.parameters), ("MACs, one image", dense.macs, pruned.macs))
    rows = [row(name, before, after, f"{before:,}", f"{after:,}") for name, before, after in counts]
    files = dense.file_bytes, pruned.file_bytes
    rows.append(row("file", *files, *map(size_text, files)))
    for batch, before in dense.latency_ms.items():
        after, ratio = pruned.latency_ms.get(batch), cost.speedup.get(batch)
        times = ["-" if ms is None else f"{ms:.3g} ms" for ms in (before, after)]
        rows.append((f"latency, batch {batch}", *times, "-" if ratio is None else f"{ratio:.2f}x"))
    if len(report.judged) == 2 and judged_alike(report.judged["pruned"], report.judged["dense"]):
        robust = [report.judged[name].worst_case.accuracy for name in ("dense", "pruned")]
        share = f"{robust[1] / robust[0]:.1%} left" if robust[0] else "-"
        rows.append(("robust, worst case", *map(percent, robust), share))
    return rows


def cost_note(cost: CostReport) -> str:
    """How latency was taken."""
    return f"Latency: medians of paired runs on {cost.device}, {cost.threads} thread(s); its ratio is of pairs."


def judged_text(judged: Report) -> str:
    """How networks were judged, in a line."""
    config = judged.config
    low, high = config.pixel_range
    pixels = "" if (low, high) == (0, 1) else f" of pixels in [{low:g}, {high:g}]"
    return (
        f"{config.n_images:,} images, {config.norm} eps = {config.eps:.6g}{pixels}, seed {config.seed}, "
        f"{config.device}. Robust: right when clean and right when attacked; worst case: under every attack."
    )


def headline(report: RunReport) -> list[str]:
    """How much smaller, and how robust: a sentence each."""
    said = []
    size, cost = report.size, report.cost
    if cost is not None:
        said.append(
            f"{cost.dense.parameters / max(1, cost.pruned.parameters):.1f}x smaller: {cost.pruned.parameters:,} of "
            f"{cost.dense.parameters:,} parameters are left, {cost.dense.macs / max(1, cost.pruned.macs):.1f}x fewer "
            f"MACs, {size_text(cost.dense.file_bytes)} become {size_text(cost.pruned.file_bytes)}."
        )
    elif size is not None and size.compression is not None:
        said.append(
            f"{size.compression:.1f}x smaller: {size.nonzero:,} of {size.weights:,} convolution and linear weights "
            f"are left, {size_text(size.dense_bytes)} become {size_text(size.sparse_bytes)}."
        )
    pruned, dense = report.judged.get("pruned"), report.judged.get("dense")
    if pruned is not None:
        worst = pruned.worst_case
        if dense is not None and not judged_alike(pruned, dense):
            dense = None
        against = f"; the dense network {percent(dense.worst_case.accuracy)}" if dense else ""
        said.append(
            f"Robust on {percent(worst.accuracy)} ({interval_text(worst.low, worst.high)}) of "
            f"{pruned.config.n_images:,} images in the worst case at eps = {pruned.config.eps:.6g}{against}."
        )
    return said


# -- Markdown ------------------------------------------------------------------------------------


def to_markdown(report: RunReport) -> str:
    """The report as Markdown (GitHub's), without plots."""
    lines = [f"# {markdown_plain(report.name)}", "", *headline(report), ""]
    lines += [f"- {markdown_plain(remark)}" for remark in report.remarks()]
    lines += ["", "## Robustness", ""]
    if report.judged:
        lines += [judged_text(next(iter(report.judged.values()))), ""]
        lines += [report.verdict, ""] if report.verdict else []
        rows = [(markdown_plain(row[0]), *row[1:]) for row in robustness_rows(report)]
        lines += markdown_table(robustness_header(report), rows, left=1)
    else:
        lines += [report.not_judged]
    lines += ["", "## Layers", ""]
    lines += [f"Allocation {markdown_code(report.allocation)}, granularity {markdown_code(report.granularity)}.", ""]
    layers = [(markdown_code(row[0]), *row[1:-1], markdown_plain(row[-1])) for row in layer_rows(report)]
    lines += markdown_table(LAYER_HEADER, layers, left=2, last=True)
    lines += ["", "## Training", ""]
    if report.epochs:
        lines += [best_text(report), ""] if report.best else []
        lines += markdown_table([markdown_plain(cell) for cell in epoch_header(report)], epoch_rows(report), left=0)
    else:
        lines += ["No epoch has ended yet."]
    if report.cost:
        lines += ["", "## Before and after", "", *markdown_table(COST_HEADER, cost_rows(report), left=1), ""]
        lines += [cost_note(report.cost)]
    lines += ["", "## Size", ""]
    if report.size:
        *own, totals = size_rows(report.size)
        sizes = [*((markdown_code(row[0]), *row[1:-1], markdown_plain(row[-1])) for row in own), totals]
        lines += [*markdown_table(SIZE_HEADER, sizes, left=1, last=True), "", size_note(report.size)]
    else:
        lines += ["Not known before the hard prune."]
    lines += ["", "## How it was made", "", *markdown_block(shlex.join(report.command)), ""]
    lines += [f"- {markdown_plain(name)}: {markdown_plain(text)}" for name, text in made_rows(report)]
    return "\n".join([*lines, "", *markdown_block(dump_yaml(report.config).rstrip(), "yaml")]) + "\n"


def term_names(report: RunReport) -> list[str]:
    """Names of the loss's terms over all epochs."""
    return list(dict.fromkeys(name for epoch in report.epochs for name in epoch.terms))


def epoch_header(report: RunReport) -> tuple[str, ...]:
    """Of `epoch_rows`."""
    rest = ("lr", "rho", "residual", "sparsity", "clean", "agreement", "seconds")
    return ("epoch", "phase", "loss", *term_names(report), *rest)


def epoch_rows(report: RunReport) -> list[tuple[str, ...]]:
    """The epochs, as text."""
    return [
        (
            str(epoch.epoch),
            epoch.phase,
            number(epoch.loss),
            *(number(epoch.terms.get(name)) for name in term_names(report)),
            number(epoch.lr),
            number(epoch.rho),
            number(epoch.residual),
            percent(epoch.sparsity),
            percent(epoch.clean),
            percent(epoch.agreement),
            f"{epoch.seconds:.1f}",
        )
        for epoch in report.epochs
    ]


def made_rows(report: RunReport) -> list[tuple[str, str]]:
    """How the run was made, as names and text."""
    model = report.model
    rows = [
        ("started", report.started),
        ("took", duration(report.seconds)),
        ("device", report.device),
        ("seed", str(report.seed)),
        ("architecture", model.arch),
        ("parameters", f"{model.parameters:,}"),
        ("checkpoint", model.checkpoint),
        ("SHA-256", model.sha256),
        ("sparsity", percent(report.sparsity)),
        ("perturbation radius", number(report.radius)),
        ("ADMM residual at the hard prune", number(report.residual)),
        ("hidden layers", ", ".join(report.hidden_layers) or "none"),
    ]
    if report.validation:
        said = f"{report.validation.images:,} images; dense network {percent(report.validation.dense_clean)} clean"
        rows.append(("validation", said))
    return rows + [(f"version of {name}", version) for name, version in report.versions.items()]


def best_text(report: RunReport) -> str:
    """Which epoch was kept, and why."""
    best = report.best
    assert best is not None
    said = []
    if best.agreement is not None:
        said.append(f"{percent(best.agreement)} agreement with the dense network on perturbed images")
    if best.clean is not None:
        said.append(f"{percent(best.clean)} clean")
    return f"The weights are those of epoch {best.epoch}{': ' + ', '.join(said) if said else ''}."


def size_note(size: SizeReport) -> str:
    """The totals that the table of sizes has no column for."""
    every = number(size.parameter_compression)
    return (
        f"Sparse: each layer in the smallest of bitmap, CSR and dense. All as bitmaps: {size.bitmap_bytes:,} bytes; "
        f"all as CSR: {size.csr_bytes:,} bytes. Compression over all {size.parameters:,} parameters "
        f"({size.nonzero_parameters:,} nonzero): {every}x."
    )


# -- HTML ----------------------------------------------------------------------------------------


def to_html(report: RunReport) -> str:
    """The report as one HTML page that needs no other file, no script and no network."""
    size, any_dense = report.size, any(layer.dense_because for layer in report.layers)
    cut = len(LAYER_HEADER) if any_dense else -1
    return render(
        __package__,
        "report.html.j2",
        report=report,
        size=size,
        pruned=report.judged.get("pruned"),
        dense=report.judged.get("dense"),
        judged=next(iter(report.judged.values()), None),
        judged_text=judged_text,
        interval=interval_text,
        remarks=report.remarks(),
        rows=robustness_rows(report) if report.judged else [],
        any_dense=any_dense,
        layer_header=LAYER_HEADER[:cut],
        layers=[row[:cut] for row in layer_rows(report)],
        epoch_header=epoch_header(report),
        epochs=epoch_rows(report),
        best=best_text(report) if report.best else "",
        cost_header=COST_HEADER,
        cost_rows=cost_rows(report),
        cost_note=cost_note(report.cost) if report.cost else "",
        size_header=SIZE_HEADER,
        size_rows=size_rows(size) if size else [],
        size_note=size_note(size) if size else "",
        made=made_rows(report),
        command=shlex.join(report.command),
        config=dump_yaml(report.config),
        attacks=dump_yaml({name: judged.config.attacks for name, judged in report.judged.items()}),
        plots=svg_plots(drawings(report)),
    )
