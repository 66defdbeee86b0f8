"""What the report of a run says, section by section, for Markdown, HTML and terminal alike."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .._text import one_line
from .._yaml import dump_yaml
from ..pages.sections import Block, Folded, Part, Plots, Section
from ..pages.table import Cell, Table
from ..pages.text import duration, interval_text, number, percent, shape_text, size_text
from .cost import CostReport
from .report import Network, RunReport
from .size import SizeReport

if TYPE_CHECKING:
    from ..robustness import Report


def sections(report: RunReport) -> list[Section]:
    """All sections, in order."""
    costs = [_before_and_after(report, report.cost)] if report.cost else []
    return [_robustness(report), _layers(report), _training(report), *costs, _size(report.size), _how_made(report)]


def _robustness(report: RunReport) -> Section:
    judged = report.judged
    if not judged:
        return Section("Robustness", [report.not_judged], brief=())  # a terminal has it among the remarks
    config = next(iter(judged.values())).config
    said = [f"{config}. Robust: right when clean and right when attacked; worst case: under every attack."]
    if report.verdict:
        said.append(report.verdict)
    attacks = Block(dump_yaml({name: it.config.attacks for name, it in judged.items()}).rstrip())
    table = _accuracy_table("Robustness by attack", judged)
    parts: list[Part] = [*said, Plots(["robustness"], beside=[table, Folded("Parameters of the attacks", attacks)])]
    return Section(
        "Robustness",
        parts,
        brief=[*(_accuracy_table(f"Robustness, {name}", {name: it}) for name, it in judged.items()), *said],
    )


def _accuracy_table(title: str, judged: Mapping[Network, Report]) -> Table:
    """Clean accuracy, each attack and the worst case, by network."""
    names = list(dict.fromkeys(name for it in judged.values() for name in it.attacks))
    rows: list[list[Cell]] = [
        ["clean", *((percent(it.clean), interval_text(*it.clean_interval)) for it in judged.values()), ""]
    ]
    for name in (*names, "worst case"):
        columns = [it.columns.get(name) for it in judged.values()]
        cells = [(percent(it.accuracy), interval_text(*it.interval)) if it else ("-", "-") for it in columns]
        rows.append([name, *cells, " + ".join(f"{it.seconds:.1f}" for it in columns if it)])
    header: list[Cell] = ["attack", *((name, "95 % interval") for name in judged), "seconds"]
    return Table(title, header, rows, foot=True)


def _layers(report: RunReport) -> Section:
    dense = [layer for layer in report.layers if layer.dense_because]
    header = ["layer", "shape", "weights", "kept", "density"]
    rows = [
        [layer.name, shape_text(layer.shape), f"{layer.weights:,}", f"{layer.kept:,}", percent(layer.density)]
        for layer in report.layers
    ]
    pruned = percent(report.sparsity)
    short = Table(f"Layers ({report.allocation}, {report.granularity}, {pruned} pruned)", header, rows, left=(0, 1))
    if dense:
        header = [*header, "dense because"]
        rows = [[*row, layer.dense_because or ""] for row, layer in zip(rows, report.layers, strict=True)]
    table = Table("Layers", header, rows, left=(0, 1, 5), code=True)
    said = f"Allocation {report.allocation}, granularity {report.granularity}, {pruned} of the prunable weights pruned."
    return Section(
        "Layers",
        [said, Plots(["density"], beside=[table])],
        brief=[short, *(f"{layer.name} stays dense: {layer.dense_because}" for layer in dense)],
    )


def _training(report: RunReport) -> Section:
    epochs, best = report.epochs, report.best
    parts: list[Part] = ["No epoch has ended yet."]
    brief = parts[:]
    if epochs:
        terms = list(dict.fromkeys(name for epoch in epochs for name in epoch.terms))
        last = {epoch.phase: epoch for epoch in epochs}
        losses = [
            ["loss", *(number(epoch.loss) for epoch in last.values())],
            *([name, *(number(epoch.terms.get(name)) for epoch in last.values())] for name in terms),
        ]
        phases = [f"{epoch.phase} {epoch.epoch}" for epoch in last.values()]
        brief = [Table("Loss, last epoch of a phase", ["term", *phases], losses)]
        parts = [Plots(["loss", "validation", "admm"]), Folded("All epochs", _epoch_table(report, terms))]
    if report.residual is not None:
        brief.append(f"ADMM residual |W - Z| / |W| at the hard prune: {number(report.residual)}")
    if report.validation:
        brief.append(f"Validation: {_validation_text(report)}.")
    if best:
        kept = f"The weights are those of epoch {best.epoch}."
        if best.agreement is not None:
            agreement = f"{percent(best.agreement)} agreement with the dense network on perturbed images"
            kept = f"{kept[:-1]}: {agreement}, {percent(best.clean)} clean."
        parts = [kept, *parts]
        brief.append(kept)
    return Section("Training", parts, brief)


def _epoch_table(report: RunReport, terms: list[str]) -> Table:
    rest = ("lr", "rho", "residual", "sparsity", "clean", "agreement", "seconds")
    rows = [
        [
            str(epoch.epoch),
            epoch.phase,
            number(epoch.loss),
            *(number(epoch.terms.get(name)) for name in terms),
            *map(number, (epoch.lr, epoch.rho, epoch.residual)),
            *map(percent, (epoch.sparsity, epoch.clean, epoch.agreement)),
            f"{epoch.seconds:.1f}",
        ]
        for epoch in report.epochs
    ]
    return Table("Epochs", ["epoch", "phase", "loss", *terms, *rest], rows, left=())


def _validation_text(report: RunReport) -> str:
    assert report.validation is not None
    return f"{report.validation.images:,} images, dense network {percent(report.validation.dense_clean)} clean"


def _before_and_after(report: RunReport, cost: CostReport) -> Section:
    dense, pruned = cost.dense, cost.pruned
    rows = []
    for name, before, after, text in (
        ("parameters", dense.parameters, pruned.parameters, "{:,}".format),
        ("MACs, one image", dense.macs, pruned.macs, "{:,}".format),
        ("file", dense.file_bytes, pruned.file_bytes, size_text),
    ):
        rows.append([name, text(before), text(after), f"{before / after:.2f}x" if after else "-"])
    for batch, ms_before in dense.latency_ms.items():
        ms_after, ratio = pruned.latency_ms.get(batch), cost.speedup.get(batch)
        times = ["-" if ms is None else f"{ms:.3g} ms" for ms in (ms_before, ms_after)]
        rows.append([f"latency, batch {batch}", *times, "-" if ratio is None else f"{ratio:.2f}x"])
    if report.dense_alike:
        first, then = (report.judged[name].worst_case.accuracy for name in ("dense", "pruned"))
        rows.append(["robust, worst case", percent(first), percent(then), f"{then / first:.1%} left" if first else "-"])
    note = f"Latency: medians of paired runs on {cost.device}, {cost.threads} thread(s); its ratio is of pairs."
    return Section("Before and after", [Table("Before and after", ["", "dense", "pruned", "ratio"], rows), note])


def _size(size: SizeReport | None) -> Section:
    if size is None:
        return Section("Size", ["Not known before the hard prune."], brief=())
    note = (
        f"Sparse: each layer in the smallest of bitmap, CSR and dense. All as bitmaps: {size.bitmap_bytes:,} bytes; "
        f"all as CSR: {size.csr_bytes:,} bytes. Compression over all {size.parameters:,} parameters "
        f"({size.nonzero_parameters:,} nonzero): {number(size.parameter_compression)}x."
    )
    return Section("Size", [size.table(), note])


def _how_made(report: RunReport) -> Section:
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
        rows.append(("validation", _validation_text(report)))
    rows += [(f"version of {name}", version) for name, version in report.versions.items()]
    parts: list[Part] = [
        Block(shlex.join(report.command)),
        Folded("Seed, versions and checkpoint", Block("\n".join(f"{name}: {one_line(text)}" for name, text in rows))),
        Folded("Config", Block(dump_yaml(report.config).rstrip(), "yaml")),
    ]
    return Section("How it was made", parts, brief=())
