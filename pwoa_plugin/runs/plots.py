"""The plots of a run's report."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..pages import Drawing, Drawn, Palette
from ..pages.plots import axes, legend, percent_axis, short_percent, shortened

if TYPE_CHECKING:
    from .report import RunReport

_MOST_BARS = 80


def drawings(report: RunReport) -> dict[str, Drawing]:
    """The plots of a run, by name."""
    return {
        "robustness": ("Accuracy by attack", partial(_robustness, report)),
        "density": ("Weights kept by layer", partial(_density, report)),
        "loss": ("Terms of the loss", partial(_loss, report)),
        "admm": ("ADMM residual and sparsity" if _residuals(report) else "Sparsity", partial(_admm, report)),
        "validation": ("Validation", partial(_validation, report)),
    }


def _by_epoch(ax: Any, report: RunReport, palette: Palette, named: bool = True) -> None:
    """Set up the axis of epochs, and mark the hard prune on it."""
    from matplotlib.ticker import MaxNLocator

    numbers = [epoch.epoch for epoch in report.epochs]
    ax.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    before = [epoch for epoch in report.epochs if epoch.phase != "fine-tune"]
    if before and len(before) < len(numbers):
        prune = before[-1].epoch + 0.5
        ax.axvline(prune, color=palette.muted, linewidth=1, linestyle=(0, (4, 3)))
        if named:
            phase = "ADMM" if before[-1].phase == "admm" else "gradual pruning"
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "bottom"}
            for text, side, shift in ((phase, "right", -5), ("fine-tuning", "left", 5)):
                ax.annotate(text, (prune, 1), (shift, 1), ha=side, color=palette.ink, fontsize=9.5, **place)


_NO_EPOCH = "No epoch has ended yet."


def _loss(report: RunReport, palette: Palette) -> Drawn:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if not report.epochs:
        return None, _NO_EPOCH
    figure, ax = axes(palette)
    terms = {epoch.epoch: epoch.terms or {"loss": epoch.loss} for epoch in report.epochs}
    said = []
    for i, name in enumerate(dict.fromkeys(name for values in terms.values() for name in values)):
        known = [(at, values[name]) for at, values in terms.items() if name in values]
        shown = [(at, abs(value)) for at, value in known if value]
        negative = any(value < 0 for _, value in known)
        ax.plot(
            *zip(*shown, strict=True) if shown else ([], []),
            color=palette.series[i % len(palette.series)],
            marker="os^Dv<"[i % 6],
            linestyle="--" if negative else "-",
            label=shortened(f"-{name}" if negative else name),
        )
        said.append(f"{name} from {known[0][1]:.3g} in epoch {known[0][0]} to {known[-1][1]:.3g} in {known[-1][0]}")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # SVG text has no formulas
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("size of the term (log)")
    ax.set_xlabel("epoch")
    _by_epoch(ax, report, palette)
    legend(ax, palette)
    return figure, f"Terms of the loss by epoch, on a logarithmic scale: {'; '.join(said)}."


def _residuals(report: RunReport) -> list[tuple[int, float]]:
    """ADMM's residual by epoch; empty without ADMM."""
    return [(epoch.epoch, epoch.residual) for epoch in report.epochs if epoch.residual is not None]


def _admm(report: RunReport, palette: Palette) -> Drawn:
    if not report.epochs:
        return None, _NO_EPOCH
    residuals = _residuals(report)
    figure, rows = axes(palette, height=3.2, rows=2 if residuals else 1, sharex=True, squeeze=False)
    below = rows[-1, 0]
    said = ""
    if residuals:
        above = rows[0, 0]
        above.plot(*zip(*residuals, strict=True), color=palette.series[1], marker="s")
        above.set_ylim(0, 1.15 * max(value for _, value in residuals) or 1)
        above.set_ylabel("residual")
        _by_epoch(above, report, palette)
        said = f"ADMM residual from {residuals[0][1]:.3g} to {residuals[-1][1]:.3g}; "
    sparsity = [epoch.sparsity for epoch in report.epochs]
    below.plot([epoch.epoch for epoch in report.epochs], sparsity, color=palette.series[0], marker="o")
    below.set_ylim(-0.03, 1.03)
    percent_axis(below.yaxis)
    below.set_ylabel("sparsity")
    below.set_xlabel("epoch")
    _by_epoch(below, report, palette, named=not residuals)
    return figure, f"By epoch: {said}sparsity from {sparsity[0]:.2%} to {sparsity[-1]:.2%}."


def _validation(report: RunReport, palette: Palette) -> Drawn:
    series = {
        "clean accuracy": [(epoch.epoch, epoch.clean) for epoch in report.epochs if epoch.clean is not None],
        "agreement, perturbed": [(e.epoch, e.agreement) for e in report.epochs if e.agreement is not None],
    }
    if not any(series.values()):
        return None, "No epoch was validated: the config's data.validation is 0, or no epoch has ended."
    figure, ax = axes(palette)
    said = []
    for i, (name, points) in enumerate(series.items()):
        if points:
            ax.plot(*zip(*points, strict=True), color=palette.series[i], marker="os"[i], label=name)
            said.append(f"{name} from {points[0][1]:.2%} to {points[-1][1]:.2%}")
    if report.validation:
        ax.axhline(
            report.validation.dense_clean, color=palette.muted, linewidth=1.2, linestyle=":", label="dense, clean"
        )
        said.append(f"the dense network is {report.validation.dense_clean:.2%} clean")
    _by_epoch(ax, report, palette)
    if report.best:
        ax.axvline(report.best.epoch, color=palette.series[2], linewidth=1.4, label=f"kept: epoch {report.best.epoch}")
        said.append(f"epoch {report.best.epoch} was kept")
    low, high = ax.get_ylim()
    ax.set_ylim(max(0.0, low - 0.02), min(1.02, high + 0.02))
    percent_axis(ax.yaxis)
    ax.set_xlabel("epoch")
    legend(ax, palette)
    return figure, f"On validation images, by epoch: {'; '.join(said)}."


def _density(report: RunReport, palette: Palette) -> Drawn:
    if not report.layers:
        return None, "No layer was to be pruned."
    largest = sorted(range(len(report.layers)), key=lambda i: -report.layers[i].weights)[:_MOST_BARS]
    layers = [report.layers[i] for i in sorted(largest)]
    figure, ax = axes(palette, height=0.8 + 0.23 * len(layers))
    places = range(len(layers))
    bars = ax.barh(
        places,
        [layer.density for layer in layers],
        height=0.68,
        color=[palette.muted if layer.dense_because else palette.series[0] for layer in layers],
    )
    ax.bar_label(bars, [short_percent(layer.density) for layer in layers], padding=3, color=palette.ink, fontsize=9.5)
    ax.set_yticks(places, [shortened(layer.name) for layer in layers])
    ax.set_ylim(len(layers) - 0.4, -0.6)
    ax.set_xlim(0, 1.12 * max(layer.density for layer in layers) or 1)
    ax.tick_params(axis="y", length=0)
    percent_axis(ax.xaxis)
    ax.set_xlabel("weights kept")
    few = "" if len(layers) == len(report.layers) else f" of the {len(layers)} largest layers"
    said = "; ".join(f"{layer.name} {short_percent(layer.density)}" for layer in layers[:12])
    more = "; the table below has all" if len(layers) > 12 or few else ""
    return figure, f"Weights kept by layer{few}: {said}{more}."


def _robustness(report: RunReport, palette: Palette) -> Drawn:
    if not report.judged:
        return None, report.not_judged
    from ..robustness.plots import accuracy_bars  # not at the top: brings ART

    return accuracy_bars({name: report.judged[name] for name in ("dense", "pruned") if name in report.judged}, palette)
