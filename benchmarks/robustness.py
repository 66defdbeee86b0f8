"""Robustness kept and time spent, method by compression by seed.

    python -m benchmarks.robustness mnist --data DIR --methods default adversarial --compression 4 16 33 100 --seeds 3
    python -m benchmarks.robustness mnist --data DIR --validate --name lamp --set allocation=lamp --compression 16 33

A cell is one method at one compression with one seed. Each has a small JSON file in ``--out``; a cell whose file exists
is not run again. Cells of a row share images, epochs and judge: PGD on all the judge's images, and for seed 0 the
standard AutoAttack on the first of them (those that PGD left). ``--validate`` judges by images cut from the training
set; all choices are made by them. ``--set FIELD=JSON`` changes fields of a method's config; such a cell needs a
``--name``. `benchmarks.tables` makes tables and plots of the files.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.methods import METHODS, Task
from benchmarks.subjects import SUBJECTS, Judge, Subject
from pwoa_plugin import evaluate
from pwoa_plugin._files import write_text
from pwoa_plugin._weights import is_weighted

RESULTS = Path("benchmarks/results/robustness")


def kept(model: nn.Module) -> tuple[int, int]:
    """Convolution and linear weights that are not 0, and all of them."""
    weights = [module.get_parameter("weight") for module in model.modules() if is_weighted(module)]
    return sum(int(weight.count_nonzero()) for weight in weights), sum(weight.numel() for weight in weights)


def judged(model: nn.Module, images: Any, eps: float, judge: Judge, *, deep: bool, seed: int) -> dict[str, Any]:
    """Accuracies, and seconds of the attacks. AutoAttack goes at those that PGD left: its share is the worst case's.

    ``robust`` says of every one of its images whether it withstood, as 1 or 0: cells are compared image by image.
    """
    x, y = images[0][: judge.images], images[1][: judge.images]
    wide = evaluate(model, (x, y), eps=eps, attacks=judge.pgd, seed=seed, progress=False)
    pgd = wide.attacks[judge.pgd]
    seconds = {judge.pgd: pgd.seconds}
    result: dict[str, Any] = {"clean": wide.clean, judge.pgd: pgd.accuracy, "judged": len(x), "judge_seconds": seconds}
    if deep:
        n = min(judge.deep, len(x))
        robust = pgd.robust[:n].clone()
        left = robust.nonzero().squeeze(1)
        if len(left):
            report = evaluate(model, (x[left], y[left]), eps=eps, attacks="AutoAttack", seed=seed, progress=False)
            robust[left] = report.attacks["AutoAttack"].robust
            seconds["AutoAttack"] = report.attacks["AutoAttack"].seconds
        verdicts = "".join(str(int(verdict)) for verdict in robust)
        result |= {"AutoAttack": int(robust.sum()) / n, "deep": n, "robust": verdicts}
    return result


def beyond(model: nn.Module, images: Any, subject: Subject, judge: Judge, seed: int) -> dict[str, float]:
    """Accuracies by PGD under the subject's other threats, which no training has seen."""
    told = {}
    pair = (images[0][: judge.images], images[1][: judge.images])
    for norm, eps in subject.beyond:
        report = evaluate(model, pair, eps=eps, norm=norm, attacks=judge.pgd, seed=seed, progress=False)
        told[f"{norm} {eps:.3g}"] = report.attacks[judge.pgd].accuracy
    return told


def cell(args: argparse.Namespace, method: str, compression: float, seed: int) -> dict[str, Any]:
    subject = SUBJECTS[args.subject]
    model = subject.model().to(args.device, memory_format=torch.channels_last)
    images, labels = (part[: args.train].to(args.device) for part in subject.training(args.data))
    task = Task(
        paper=subject.paper,
        sparsity=1 - 1 / compression,
        images=(images, labels),
        eps=subject.eps,
        epochs=args.epochs or subject.epochs,
        augment=subject.augment,
        batch_size=args.batch_size or Task.batch_size,
        lr=args.lr or Task.lr,
        seed=seed,
        fields=args.fields,
    )
    started = time.perf_counter()
    METHODS[method].prune(model, task)
    seconds = time.perf_counter() - started - sum(task.watch_seconds)
    nonzero, weights = kept(model)
    split = subject.validation if args.validate else subject.test
    judge = Judge(subject.judge.pgd, args.images or subject.judge.images, args.deep or subject.judge.deep)
    figures = judged(
        model, split(args.data), subject.eps, judge, deep=bool(seed == 0 or args.deep) and not args.no_deep, seed=seed
    )
    if args.beyond:
        figures["beyond"] = beyond(model, split(args.data), subject, judge, seed)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "subject": args.subject,
        "method": args.name or method,
        "made_by": method,
        "compression": compression,
        "seed": seed,
        "split": "validation" if args.validate else "test",
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "images": len(images),
        "fields": args.fields,
        **({"lr": task.lr} if METHODS[method].has_lr and "optimizer" not in args.fields else {}),
        "nonzero": nonzero,
        "weights": weights,
        "prune_seconds": seconds,
        **({"pgd_by_epoch": task.pgd_by_epoch} if task.pgd_by_epoch else {}),
        **figures,
        "eps": subject.eps,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "pyautoattack": importlib.metadata.version("pyautoattack"),
        "commit": commit.stdout.strip(),
    }


def parse_fields(pairs: Iterable[str]) -> dict[str, Any]:
    """Fields of `PwoAConfig` from ``FIELD=JSON``."""
    return {name: parse_value(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where torchvision has its files, or puts them")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["default"])
    parser.add_argument("--compression", type=float, nargs="+", default=[4, 16, 33, 100])
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--epochs", type=int, help="the subject's unless given")
    parser.add_argument("--batch-size", type=int, help="128 unless given")
    parser.add_argument("--lr", type=float, help="of the methods that are not PwoA; 1e-3 unless given")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help='as admm={"epochs":0}')
    parser.add_argument("--name", help="of a cell with other settings than its method's")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--images", type=int, help="to judge by; the subject's unless given")
    parser.add_argument(
        "--deep", type=int, help="of these, for AutoAttack, of every seed; unless given the subject's, of seed 0"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--beyond", action="store_true", help="judge by PGD under other norms and radii, too")
    parser.add_argument("--train", type=int, help="training images, the first; all unless given")
    parser.add_argument("--no-deep", action="store_true", help="without AutoAttack")
    args = parser.parse_args()
    args.fields = parse_fields(args.set)
    if (args.fields or args.epochs or args.batch_size or args.lr or args.train) and not args.name:
        parser.error("--set, --epochs, --batch-size, --lr and --train make another method of it; give it a --name")
    if args.name and len(args.methods) > 1:
        parser.error(f"--name {args.name} is of one method; give --methods one")
    settable = [name for name, method in METHODS.items() if method.has_fields]
    if args.fields and not {*args.methods} <= {*settable}:
        parser.error(f"--set is for {', '.join(settable)}; the others have no PwoAConfig")
    have_lr = [name for name, method in METHODS.items() if method.has_lr]
    if args.lr and not {*args.methods} <= {*have_lr}:
        parser.error(f'--lr is for {", ".join(have_lr)}; the others have none, or --set optimizer={{"lr":...}}')
    if args.lr and "optimizer" in args.fields:
        parser.error("--lr and --set optimizer both say the learning rate; give one")
    if {"epochs", "batch_size", "seed", "sparsity"} & args.fields.keys():
        parser.error("epochs, batch size, seeds and compression have options of their own")
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for method in args.methods:
            for compression in [1.0] if method == "dense" else args.compression:
                split = "-validation" if args.validate else ""
                name = f"{args.subject}-{args.name or method}-{compression:g}x-seed{seed}{split}.json"
                if (args.out / name).exists():
                    continue
                result = cell(args, method, compression, seed)
                write_text(args.out / name, json.dumps(result, indent=1) + "\n")
                shown = {
                    key: result[key]
                    for key in ("clean", SUBJECTS[args.subject].judge.pgd, "AutoAttack")
                    if key in result
                }
                print(name, " ".join(f"{key} {value:.3f}" for key, value in shown.items()), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
