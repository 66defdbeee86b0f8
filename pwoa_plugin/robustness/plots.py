"""The plots of robustness reports: bars by attack, change by class, security curves, broken images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..pages import Drawing, Drawn, Palette
from ..pages.plots import axes, legend, percent_axis, shortened
from .curve import Curve
from .report import Report

_MOST_CLASSES = 40
_SHOWN = 96  # pixels of an image on the page, at least


def drawings(reports: Mapping[str, Report], curves: Mapping[str, Curve]) -> dict[str, Drawing]:
    """The plots of a comparison, by name, from the reports and curves of its models."""
    plots: dict[str, Drawing] = {"attacks": ("Accuracy by attack", partial(accuracy_bars, reports))}
    if len(reports) > 1:
        plots["classes"] = ("Change by class, worst case", partial(_classes, reports))
    if curves:
        eps = next(iter(reports.values())).config.eps
        plots["curves"] = ("Security curves", partial(_curves, curves, eps))
    return plots


def _colours(n_models: int, palette: Palette) -> list[str]:
    """Of several models the first is muted."""
    muted = [palette.muted] if n_models > 1 else []
    return [*muted, *(palette.series[i % len(palette.series)] for i in range(n_models - len(muted)))]


def accuracy_bars(reports: Mapping[str, Report], palette: Palette) -> Drawn:
    """Clean, each attack and the worst case, a bar for each model, with 95 % intervals. The first model is muted."""
    names = list(dict.fromkeys(name for report in reports.values() for name in report.attacks))
    names = ["clean", *names, "worst case"]
    figure, ax = axes(palette, height=1.1 + 0.14 * len(names) * (len(reports) + 1))
    height = 0.84 / len(reports)
    said = []
    colours = _colours(len(reports), palette)
    for i, (model, report) in enumerate(reports.items()):
        columns = {name: (accuracy, *interval) for name, (accuracy, interval) in report.figures.items()}
        worst = report.worst_case
        places = [at for at, name in enumerate(names) if name in columns]
        values = [columns[names[at]] for at in places]
        ax.barh(
            [at + (i - (len(reports) - 1) / 2) * height for at in places],
            [value for value, _, _ in values],
            height=0.9 * height,
            color=colours[i],
            xerr=[
                [max(0.0, value - low) for value, low, _ in values],
                [max(0.0, high - value) for value, _, high in values],
            ],
            error_kw={"elinewidth": 1.2, "capsize": 2.5, "ecolor": palette.ink},
            label=shortened(model),
        )
        said.append(f"{model} {worst.accuracy:.2%} in the worst case ({worst.low:.2%} to {worst.high:.2%})")
    ax.set_yticks(range(len(names)), [shortened(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.02)
    ax.tick_params(axis="y", length=0)
    percent_axis(ax.xaxis)
    ax.set_xlabel("accuracy, with 95 % intervals")
    legend(ax, palette)
    return figure, f"Accuracy under each attack, with 95 % intervals: {'; '.join(said)}."


def _classes(reports: Mapping[str, Report], palette: Palette) -> Drawn:
    first, *others = reports.values()
    dense, *names = reports
    if first.labels is None:
        return None, "The reports do not say which class each image is of."
    classes = torch.unique(first.labels).tolist()
    if len(classes) > _MOST_CLASSES:
        return None, f"Not drawn: there are {len(classes)} classes; the JSON has every image's verdict."
    figure, ax = axes(palette, height=2.9)
    width = 0.8 / len(others)
    said = []
    for i, (name, report) in enumerate(zip(names, others, strict=True)):
        changes = [
            float((report.worst_case.robust.double() - first.worst_case.robust.double())[first.labels == label].mean())
            for label in classes
        ]
        ax.bar(
            [at + (i - (len(others) - 1) / 2) * width for at in range(len(classes))],
            changes,
            width=0.9 * width,
            color=palette.series[i % len(palette.series)],
            label=shortened(name),
        )
        worst = min(range(len(classes)), key=lambda at: changes[at])
        said.append(f"{name} loses most on class {classes[worst]}, {100 * changes[worst]:+.1f} points")
    ax.axhline(0, color=palette.muted, linewidth=1)
    ax.set_xticks(range(len(classes)), [str(label) for label in classes])
    ax.set_xlabel("class")
    ax.set_ylabel(f"change from {shortened(dense)}")
    percent_axis(ax.yaxis)
    legend(ax, palette)
    return figure, f"Robust accuracy by class, less that of {dense}: {'; '.join(said)}."


def _curves(curves: Mapping[str, Curve], judged_at: float, palette: Palette) -> Drawn:
    figure, ax = axes(palette, height=3.1)
    said = []
    colours = _colours(len(curves), palette)
    for i, (name, curve) in enumerate(curves.items()):
        lows, highs = zip(*curve.intervals, strict=True)
        ax.fill_between(curve.eps, lows, highs, color=colours[i], alpha=0.18, linewidth=0)
        ax.plot(curve.eps, curve.accuracy, color=colours[i], marker="os^Dv<"[i % 6], label=shortened(name))
        said.append(f"{name} from {curve.accuracy[0]:.1%} clean to {curve.accuracy[-1]:.1%} at {curve.eps[-1]:.4g}")
    (curve, *_) = curves.values()
    if curve.eps[-1] >= judged_at:
        ax.axvline(judged_at, color=palette.muted, linewidth=1, linestyle=(0, (4, 3)))
    ax.set_xlim(0, None)
    ax.set_ylim(-0.02, 1.02)
    percent_axis(ax.yaxis)
    ax.set_xlabel(f"eps ({curve.norm}, pixel units)")
    ax.set_ylabel(f"accuracy under {curve.attack}")
    legend(ax, palette)
    return figure, f"Accuracy under {curve.attack} by eps, with 95 % intervals: {'; '.join(said)}."


def image_uri(image: Tensor, low: float, high: float) -> str:
    """A PNG of an image ``(C, H, W)`` as a ``data:`` address. Small ones are enlarged by whole pixels; of more than
    three channels, three are shown."""
    from PIL import Image

    pixels = ((image - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    made = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, -(-_SHOWN // max(made.size)))
    made = made.resize((made.width * factor, made.height * factor), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    made.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
