"""Tables and plots of the study, from its cells alone.

    python -m benchmarks.tables mnist [--plots docs]
    python -m benchmarks.tables mnist --ablations

Ablations are the cells of the validation split, each beside the default at the same compression: the number of images
that only one of the two resists under AutoAttack, and McNemar's exact p, unadjusted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.robustness import RESULTS
from pwoa_plugin.robustness.statistics import mcnemar_exact, wilson_interval

Cell = Mapping[str, Any]
Cells = dict[str, dict[float, list[Cell]]]  # method, compression, one a seed

# The cells "default" are older than the default of today, which "shares-quarter" is.
ORDER = ["dense", "one-shot", "level-ce", "distillation", "paper", "default", "shares-quarter", "lr-0.001"]
ORDER += ["shares-quarter-lr-0.001", "gradients-1", "gradients-1-lr-0.001"]
ORDER += ["ours-n-fgsm", "n-fgsm-teacher-alone", "n-fgsm", "n-fgsm-unlabelled", "fgsm-rs", "adversarial"]
LABELS = {
    "one-shot": "magnitude, one-shot",
    "level-ce": "NNI Level + cross-entropy",
    "distillation": "magnitude + distillation",
    "paper": "PwoA as published, cut short",
    "default": "PwoA, terms in every step",
    "shares-quarter": "PwoA (default)",
    "lr-0.001": "PwoA, terms in every step, Adam 1e-3",
    "shares-quarter-lr-0.001": "PwoA, Adam 1e-3",
    "ours-n-fgsm": "PwoA, `adversarial={}`, Adam 1e-3",
    "n-fgsm-teacher-alone": "ours on N-FGSM's examples, the dense network's classes",
    "gradients-1": "PwoA, `gradient_weight` 1",
    "gradients-1-lr-0.001": "PwoA, `gradient_weight` 1, Adam 1e-3",
    "n-fgsm": "adversarial fine-tuning (N-FGSM)",
    "n-fgsm-unlabelled": "N-FGSM with the dense network's classes",
    "fgsm-rs": "adversarial fine-tuning (FGSM-RS)",
    "adversarial": "adversarial fine-tuning (PGD-7)",
}


def read(folder: Path, subject: str, split: str) -> Cells:
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob(f"{subject}-*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        if cell["subject"] == subject and cell["split"] == split:
            cells[cell["method"]][cell["compression"]].append(cell)
    return cells


def methods_of(cells: Cells) -> list[str]:
    return sorted(cells, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def compressions_of(cells: Cells) -> list[float]:
    return sorted({compression for rows in cells.values() for compression in rows})


def deep_of(cells: Iterable[Cell]) -> Cell | None:
    """The cell that AutoAttack was run in: seed 0's."""
    return next((cell for cell in cells if "AutoAttack" in cell), None)


def pgd_of(cell: Cell) -> float:
    return float(next(value for key, value in cell.items() if key.startswith("PGD-")))


def spread(values: Sequence[float]) -> str:
    """Mean, and half the range where there are several seeds."""
    mean = statistics.fmean(values)
    return f"{mean:.1%}" + (f" ± {(max(values) - min(values)) / 2:.1%}" if len(values) > 1 else "")


def deep_figure(cell: Cell) -> str:
    """AutoAttack's accuracy, and its 95 % interval."""
    low, high = wilson_interval(round(cell["AutoAttack"] * cell["deep"]), cell["deep"])
    return f"{cell['AutoAttack']:.1%} ({low:.0%} to {high:.0%})"


def share_of(cell: Cell, dense: Cell) -> float:
    """AutoAttack's accuracy over the dense network's, on the images that both have where these are told."""
    both = min(len(cell.get("robust", "")), len(dense.get("robust", "")))
    if not both:
        return float(cell["AutoAttack"] / dense["AutoAttack"])
    return float(cell["robust"][:both].count("1") / dense["robust"][:both].count("1"))


def on_cpu(cell: Cell) -> bool:
    """Whether its seconds are a CPU's: those of a GPU are not to be compared with them."""
    return str(cell.get("device", "cpu")) == "cpu"


def ablations(cells: Cells) -> str:
    lines = [
        "| compression | setting | clean | PGD | AutoAttack (95 %) | only default, only this | p |",
        "| --- " * 7 + "|",
    ]
    for compression in compressions_of(cells):
        base = deep_of(cells.get("default", {}).get(compression, []))
        for method in methods_of(cells):
            for cell in cells[method].get(compression, []):
                figures = [f"{compression:g}x", method, f"{cell['clean']:.1%}", f"{pgd_of(cell):.1%}"]
                figures += [deep_figure(cell) if "AutoAttack" in cell else "not run", *beside(base, cell)]
                lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def beside(base: Cell | None, cell: Cell) -> tuple[str, str]:
    """Images that only one of two cells withstands, and how likely so uneven a split is by chance."""
    if base is None or base is cell or "robust" not in base or len(base["robust"]) != len(cell.get("robust", "")):
        return "", ""
    pairs = list(zip(base["robust"], cell["robust"], strict=True))
    first, second = pairs.count(("1", "0")), pairs.count(("0", "1"))
    return f"{first}, {second}", f"{mcnemar_exact(first, second):.2g}"


def table(cells: Cells) -> str:
    dense = deep_of(cells.get("dense", {}).get(1.0, []))
    lines = [
        "| compression | method | clean | PGD | AutoAttack (95 %) | share of dense | seconds |",
        "| --- " * 7 + "|",
    ]
    for compression in compressions_of(cells):
        for method in methods_of(cells):
            row = cells[method].get(compression)
            if not row:
                continue
            deep = deep_of(row)
            robust = deep_figure(deep) if deep else "not run"
            share = f"{share_of(deep, dense):.1%}" if deep and dense else ""
            seconds = [cell["prune_seconds"] for cell in row if on_cpu(cell)]
            figures = [
                f"{compression:g}x",
                LABELS.get(method, method),
                spread([cell["clean"] for cell in row]),
                spread([pgd_of(cell) for cell in row]),
                robust,
                share,
                f"{statistics.median(seconds):.0f}" if seconds else "GPU",
            ]
            lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def plot(cells: Cells, folder: Path, subject: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    dense = deep_of(cells.get("dense", {}).get(1.0, []))
    for name, value in (
        ("compression", lambda cell: cell["compression"]),
        ("seconds", lambda cell: cell["prune_seconds"]),
    ):
        figure, axes = plt.subplots(figsize=(7, 4.2))
        for method in methods_of(cells):
            if method == "dense":
                continue
            found = [deep for _, row in sorted(cells[method].items()) if (deep := deep_of(row))]
            if name == "seconds":
                found = [cell for cell in found if on_cpu(cell)]
            if found:
                style = {"marker": "o", "linestyle": "-" if name == "compression" else ""}
                x, y = [value(cell) for cell in found], [100 * cell["AutoAttack"] for cell in found]
                axes.plot(x, y, label=LABELS.get(method, method), **style)
                if name == "seconds":
                    for cell, at, height in zip(found, x, y, strict=True):
                        axes.annotate(f" {cell['compression']:g}x", (at, height), fontsize=7)
        if dense:
            axes.axhline(100 * dense["AutoAttack"], color="grey", linestyle="--", linewidth=1, label="dense")
        axes.set_xscale("log" if name == "compression" else "symlog")
        axes.set_xlabel(
            "compression (all convolution and linear weights)" if name == "compression" else "seconds to prune"
        )
        if name == "compression":
            shown = [compression for compression in compressions_of(cells) if compression > 1]
            axes.set_xticks(shown, [f"{compression:g}x" for compression in shown])
            axes.minorticks_off()
        else:
            axes.set_xlim(-0.5, 2 * axes.dataLim.x1)
        axes.set_ylabel("AutoAttack accuracy, %")
        axes.set_ylim(bottom=-3)
        axes.legend(fontsize=8, loc="center", bbox_to_anchor=(0.55, 0.36))
        axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(folder / f"{subject}-robustness-by-{name}.png", dpi=120)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--plots", type=Path, help="folder to draw into")
    args = parser.parse_args()
    split = "validation" if args.ablations else "test"
    cells = read(args.results, args.subject, split)
    if not cells:
        parser.error(f"no cell of {args.subject} ({split}) in {args.results}; run benchmarks.robustness first")
    print(ablations(cells) if args.ablations else table(cells))
    if args.plots:
        plot(cells, args.plots, args.subject)


if __name__ == "__main__":
    main()
