"""Tables and plots of the study, from its cells alone.

python -m benchmarks.tables mnist [--split validation] [--plots docs]
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

Cell = Mapping[str, Any]
Cells = dict[str, dict[float, list[Cell]]]  # method, compression, one a seed

ORDER = ["dense", "one-shot", "level-ce", "distillation", "paper", "default", "adversarial"]
LABELS = {
    "one-shot": "magnitude, one-shot",
    "level-ce": "NNI Level + cross-entropy",
    "distillation": "magnitude + distillation",
    "paper": "PwoA as published, cut short",
    "default": "PwoA (default)",
    "adversarial": "adversarial fine-tuning (PGD-7)",
}


def read(folder: Path, subject: str, split: str) -> Cells:
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob(f"{subject}-*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        if cell["split"] == split:
            cells[cell["method"]][cell["compression"]].append(cell)
    return cells


def methods_of(cells: Cells) -> list[str]:
    return sorted(cells, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def deep_of(cells: Iterable[Cell]) -> Cell | None:
    """The cell that AutoAttack was run in: seed 0's."""
    return next((cell for cell in cells if "AutoAttack" in cell), None)


def pgd_of(cell: Cell) -> float:
    return float(next(value for key, value in cell.items() if key.startswith("PGD-")))


def spread(values: Sequence[float]) -> str:
    """Mean, and half the range where there are several seeds."""
    mean = statistics.fmean(values)
    return f"{mean:.1%}" + (f" ± {(max(values) - min(values)) / 2:.1%}" if len(values) > 1 else "")


def table(cells: Cells) -> str:
    dense = deep_of(cells.get("dense", {}).get(1.0, []))
    lines = ["| compression | method | clean | PGD | AutoAttack | share of dense | seconds |", "| --- " * 7 + "|"]
    for compression in sorted({compression for rows in cells.values() for compression in rows}):
        for method in methods_of(cells):
            row = cells[method].get(compression)
            if not row:
                continue
            deep = deep_of(row)
            robust = f"{deep['AutoAttack']:.1%}" if deep else "not run"
            share = f"{deep['AutoAttack'] / dense['AutoAttack']:.1%}" if deep and dense else ""
            seconds = statistics.median(cell["prune_seconds"] for cell in row)
            figures = [
                f"{compression:g}x",
                LABELS.get(method, method),
                spread([cell["clean"] for cell in row]),
                spread([pgd_of(cell) for cell in row]),
                robust,
                share,
                f"{seconds:.0f}",
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
        axes.set_ylabel("AutoAttack accuracy, %")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(folder / f"{subject}-robustness-by-{name}.png", dpi=120)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--plots", type=Path, help="folder to draw into")
    args = parser.parse_args()
    cells = read(args.results, args.subject, args.split)
    if not cells:
        parser.error(f"no cell of {args.subject} ({args.split}) in {args.results}; run benchmarks.robustness first")
    print(table(cells))
    if args.plots:
        plot(cells, args.plots, args.subject)


if __name__ == "__main__":
    main()
