"""What the report of a run says, section by section, for Markdown, HTML and terminal alike."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .._text import one_line
from .._yaml import dump_yaml
from ..pages.sections import Block, Folded, Part, Plots, Section
from ..pages.table import Cell, Table
from ..pages.text import duration, interval_text, number, percent, shape_text, size_text
from .cost import CostReport
from .evaluations import Evaluation, Network, alike
from .headline import bytes_text
from .report import RunReport

if TYPE_CHECKING:
    from ..robustness import Report


_NETWORKS: tuple[Network, ...] = ("pruned", "dense")


def sections(report: RunReport) -> list[Section]:
    """All sections, in order."""
    costs = [_before_and_after(report, report.cost)] if report.cost else []
    return [_robustness(report), _layers(report), _training(report), *costs, _size(report), _how_made(report)]


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
    brief: list[Part] = [*(_accuracy_table(f"Robustness, {name}", {name: it}) for name, it in judged.items()), *said]
    if report.other_evaluations:
        groups = alike(report.evaluations)
        everything = _all_evaluations(groups)
        parts += ["All evaluations of this run; only those on one line were judged alike.", everything]
        for group in groups[1:]:
            others = {name: it.judged for name, it in group.items()}
            config = next(iter(others.values())).config
            parts.append(Folded(f"{config}, by attack", _accuracy_table(f"{config}", others)))
        brief.append(everything)
    return Section("Robustness", parts, brief)


def _all_evaluations(groups: Sequence[Mapping[Network, Evaluation]]) -> Table:
    """A row for each setting: the pruned and the dense network, if they were judged in it."""
    rows: list[list[Cell]] = []
    for group in groups:
        reports = {name: it.judged for name, it in group.items()}
        some = next(iter(reports.values()))
        config = some.config
        cells: list[Cell] = []
        for name in _NETWORKS:
            it = reports.get(name)
            worst = "-" if it is None else (percent(it.worst_case.accuracy), interval_text(*it.worst_case.interval))
            cells += ["-" if it is None else percent(it.clean), worst]
        setting = [f"{config.norm} eps = {config.eps_text}", ", ".join(some.attacks), f"{config.n_images:,}"]
        rows.append([*setting, str(config.seed), *cells])
    of_networks = [f"{name}, {what}" for name in _NETWORKS for what in ("clean", "worst case")]
    return Table("All evaluations", ["judged at", "attacks", "images", "seed", *of_networks], rows, left=(0, 1))


def _accuracy_table(title: str, judged: Mapping[Network, Report]) -> Table:
    """Clean accuracy, each attack and the worst case, of networks that were judged alike."""
    rows: list[list[Cell]] = []
    for name in next(iter(judged.values())).figures:
        figures = [it.figures[name] for it in judged.values()]
        seconds = [] if name == "clean" else [f"{it.columns[name].seconds:.1f}" for it in judged.values()]
        cells = [(percent(accuracy), interval_text(*interval)) for accuracy, interval in figures]
        rows.append([name, *cells, " + ".join(seconds)])
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
        said = f"ADMM residual |W - Z| / |W| at the hard prune: {number(report.residual)}"
        said += "; it had converged." if report.admm_converged else "; it had not converged."
        brief.append(said)
    if report.validation:
        brief.append(f"Validation: {_validation_text(report)}.")
    if best:
        kept = f"The weights are those of epoch {best.epoch}."
        if best.agreement is not None:
            agreement = f"{percent(best.agreement)} agreement with the dense network on perturbed images"
            kept = f"{kept[:-1]}: {agreement}, {percent(best.clean)} clean."
        parts = [kept, *parts]
        brief.append(kept)
    if report.residual is not None:
        parts = [said, *parts]
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
        ("file", dense.file_bytes, report.file_bytes or pruned.file_bytes, size_text),
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


def _size(report: RunReport) -> Section:
    if (size := report.size) is None:
        return Section("Size", ["Not known before the hard prune."], brief=())
    note = (
        f"Sparse: each layer in the smallest of bitmap, CSR and dense. All as bitmaps: {size.bitmap_bytes:,} bytes; "
        f"all as CSR: {size.csr_bytes:,} bytes. Compression over all {size.parameters:,} parameters "
        f"({size.nonzero_parameters:,} nonzero): {number(size.parameter_compression)}x."
    )
    return Section("Size", [bytes_text(report), size.table(), note])


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
        *((f"{name}, by default", number(value)) for name, value in report.chosen.items()),
        ("perturbation radius", number(report.radius)),
        ("adversarial examples in training", report.adversarial_examples),
        ("ADMM residual at the hard prune", number(report.residual)),
        ("ADMM had converged", {None: "-", True: "yes", False: "no"}[report.admm_converged]),
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
